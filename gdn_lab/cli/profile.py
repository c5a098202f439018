"""make profile: notebook 03 recorded by Nsight Systems, or by Kineto where that is not, then notebook 04 on the result.

    python -m gdn_lab.profile [CAPTURE] [-p NAME VALUE] [--runs FOLDER]

Of a recording by Nsight Systems the folder of notebook 03's run keeps

    capture.nsys-rep     as recorded: it also holds environment variables, processes, host name and paths
    capture.sqlite       its export, with nothing but what the analysis needs (profiling/scrub.py)
    *.csv                three reports of nsys stats, against which the reader was checked
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from .. import trace as profiling
from ..bench import results
from ..studies.decode_step.record import FILE, SQLITE
from ..trace import crosscheck as oracle
from ..trace import nsight
from ..trace.scrub import scrub
from . import run as batch
from .errors import exit_status

STEP, ANALYSIS = "03", "04"
# Kernels inside graphs are seen one by one; only what lies between cudaProfilerStart and Stop is recorded, and the
# program goes on after that.
FLAGS = (
    "--trace=cuda,nvtx", "--sample=none", "--cpuctxsw=none", "--cuda-graph-trace=node",
    "--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--kill=none", "--force-overwrite=true",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Records and analyses as the command line says; returns the exit status: 0, 1 failed, 2 wrongly asked, 130."""
    asked = _parser().parse_args(arguments)
    given, runs = dict(asked.parameters), asked.runs.absolute()

    def do():
        if asked.capture is None:
            record(given, runs)
        else:
            analyse(asked.capture, given, runs)

    return exit_status(do, (batch.BatchError, ValueError, OSError))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gdn_lab.profile", description="Where each microsecond of a decode step goes."
    )
    parser.add_argument("capture", nargs="?", help=".nsys-rep, .sqlite, .json or .json.gz; default: record a step here")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], dest="parameters", metavar=("NAME", "VALUE"),
        help="set a parameter of notebook 03 or 04; may be repeated",
    )  # fmt: skip
    parser.add_argument("--runs", type=Path, default=batch.RUNS, metavar="FOLDER", help="where run folders go")
    return parser


def analyse(capture: str, given: dict[str, str], runs: Path) -> None:
    """Executes notebook 04 on a capture. ValueError or OSError, one sentence, before that if it cannot be read."""
    (notebook,) = batch.find([ANALYSIS])
    path = Path(capture).expanduser()
    profiling.read(path)
    batch.run_notebooks([notebook], given | {"capture": _shown(path)}, runs)


def record(given: dict[str, str], runs: Path) -> None:
    """Executes notebook 03 under Nsight Systems or with Kineto, as it can be here, and notebook 04 on the result."""
    step, analysis = batch.find([STEP, ANALYSIS])
    words = _divided(given, step, analysis)
    batch.check_writable(runs)
    nsys = shutil.which("nsys")
    if why := _why_not_nsight(nsys):
        batch.say(why)
        before = _folders(runs)
        batch.run_notebooks([step], words[step], runs)
        folder = _newest(runs, before, step)
    else:
        folder = _under_nsight(nsys, step, words[step], runs)
    made = next((folder / name for name in (SQLITE, FILE) if (folder / name).is_file()), None)
    batch.run_notebooks([analysis], words[analysis] | ({"capture": _shown(made)} if made else {}), runs)


def _why_not_nsight(nsys: str | None) -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no GPU here, so nothing can be recorded: notebook 04 shows the newest capture there is."
    if nsys is None:
        return "There is no nsys on PATH, so Kineto records the step instead of Nsight Systems."
    return None


def _divided(given: dict[str, str], *notebooks: Path) -> dict[Path, dict[str, str]]:
    """{notebook: those of the words that it declares}. UsageError if none declares one."""
    declared = {path: set(batch.declared(path)) for path in notebooks}
    for name in given:
        if not any(name in of for of in declared.values()):
            known = ", ".join(sorted(set().union(*declared.values())))
            raise batch.UsageError(f"neither notebook has a parameter {name!r}; they have: {known}")
    return {path: {name: word for name, word in given.items() if name in of} for path, of in declared.items()}


