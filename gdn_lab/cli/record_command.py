"""gdn-lab record STUDY: measure what a study records, without its notebook, within a time limit; again: goes on.

Without STUDY it is record_all.py's: everything that is kept of a GPU.

Rows are written as they come, so a run that is cut off keeps those that it has. The same command again starts a run
that takes over the rows of the newest one with the same parameters on the same GPU and kernels, and measures the rest.
"""

import argparse
import shlex
from pathlib import Path

from ..studies import Study, studies
from ..studies.parameters import ParameterError, on_gpu
from .errors import UsageError
from .run import add_checkpoint, add_run_options, check_writable, given_words, shown

MINUTES = "minutes"
OPEN = (MINUTES, "gpu_reference")  # parameters in which a run that is gone on with may differ
FAILURES = (RuntimeError,)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(each.name for each in recordable())
    parser.add_argument("study", nargs="?", metavar="STUDY", help=f"one of {known}; default: all that is kept of a GPU")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of this machine; default: the study's")
    parser.add_argument("--minutes", metavar="M", default="9", help="after which no further point is begun; default: 9")
    parser.add_argument(
        "--only",
        metavar="PIECES",
        help="without STUDY: of all that is kept these alone, in this order, such as 02_decode_kernels,tests_layer",
    )
    parser.add_argument("--fresh", action="store_true", help="take over nothing from an earlier run")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="the run to go on with; default: the newest such")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="an empty one, for the rows; default: a new run")
    add_run_options(parser, "set a parameter of the study; may be repeated")
    add_checkpoint(parser)


def recordable() -> list[Study]:
    """The studies that can be recorded without their notebooks."""
    return [each for each in studies() if each.record]


def run(arguments: argparse.Namespace) -> int | None:
    """Record, and print where. UsageError, one sentence, for what cannot be asked."""
    if not arguments.study:
        from .record_all import run as record_all

        return record_all(arguments)
    if arguments.fresh and arguments.resume:
        raise UsageError("--fresh takes nothing over, --resume names what to take over; give one of them")
    if arguments.only:
        raise UsageError("--only chooses among all that is kept of a GPU; leave it or the study out")
    study = _study(arguments.study)
    words = given_words(arguments.parameters)
    if arguments.gpus is not None and not study.gpus:
        raise UsageError(f"{study.name} is measured on one GPU; leave --gpus out")
    for option, name in (("gpus", study.gpus), (MINUTES, MINUTES)):
        value = getattr(arguments, option)
        if value is not None and words.setdefault(name, str(value)) != str(value) and option == "gpus":
            raise UsageError(f"--{option} {value} and -p {name} {words[name]} contradict each other; give one of them")
    try:
        parsed = study.parameters.parse(words, f"gdn-lab record {study.name}")
    except ParameterError as error:
        raise UsageError(str(error)) from None
    parameters = {name: field.default for name, field in study.parameters.model_fields.items()} | words
    _record(study, parsed, parameters, arguments)


def _study(word: str) -> Study:
    known = {name: each for each in recordable() for name in (each.name, each.number, each.notebook)}
    if word not in known:
        names = ", ".join(each.name for each in recordable())
        raise UsageError(f"there is no study {word!r} to record; choose one of {names}, or execute its notebook")
    return known[word]


def _record(study: Study, parsed, parameters: dict, arguments) -> None:
    from ..bench.results import Run

    root, folder = arguments.runs.absolute(), arguments.folder
    check_writable(*((root, "--runs") if folder is None else (folder, "--folder")))
    earlier = None if arguments.fresh else earlier_run(study, parameters, arguments.resume, root)
    command = f"gdn-lab record {study.name}" + "".join(
        f" -p {name} {shlex.quote(str(value))}"
        for name, value in parameters.items()
        if value != study.parameters.model_fields[name].default
    )
    made = Run.create(
        study.notebook, parameters, root=root, folder=folder, command=command, seed=parameters.get("seed")
    )
    print(f"Rows go to {shown(made.folder)}.", flush=True)
    if not on_gpu():
        print(
            "No GPU here: a toy runs in place of the model, on the CPU, and its times say nothing of a GPU.", flush=True
        )
    rows = []
    if earlier is not None:
        where, rows = earlier
        print(f"Taken over from {shown(where)}: {len(rows)} rows.", flush=True)
    with made:
        for row in rows:
            made.append(row)
        study.record(parsed, made, rows)
    print(f"{made.rows} rows in {shown(made.folder)}.")


def earlier_run(study: Study, parameters: dict, resume: Path | None, root: Path) -> tuple[Path, list[dict]] | None:
    """(folder, rows) of the run to go on with; None where there is none. UsageError if `resume` cannot be."""
    from ..bench.run_folder import load, load_info, newest_first

    here = _machine()
    for folder in [resume] if resume else newest_first(root):
        try:
            info = load_info(folder)
        except (OSError, ValueError) as error:
            if resume:
                raise UsageError(f"--resume {resume}: {error}") from None
            continue
        if info.get("notebook") != study.notebook and not resume:
            continue
        reason = differs(info, study.notebook, parameters, here)
        if reason is None:
            try:
                return folder, load(folder)[1]
            except ValueError as error:
                raise UsageError(f"{error}; mend it, or record anew with --fresh") from None
        if resume:
            raise UsageError(f"--resume {resume} cannot be gone on with: {reason}; record anew with --fresh")
    return None


def _machine() -> dict:
    """What must be alike for rows of two runs to stand in one: GPU and kernels, as run.json has them."""
    from ..bench.environment import environment
    from ..bench.sources import kernel_hashes

    return {"gpu_name": environment()["gpu_name"], "kernels": kernel_hashes()}


def differs(info: dict, notebook: str, parameters: dict, here: dict) -> str | None:
    """Why the rows of a run cannot be gone on with here; None if they can."""
    if info.get("notebook") != notebook:
        return f"it is a run of {info.get('notebook')}, not of {notebook}"
    for name, value in parameters.items():
        there = info["parameters"].get(name)
        if name not in OPEN and str(there) != str(value):
            return f"its {name} was {there!r}, here it is {value!r}"
    if info["environment"].get("gpu_name") != here["gpu_name"]:
        return f"it ran on {info['environment'].get('gpu_name')}, here is {here['gpu_name']}"
    if info.get("kernels") != here["kernels"]:
        return "the kernels have changed since"
    return None
