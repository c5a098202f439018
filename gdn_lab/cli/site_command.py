"""gdn-lab site: pages for docs/site of what is recorded of each GPU, executed here.

Pages that `gdn-lab record` executed on the GPU itself stay as they are. The notebooks run with the recorded GPU as
their reference, so that their figures and answers are of its rows; without a GPU they time nothing.
"""

import argparse

from ..report.recorded import recorded_runs
from ..studies import Study, studies
from .errors import UsageError
from .run import ROOT, RUNS, find, run_notebooks, say, shown
from .run_folders import newest_of_each, run_folders
from .site import read_cards, write_site

SITE = ROOT / "docs" / "site"
ADVICE = "07_advice"  # it has no rows of its own: it reads those of all others


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gpus", nargs="*", metavar="GPU", help='recorded ones, such as "h100"; default: all')


def run(arguments: argparse.Namespace) -> None:
    """Execute and write the pages. UsageError for a GPU that is not recorded, or on a machine with a GPU."""
    import torch

    if torch.cuda.is_available():
        raise UsageError("this machine has a GPU, whose pages gdn-lab record makes; run gdn-lab site on one without")
    known = sorted({gpu for gpu, _ in recorded_runs()})
    if unknown := [gpu for gpu in arguments.gpus if gpu not in known]:
        raise UsageError(f"nothing is recorded of {unknown[0]!r}; choose from {', '.join(known)}")
    for gpu in arguments.gpus or known:
        names = [study.notebook for study in to_execute(gpu)]
        if not names:
            say(f"Every page of {gpu} was executed on it.")
            continue
        runs = RUNS / "site" / gpu
        run_notebooks(find(names), {"gpu_reference": gpu}, runs)
        books = {run.notebook: run.folder for run in newest_of_each(run_folders(runs)) if run.notebook in names}
        say("\n".join(shown(path) for path in write_site(SITE, gpu, books)))


def to_execute(gpu: str) -> list[Study]:
    """The studies that have rows of a GPU, or read them, and whose page was not executed on it."""
    cards = read_cards(SITE / gpu)
    there = {name for name, card in cards.items() if card.here}
    recorded = [folder for which, folder in recorded_runs() if which == gpu] + [ADVICE]
    wanted = [study for study in studies() if any(folder.startswith(study.notebook) for folder in recorded)]
    return [study for study in wanted if study.notebook not in there]
