"""gdn-lab judge: is a kernel correct, is it faster, and what limits it; as text, verdict.html and verdict.json.

    gdn-lab judge my_kernel.py
    gdn-lab judge my_kernel.py --baseline triton/vk --batches 1,32,256 --tp 4

Everything goes to a folder under runs/. Exit status: 0 correct, 1 not correct or failed, 2 usage error.
"""

import argparse
import json
import sys
from pathlib import Path

from .check import FILES, NOT_JUDGED, checks_of, judged_path
from .errors import BatchError, Interrupted, UsageError
from .run import RUNS, check_writable, command_line, shown
from .run_folders import VERDICT

NOTEBOOK = "judge"  # in the names of run folders
MODEL = "qwen3.5-397b-a17b"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "file",
        metavar="FILE",
        help="a .py file with @variant, a Solution JSON of flashinfer-bench, or a name: triton/vk",
    )
    add(
        "--baseline",
        default="triton/kv32",
        metavar="NAME",
        help="compared with, besides the best; default: triton/kv32",
    )
    add("--against", default="all", metavar="NAME,…", help="the others; default: all of ours and of peers")
    add("--model", default=MODEL, metavar="NAME", help=f"whose heads; default: {MODEL}")
    add("--tp", type=int, default=1, metavar="N", help="tensor-parallel GPUs that share the heads; default: 1")
    add("--batches", default="auto", metavar="B,…", help="default: 1 to 512, the powers of two")
    add("--workloads", metavar="LIST", help="heads and batches of flashinfer-bench, or of its JSONL file")
    add("--dtype", metavar="DTYPE", help="of the state when it is timed; default: the first that the kernel takes")
    add("--samples", type=int, default=50, metavar="N", help="of each time; default: 50")
    add("--only", metavar="CHECKS", help="comma-separated names of checks, as gdn-lab check prints them; default: all")
    add("--seed", type=int, default=0, help="of inputs, states and slots")
    add("--runs", type=Path, default=RUNS, metavar="FOLDER", help="where run folders go")


def run(arguments: argparse.Namespace) -> int:
    """Judge, print the verdict and where the page is.

    UsageError, one sentence, for what cannot be asked, BatchError for a folder that cannot be written.
    """
    from ..verdict.verdict import CORRECT

    _check_heads(arguments)
    settings, only, path = settings_of(arguments), checks_of(arguments.only), judged_path(arguments.file)
    check_writable(arguments.runs.absolute())
    status = 0
    for checked in checked_apart(path, arguments.seed, only):
        for each in settings:
            verdict = judged(checked, each, arguments)
            status = max(status, int(verdict.correctness != CORRECT))
    return status


def _check_heads(arguments: argparse.Namespace) -> None:
    """UsageError for heads and batches that are given beside the workloads, which have their own."""
    given = {"--model": arguments.model != MODEL, "--tp": arguments.tp != 1, "--batches": arguments.batches != "auto"}
    extra = [option for option, is_given in given.items() if is_given]
    if arguments.workloads and extra:
        raise UsageError(f"--workloads has heads and batches of its own; leave {' and '.join(extra)} out")


def checked_apart(path: str, seed: int, only: list[str] | None = None) -> list:
    """Check the kernels of a file, or that a name means, in a process of their own; return a Checked of each.

    path: what judged_path() returns. Prints a line for each check. only: names of checks, None: all. UsageError after
    the file's own traceback if it cannot be imported.
    """
    from ..judge import apart
    from ..judge.judging import Finding
    from ..verdict.verdict_run import Checked

    found: dict[str, Checked] = {}
    for message in apart.messages({"judged": [path], "kernels": [], "seed": seed, "only": only}):
        if "usage" in message:
            print(message["shown"], end="", file=sys.stderr)
            raise UsageError(message["usage"])
        if "variants" in message:
            found = {name: Checked(name, path if path.endswith(FILES) else "", []) for name in message["variants"]}
        elif "finding" in message:
            finding = Finding(**message["finding"])
            found[finding.variant].findings.append(finding)
            print(finding.line(), flush=True)
        elif "died" in message:
            if not message["variant"]:
                raise BatchError(f"nothing was judged: {message['died']}")
            how = f"{message['died']} in the check {message['during']}"
            found[message["variant"]] = found[message["variant"]]._replace(died=how)
    if any(each.died for each in found.values()):
        left = [name for name, each in found.items() if not each.findings and not each.died]
        found |= {name: found[name]._replace(died=NOT_JUDGED) for name in left}
    return list(found.values())


