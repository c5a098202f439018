"""What a finished record leaves: rows in data/measured/<gpu>/, pages in docs/site/<gpu>/, a line of history."""

import json
import shutil
from pathlib import Path

from ..bench.environment import utc
from ..bench.run_folder import load
from ..cluster.gather import ROWS
from ..cluster.job import Job
from ..cluster.journal import Journal
from ..files import replacing
from ..report import history, recorded_checks
from ..studies import studies
from .errors import BatchError
from .record_pieces import CALLS, SANITIZE, SHELL, TESTS, TRACE
from .run import ROOT
from .site import write_site

RIGHT = ("ok", "wrong")  # a run with a wrong variant says so in its rows
LAST_LINES = 3  # of the tests' log that are kept: how many passed


def install(folder: Path, jobs: dict[str, Job], done: dict[str, str], gpu: str, root: Path = ROOT) -> list[Path]:
    """Replace what is recorded of a GPU by the pieces of `folder` that are done; return what was written.

    Pieces that failed, or that need more GPUs, leave what is recorded as it is.
    """
    measured, written, runs = root / "data" / "measured" / gpu, [], {}
    recorded = {name for study in studies() for name in study.records}
    finished = {job.study: folder / "jobs" / job_id for job_id, job in jobs.items() if done.get(job_id) in RIGHT}
    commits = {job.study: job.commit for job in jobs.values()}
    if TRACE in finished and not any(finished[TRACE].glob("capture.*")):
        raise BatchError(f"{finished[TRACE]} has no trace: expected capture.sqlite or capture.json.gz beside its rows")
    for name, place in finished.items():
        if name == CALLS:
            written.append(_run(place, measured / name))
        elif name == TRACE:
            written.append(_run(place, measured / name, also=("capture.*", "*.csv")))
        elif name in recorded:
            written.append(_run(place, measured / name))
            runs[name] = history.of_run(*load(measured / name))
        elif name == SANITIZE:
            written += [_copy(path, measured / SANITIZE / path.name) for path in sorted(place.glob("*-*.log"))]
        elif name in TESTS:
            head = recorded_checks.header(gpu, commits[name])
            written.append(_tail(place / "log.txt", measured / recorded_checks.TESTS / f"{name}.log", head))
    line = {"utc": utc(), "runs": runs, "seconds": _seconds(folder, jobs)}
    if finished and not _known(line, history.read(root / "data", gpu)):
        history.append(root / "data", gpu, line)
        written.append(measured / history.FILE)
    books = {name: place for name, place in finished.items() if name not in SHELL}
    return written + write_site(root / "docs" / "site", gpu, books, measured.parent) + _report(root)


def _run(place: Path, target: Path, also: tuple[str, ...] = ()) -> Path:
    """Copy a run's rows and run.json, and files of the patterns `also`; run.json last, and each whole."""
    target.mkdir(parents=True, exist_ok=True)
    names = [path.name for pattern in also for path in sorted(place.glob(pattern))]
    for name in (*names, ROWS, "run.json"):
        _copy(place / name, target / name)
    return target


def _copy(path: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        shutil.copyfile(path, partial)
    return target


def _tail(log: Path, target: Path, head: str) -> Path:
    """A line that says where and of which commit, then the last lines of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        partial.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return target


def _seconds(folder: Path, jobs: dict[str, Job]) -> dict[str, float]:
    """{piece: seconds that it took}: its longest attempt, since a second one finds its kernels compiled."""
    journal, found = Journal(folder), {}
    journal.close()
    for line in journal.lines():
        if line["job"] in jobs and line["job"] in journal.final and "seconds" in line:
            study = jobs[line["job"]].study
            found[study] = max(line["seconds"], found.get(study, 0.0))
    return found


def _known(line: dict, lines: list[dict]) -> bool:
    """Whether the newest line holds these very runs and seconds: a record that is installed again adds none."""
    newest = lines[-1] if lines else {}
    same = json.loads(json.dumps(line))
    return bool(newest) and all(same[part].items() <= newest.get(part, {}).items() for part in ("runs", "seconds"))


def _report(root: Path) -> list[Path]:
    from .report import report

    return report(root)