def _shown(path: Path) -> str:
    """The path as it stands in run.json: from the repository where it lies in it."""
    path = path.absolute()
    return str(path.relative_to(batch.ROOT)) if path.is_relative_to(batch.ROOT) else str(path)


# ---- under Nsight Systems -------------------------------------------------------------------------------------------


def _under_nsight(nsys: str, step: Path, given: dict[str, str], runs: Path) -> Path:
    """Runs notebook 03 in a session; returns its folder, in which the capture then lies (see keep())."""
    before = _folders(runs)
    with tempfile.TemporaryDirectory(prefix=".profile-", dir=runs) as beside:
        report = Path(beside) / "capture.nsys-rep"
        words = [word for name, value in given.items() for word in ("-p", name, value)]
        program = [sys.executable, "-m", "gdn_lab", "run", str(step), *words, "--runs", str(runs)]
        batch.say(f"Nsight Systems records {step.stem}.")
        subprocess.run([nsys, "profile", *FLAGS, "--output", str(report), *program], cwd=batch.ROOT)
        folder = _newest(runs, before, step)
        info, _ = results.load(folder)
        if info["status"] != "complete":
            raise batch.BatchError(f"{step.stem} {info['status']} under Nsight Systems; see {batch.shown(folder)}")
        if not report.is_file():
            raise batch.BatchError(
                f"nsys left no report of {step.stem}: the notebook recorded nothing, or nsys failed as it says above; "
                f"the notebook is in {batch.shown(folder)}"
            )
        keep(nsys, report, folder)
    return folder


def keep(nsys: str, report: Path, folder: Path) -> None:
    """Puts a report, its scrubbed export and the CSVs of nsys stats into a folder, and says whether the reader agrees.

    ValueError or OSError, one sentence, if nsys cannot export or sum up the report, or if it cannot be read.
    """
    kept = folder / "capture.nsys-rep"
    shutil.move(report, kept)
    with nsight.exported(kept) as export:
        scrub(export, folder / SQLITE)
        _write_reports(nsys, export, folder)
    batch.say(agreement(folder))


def _write_reports(nsys: str, export: Path, folder: Path) -> None:
    """<report>.csv of each report that the reader is checked against."""
    prefix = export.with_name("stats")
    command = [nsys, "stats", "--report", ",".join(oracle.REPORTS), "--format", "csv", "--output", prefix, export]
    done = subprocess.run(command, capture_output=True, text=True)
    for report in oracle.REPORTS:
        made = prefix.with_name(f"{prefix.name}_{report}.csv")
        if not made.is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise ValueError(f"nsys stats wrote no {report}, it said: {said}")
        shutil.move(made, folder / made.name.removeprefix(f"{prefix.name}_"))


def agreement(folder: Path) -> str:
    """A sentence on whether the summaries of the stored capture are those of nsys stats beside it."""
    found = oracle.differences(profiling.read(folder / SQLITE), folder)
    if not found:
        return f"The reader's numbers equal those of nsys stats: {', '.join(oracle.REPORTS)}."
    return "The reader's numbers differ from those of nsys stats: " + "; ".join(found)


def _folders(runs: Path) -> set[Path]:
    return {path for path in runs.glob("*") if path.is_dir() and not path.is_symlink()}


def _newest(runs: Path, before: set[Path], notebook: Path) -> Path:
    made = sorted(path for path in _folders(runs) - before if f"-{notebook.stem}" in path.name)
    if not made:
        raise batch.BatchError(f"{notebook.stem} did not start under Nsight Systems; what it said stands above")
    return made[-1]


if __name__ == "__main__":
    sys.exit(main())