def settings_of(arguments: argparse.Namespace) -> list:
    """The Settings that the arguments ask for: one, or with --workloads one for each definition's heads."""
    from ..studies.decode_kernels.study import Parameters
    from ..studies.parameters import ParameterError
    from ..verdict.verdict_run import BATCHES, Settings

    words = {name: getattr(arguments, name) for name in ("model", "tp", "baseline", "samples", "seed")}
    words |= {"backends": arguments.against, "dtype": arguments.dtype or "bfloat16"}
    words |= {"batches": arguments.batches} if arguments.batches != "auto" else {"batches": ",".join(map(str, BATCHES))}
    try:
        p = Parameters.parse(words, "gdn-lab judge")
    except ParameterError as error:
        raise UsageError(str(error).replace("backends:", "against:")) from None
    asked = Settings(
        baseline=p.baseline,
        against=p.backends if p.backends == "all" else tuple(p.backends),
        shape=p.shape,
        batches=tuple(p.batches),
        dtype=p.dtype if arguments.dtype else None,
        samples=arguments.samples,
        seed=p.seed,
        model=p.model,
        tp=p.tp,
    )
    return of_workloads(asked, arguments.workloads) if arguments.workloads else [asked]


def of_workloads(asked, name: str) -> list:
    """The same Settings for each decode definition of a workload list: its heads and batches."""
    from dataclasses import replace

    from ..backends.definitions import workloads

    try:
        found = [work for work in workloads(name) if work.definition.phase == "decode"]
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not found:
        raise UsageError(f"workloads: {name} has none of decode, and only those are judged")
    groups = {}
    for work in found:
        groups.setdefault(work.definition, []).append(work.batch)
    return [
        replace(asked, shape=each.shape, batches=tuple(sorted(batches)), model=None, tp=None)
        for each, batches in groups.items()
    ]


def judged(checked, settings, arguments: argparse.Namespace):
    """Make one verdict in a folder of its own, print it, and return it."""
    from ..bench.results import Run
    from ..verdict import verdict as words
    from ..verdict import verdict_run

    parameters = {"kernel": checked.kernel, "baseline": settings.baseline, "heads": list(settings.shape.dims[:2])}
    parameters |= {"batches": list(settings.batches), "samples": settings.samples}
    command = command_line(arguments)
    verdict_run.register(checked)
    made = Run.create(NOTEBOOK, parameters, root=arguments.runs, command=command, seed=settings.seed)
    try:
        with made:
            found, timed = verdict_run.make(checked, settings, made)
            write(found, timed, settings, made)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; the rows until then are in {shown(made.folder)}") from None
    except (RuntimeError, ValueError, OSError) as error:
        raise BatchError(f"{str(error).rstrip('.')}; the rows until then are in {shown(made.folder)}") from None
    print(f"\n{words.text(found)}\n\nRead {shown(made.folder / VERDICT)}")
    return found


def write(found, timed, settings, made) -> None:
    """Write verdict.json, the figure and verdict.html into the run's folder."""
    from ..files import replacing
    from ..report.style import title_of
    from ..studies.decode_kernels import yours
    from ..verdict.verdict import headline
    from . import kept_answer, verdict_page

    with replacing(made.folder / "verdict.json") as partial:
        partial.write_text(json.dumps(found.as_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    drawn = None
    if found.speed:
        figure = yours.speed_up(timed, found.kernel, settings.baseline)
        drawn = made.save_figure(figure, "speed_up").with_suffix(".svg"), title_of(figure)
    verdict_page.write(made.folder / VERDICT, found, made.info, drawn)
    kept_answer.write(
        made.folder,
        sentences=[headline(found), *found.sentences],
        figure="speed_up" if drawn else None,
        alt=drawn[1] if drawn else "",
        source="measured here" if drawn else "checked here",
        device=found.device,
    )
