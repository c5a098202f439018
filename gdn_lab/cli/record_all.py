"""gdn-lab record without a study: everything that is kept of a GPU, in pieces that fit a time limit.

The pieces (record_pieces.py) are jobs of the same driver as `gdn-lab sweep`, on this machine's GPUs and without Ray.
Their rows are gathered in runs/records/<gpu>-<commit>/, so the same command goes on where the last one stopped, on
this machine or wherever that folder is brought. Once no piece is left that this machine can run, the record replaces
what data/measured/<gpu>/ and docs/site/<gpu>/ hold, and `gdn-lab report` rebuilds the pages.
"""

import argparse
import math
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

from ..bench.visible_gpus import visible_gpus
from ..cluster.code import code_id
from ..cluster.driver import Driver
from ..cluster.gather import write_about
from ..cluster.gpu_probe import GpuUnknown, gpu_type, hold_gpus, probe
from ..cluster.hosts import ThisHost
from ..cluster.job import Job
from ..studies.parameters import words_of
from .errors import BatchError, Interrupted, UsageError
from .record_install import install
from .record_pieces import of_whole_host, pieces
from .run import check_writable, say, shown
from .sweep_command import ProgressLine

RECORDS = "records"  # folder of runs/
AGAIN = "the same command goes on"


def run(arguments: argparse.Namespace) -> int:
    """Record what there is time for, and install it once nothing asked for is left. 1 if a piece failed or is left."""
    for option in ("gpus", "resume", "folder", "parameters"):
        if getattr(arguments, option) not in (None, []):
            raise UsageError(f"--{option} is of one study; name it, or leave the option out")
    deadline = time.monotonic() + 60 * minutes(arguments.minutes)
    gpus, commit = visible_gpus(), code_id()
    if not gpus:
        raise UsageError("a record is of a GPU, and there is none here; gdn-lab run shows what is recorded")
    if commit.endswith("-dirty"):
        raise UsageError("a record is of a commit, and this checkout has changes; commit them first")
    try:
        gpu = gpu_type(gpus)
    except GpuUnknown as error:
        raise BatchError(str(error)) from None
    folder = record_folder(arguments.runs.absolute(), gpu, commit, fresh=arguments.fresh)
    jobs, refused = pieces(gpu, commit)
    jobs = of_whole_host(jobs, len(gpus))
    if arguments.only:
        jobs, refused = chosen(jobs, words_of(arguments.only)), []
    driver = record(folder, gpu, gpus, jobs, deadline)
    for sentence in refused:
        say(sentence)
    return _end(driver, folder, gpu, len(gpus))


def minutes(word: str) -> float:
    """The number that --minutes names. UsageError unless it is finite and above 0."""
    try:
        found = float(word)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise UsageError(f"--minutes: expected a number above 0, got {word!r}")
    return found


def chosen(jobs: list[Job], names: list[str]) -> list[Job]:
    """The pieces of these names, ranked in their order. UsageError for a name that none has."""
    known = {job.study: job for job in jobs}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--only: there is no piece {unknown[0]!r} on this machine; there are {', '.join(known)}")
    return [replace(known[name], rank=rank) for rank, name in enumerate(names)]


def record_folder(runs: Path, gpu: str, commit: str, *, fresh: bool) -> Path:
    """runs/records/<gpu>-<commit>/, or with fresh a new one beside it; the newest such is gone on with."""
    root = runs / RECORDS
    check_writable(root)
    name = f"{gpu}-{commit[:10]}"
    earlier = sorted(root.glob(f"{name}*/sweep.json"), key=lambda path: path.stat().st_mtime)
    if earlier and not fresh:
        return earlier[-1].parent
    folder = _first_free(root, name)
    write_about(folder, {"requests": [], "commit": commit, "command": "gdn-lab record"})
    return folder


def _first_free(root: Path, name: str) -> Path:
    """Make <root>/<name>, or <name>-2, <name>-3, … where that is taken."""
    for number in count(1):
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue


def record(folder: Path, gpu: str, gpus: list[str], jobs: list[Job], deadline: float) -> Driver:
    """Run the pieces that end before `deadline`, a time of time.monotonic(), on these GPUs."""
    line = ProgressLine()
    hold_gpus()
    driver = Driver(
        folder,
        ThisHost(gpu, gpus, probe=probe),
        lambda kind: jobs,
        say=line.say,
        progress=line.show,
        may_begin=lambda job: job.gpus <= len(gpus) and time.monotonic() + job.seconds <= deadline,
    )
    say(f"Rows go to {shown(folder)}.")
    try:
        driver.run()
    except KeyboardInterrupt:
        raise Interrupted(f"the record was interrupted; what ended is kept in {shown(folder)}, and {AGAIN}") from None
    finally:
        line.end(driver)
    return driver


def _end(driver: Driver, folder: Path, gpu: str, count: int) -> int:
    left = driver.unfinished()
    wide = [job for job in left if job.gpus > count]
    if waiting := [job for job in left if job not in wide]:
        listed = ", ".join(f"{job.study} (about {job.seconds:.0f} s)" for job in waiting)
        say(f"No time was left for {listed}; {AGAIN}, with a larger --minutes where a piece needs it.")
        return 1
    written = install(folder, driver.jobs, driver.done, gpu)
    say("\n".join(shown(path) for path in written))
    if wide:
        say(f"Not recorded here: {', '.join(f'{job.study} needs {job.gpus} GPUs' for job in wide)}.")
    if failed := [driver.jobs[job].study for job, status in driver.done.items() if status not in ("ok", "wrong")]:
        raise BatchError(f"{', '.join(sorted(failed))} failed: what they printed is in {shown(folder)}/jobs/*/log.txt")
    return 0
