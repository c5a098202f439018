"""The process of one job: started in a folder of its own, watched without waiting, its rows read as they come."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..bench.processes import this_process
from .code import ROOT
from .job import ERROR, FOLDER, INTERRUPTED, OK, PYTHON, REFUSED, TIMEOUT, WRONG

BOOTSTRAP = str(Path(__file__).with_name("die_with_parent.py"))
GRACE_S = 45.0  # from SIGTERM to SIGKILL: `gdn-lab run` gives a notebook 30 s to stop
KILL_S = 5.0  # that kill() waits
LOG = "log.txt"
ROWS = "rows.jsonl"
KEPT = (
    "run.json",
    "answer.json",
    ".html",
    ".ipynb",
    ".log",
    LOG,
    "capture.sqlite",  # of a profiled step, with the reports of nsys stats
    "capture.json.gz",
    ".csv",
)  # ends of the files that are gathered beside the rows
MOST_BYTES = 16 << 20  # of one such file
READ_BYTES = 1 << 20  # of rows at once
USAGE_ERROR = 2  # exit status


class Task(NamedTuple):
    """What a host needs to run one attempt of a job. gpus: for CUDA_VISIBLE_DEVICES."""

    job: str
    attempt: int
    command: tuple[str, ...]
    gpus: tuple[str, ...]
    limit_s: float
    environment: dict[str, str] = {}


class JobProcess:
    """A running job. No method waits, except kill().

    environment: beyond this process's own and before the task's; a variable that is None is not set.
    """

    def __init__(self, task: Task, folder: Path, environment: dict[str, str | None] | None = None):
        self.task, self.folder, self.began = task, folder, time.monotonic()
        self.sent, self.rows, self.statuses, self.status, self.kill_at = 0, 0, set(), None, None
        self.run: Path | None = None  # where its rows are
        words = [word.replace(FOLDER, str(folder)).replace(PYTHON, sys.executable) for word in task.command]
        with open(folder / LOG, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", BOOTSTRAP, str(this_process()["pid"]), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(task, environment or {}),
                cwd=ROOT,
                process_group=0,
            )

    def new_rows(self) -> bytes:
        """Whole lines of rows.jsonl that were not returned before, about READ_BYTES at most; b"" if there are none.

        ValueError, a sentence, if one of them is no row.
        """
        self.run = self.run or self.run_folder()
        if self.run is None or (self.run / ROWS).stat().st_size == self.sent:
            return b""
        with open(self.run / ROWS, "rb") as file:
            file.seek(self.sent)
            found = file.read(READ_BYTES)
            while found and not found.endswith(b"\n") and (more := file.readline()):
                found += more
        found = found[: found.rfind(b"\n") + 1]
        lines = found.splitlines()
        self.statuses |= {_status(line) for line in lines}  # before they count as returned
        self.sent += len(found)
        self.rows += len(lines)
        return found

    def run_folder(self, file: str = ROWS) -> Path | None:
        """The job's folder, or the one run folder in it, whichever has `file`; None before there is any."""
        return next((place for place in (self.folder, *self._folders()) if (place / file).is_file()), None)

    def _notebook_folder(self) -> Path | None:
        """The one folder in the job's that holds a notebook; None without any, or with several."""
        found = [place for place in self._folders() if any(place.glob("*.ipynb"))]
        return found[0] if len(found) == 1 else None

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir() and not path.is_symlink()]

    def stop(self, status: str) -> None:
        """Ask the job to stop. status: what it then ends as."""
        if self.status is None:
            self.status, self.kill_at = status, time.monotonic() + GRACE_S
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the job at once; wait up to KILL_S for it, so that its GPU is free."""
        self._signal(signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(KILL_S)

    def runs(self) -> bool:
        """Whether the job still runs; one that has run too long is stopped."""
        if self.process.poll() is not None:
            self.seconds = time.monotonic() - self.began
            self._signal(signal.SIGKILL)  # what it may have left behind
            return False
        now = time.monotonic()
        if now - self.began > self.task.limit_s:
            self.stop(TIMEOUT)
        if self.kill_at and now > self.kill_at:
            self._signal(signal.SIGKILL)
        return True

    def how(self) -> dict:
        """Status, reason and seconds of a job that no longer runs and whose rows have been read."""
        code, seconds = self.process.returncode, self.seconds
        if self.status == TIMEOUT:
            reason = f"it took longer than the {self.task.limit_s:.0f} s that it was given"
            return {"status": TIMEOUT, "reason": reason, "seconds": seconds}
        status, reason = self.status, "it was stopped"
        if status is None:
            status, reason = judged(code, self.statuses, self.last_line())
        return {"status": status, "reason": reason, "seconds": seconds}

    def last_line(self) -> str:
        """What the job printed last, or the last line of gdn-lab's own: its sentence on what went wrong."""
        with suppress(OSError):
            lines = (self.folder / LOG).read_bytes()[-20_000:].decode(errors="replace").split("\n")
            lines = [line.strip() for line in lines if line.strip()]
            own = [line for line in lines if line.startswith("gdn-lab: ")]
            return (own or lines or [""])[-1].removeprefix("gdn-lab: ")[:2000]
        return ""

    def files(self) -> dict[str, bytes]:
        """The job's files to keep, by name."""
        found = {}
        run = self.run or self.run_folder("run.json") or self._notebook_folder()  # one may measure nothing
        for place in filter(None, dict.fromkeys((self.folder, run))):
            for path in sorted(place.iterdir()):
                kept = path.is_file() and path.name.endswith(KEPT) and path.name != "index.html"
                if kept and path.stat().st_size <= MOST_BYTES:
                    found[path.name] = path.read_bytes()
        return found

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def _environment(task: Task, more: dict[str, str | None]) -> dict[str, str]:
    """The environment of a job's process."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and not _of_ray(path)]
    found = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *paths]),
        "CUDA_VISIBLE_DEVICES": ",".join(task.gpus),
    }
    if task.gpus == ("cpu",):
        found.pop("CUDA_VISIBLE_DEVICES")
    return {name: value for name, value in (found | more | task.environment).items() if value is not None}


def _status(line: bytes) -> str:
    """The status of a row. ValueError, a sentence, if the line is no row."""
    try:
        return json.loads(line).get("status", OK)
    except (ValueError, AttributeError):
        shown = line[:60].decode(errors="replace")
        raise ValueError(f"a line of {ROWS} is no JSON object: {shown!r}") from None


def _of_ray(path: str) -> bool:
    """Whether a folder hides imports from Ray's processes alone."""
    return Path(path).name == "ray_imports"


def judged(code: int, statuses: set[str], last_line: str) -> tuple[str, str]:
    """(status, reason) of a job that ended by itself. statuses: of its rows. last_line: that it printed."""
    if code in (130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGKILL):
        name = signal.Signals(-code).name if code < 0 else "an interrupt"
        return INTERRUPTED, f"its process was ended by {name}"
    if code == USAGE_ERROR:
        return REFUSED, last_line
    if code:
        return ERROR, last_line or f"it ended with status {code} and printed nothing"
    if WRONG in statuses:
        return WRONG, "some of its results are not the reference's"
    if statuses == {REFUSED}:
        return REFUSED, "every point was refused; its rows say why"
    return OK, ""
