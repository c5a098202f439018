"""gdn-lab profile: record a decode step (notebook 03) and open the trace in notebook 04, or open a given trace.

Nsight Systems records where there is an nsys, otherwise Kineto. With Nsight Systems, the folder of notebook 03's run
keeps

    capture.nsys-rep     the report as recorded: it also holds environment variables, processes, host name and paths
    capture.sqlite       its export with only what the analysis needs (trace/scrubber.py)
    *.csv                three reports of nsys stats, with which the reader is compared
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import run as batch

STEP_NOTEBOOK, TRACE_NOTEBOOK = "03", "04"
FAILURES = (ValueError, OSError)
FLAGS = (
    "--trace=cuda,nvtx",
    "--sample=none",
    "--cpuctxsw=none",
    "--cuda-graph-trace=node",  # the kernels of a graph one by one
    "--capture-range=cudaProfilerApi",  # only what runs between cudaProfilerStart and cudaProfilerStop
    "--capture-range-end=stop",
    "--kill=none",  # the program goes on after that
    "--force-overwrite=true",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    what = "a .nsys-rep, .sqlite, .json or .json.gz to open; default: record a step here"
    parser.add_argument("trace", nargs="?", metavar="TRACE", help=what)
    batch.add_run_options(parser, "set a parameter of notebook 03 or 04; may be repeated")


def run(arguments: argparse.Namespace) -> None:
    """Record and analyse as the command line says."""
    words, runs = batch.given_words(arguments.parameters), arguments.runs.absolute()
    if arguments.trace is None:
        record(words, runs)
    else:
        analyse(arguments.trace, words, runs)


def analyse(trace: str, words: dict[str, str], runs: Path) -> None:
    """Execute notebook 04 on a trace. ValueError or OSError, one sentence, before that if it cannot be read."""
    from ..trace import read

    (notebook,) = batch.find([TRACE_NOTEBOOK])
    path = Path(trace).expanduser()
    batch.values(notebook, words)  # a wrong word is a usage error, before a large trace is read
    read(path)
    batch.run_notebooks([notebook], words | {"capture": _recorded_path(path)}, runs)


def record(words: dict[str, str], runs: Path) -> None:
    """Execute notebook 03 under Nsight Systems, or with Kineto where that is not, and notebook 04 on the result."""
    from ..studies.decode_step.record import KINETO_FILE, NSIGHT_FILE

    step, analysis = batch.find([STEP_NOTEBOOK, TRACE_NOTEBOOK])
    own_words = batch.divided(words, [step, analysis])
    for notebook in (step, analysis):
        batch.values(notebook, own_words[notebook])
    batch.check_writable(runs)
    nsys = shutil.which("nsys")
    if not _gpu_is_here():
        batch.say("torch finds no GPU here, so nothing can be recorded: notebook 04 shows the newest trace there is.")
        return batch.run_notebooks([analysis], own_words[analysis], runs)
    if nsys is None:
        batch.say("There is no nsys on PATH, so Kineto records the step instead of Nsight Systems.")
        before = _folders(runs)
        batch.run_notebooks([step], own_words[step], runs)
        folder = _newest(runs, before, step)
    else:
        folder = _under_nsight(nsys, step, own_words[step], runs)
    made = next((folder / name for name in (NSIGHT_FILE, KINETO_FILE) if (folder / name).is_file()), None)
    # Of a run outside the repository the notebook finds it too, as the newest; run.json gets no path of this machine.
    given = {"capture": _recorded_path(made)} if made and made.is_relative_to(batch.ROOT) else {}
    batch.run_notebooks([analysis], own_words[analysis] | given, runs)


def _gpu_is_here() -> bool:
    import torch

    return torch.cuda.is_available()


def _recorded_path(path: Path) -> str:
    """Return the path for run.json: relative to the repository if it lies inside."""
    path = path.absolute()
    return str(path.relative_to(batch.ROOT)) if path.is_relative_to(batch.ROOT) else str(path)


# ---- under Nsight Systems -------------------------------------------------------------------------------------------


def _under_nsight(nsys: str, step: Path, words: dict[str, str], runs: Path) -> Path:
    """Run notebook 03 in a session of Nsight Systems; return its folder, which then has the trace (see keep())."""
    from ..bench import results

    before = _folders(runs)
    with tempfile.TemporaryDirectory(prefix=".profile-", dir=runs) as folder_of_report:
        report = Path(folder_of_report) / "capture.nsys-rep"
        options = [word for name, value in words.items() for word in ("-p", name, value)]
        program = [sys.executable, "-m", "gdn_lab", "run", str(step), *options, "--runs", str(runs)]
        batch.say(f"Nsight Systems records {step.stem}.")
        subprocess.run([nsys, "profile", *FLAGS, "--output", str(report), *program], cwd=batch.ROOT)
        folder = _newest(runs, before, step)
        info, _ = results.load(folder)
        if info["status"] != "complete":
            raise batch.BatchError(f"{step.stem} {info['status']} under Nsight Systems; see {batch.shown(folder)}")
        if not report.is_file():
            raise batch.BatchError(
                f"nsys left no report of {step.stem}: the notebook recorded nothing, or nsys failed with the message "
                f"above; the notebook is in {batch.shown(folder)}"
            )
        keep(nsys, report, folder)
    return folder


def keep(nsys: str, report: Path, folder: Path) -> None:
    """Put a report, its scrubbed export and the CSVs of nsys stats into a folder; print whether the reader agrees.

    ValueError or OSError, one sentence, if nsys cannot export or summarise the report, or if it cannot be read.
    """
    from ..studies.decode_step.record import NSIGHT_FILE
    from ..trace import nsight_file
    from ..trace.scrubber import scrub

    kept = folder / "capture.nsys-rep"
    shutil.move(report, kept)
    with nsight_file.exported(kept) as export:
        scrub(export, folder / NSIGHT_FILE)
        _write_reports(nsys, export, folder)
    batch.say(agreement(folder / NSIGHT_FILE))


def _write_reports(nsys: str, export: Path, folder: Path) -> None:
    """Write <report>.csv of each report with which the reader is compared."""
    from ..trace.crosscheck import REPORTS

    prefix = export.with_name("stats")
    command = [nsys, "stats", "--report", ",".join(REPORTS), "--format", "csv", "--output", prefix, export]
    done = subprocess.run(command, capture_output=True, text=True)
    for report in REPORTS:
        made = prefix.with_name(f"{prefix.name}_{report}.csv")
        if not made.is_file():
            message = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise ValueError(f"nsys stats wrote no {report}, it said: {message}")
        shutil.move(made, folder / f"{report}.csv")


def agreement(trace: Path) -> str:
    """Say whether the summaries of a stored trace equal those of nsys stats next to it."""
    from ..trace import read
    from ..trace.crosscheck import REPORTS, differences

    found = differences(read(trace), trace.parent)
    if not found:
        return f"The reader's numbers equal those of nsys stats: {', '.join(REPORTS)}."
    return "The reader's numbers differ from those of nsys stats: " + "; ".join(found)


def _folders(runs: Path) -> set[Path]:
    return {path for path in runs.glob("*") if path.is_dir() and not path.is_symlink()}


def _newest(runs: Path, before: set[Path], notebook: Path) -> Path:
    from ..bench.run_folder import newest_first

    made = [path for path in newest_first(runs) if path not in before and f"-{notebook.stem}" in path.name]
    if not made:
        raise batch.BatchError(f"{notebook.stem} did not start under Nsight Systems; its message is above")
    return made[0]
