"""The agent of one host: starts jobs on its GPUs after a probe, and keeps what happens until the driver has it."""

import shutil
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from .job import ERROR, INTERRUPTED
from .job_process import GRACE_S, JobProcess, Task
from .scheduler import BUSY

TICK_S = 0.02  # between two looks at the processes
ROWS_S = 0.5  # between two looks at a job's rows
MOST_AT_ONCE = 4 << 20  # bytes of events that one poll returns, about


class Agent:
    """Runs jobs as processes. Everything that happens is an event with a number, kept until poll() is given it back.

    probe(gpu) -> None, or one sentence: why the GPU is not quiet. environment: of all jobs; None: not set.

    Events: {"kind": "rows", job, attempt, data} and {"kind": "ended", job, attempt, status, reason, seconds, rows,
    files}. A job that this host fails to start or to watch ends as an error, and the others go on.
    """

    def __init__(
        self, probe=lambda gpu: None, scratch: Path | None = None, environment: dict[str, str | None] | None = None
    ):
        self.probe, self.environment = probe, environment or {}
        self.scratch = Path(tempfile.mkdtemp(prefix="gdn-lab-sweep-", dir=scratch))
        self._tasks: deque[Task] = deque()
        self._running: list[JobProcess] = []
        self._events: deque[tuple[int, dict]] = deque()
        self._numbers, self._news, self._stopping = 0, threading.Condition(), False
        # One thread starts and watches all processes: a process ends with the thread that started it.
        self._thread = threading.Thread(target=self._watch, name="jobs", daemon=True)
        self._thread.start()

    def start(self, tasks: list[Task]) -> None:
        """Begin jobs; returns at once."""
        self._tasks.extend(tasks)

    def poll(self, seen: int, wait_s: float) -> list[tuple[int, dict]]:
        """Forget the events up to number `seen`; return those after it, waiting up to `wait_s` for the first."""
        with self._news:
            while self._events and self._events[0][0] <= seen:
                self._events.popleft()
            self._news.wait_for(lambda: self._events or self._stopping, wait_s)
            found, size = [], 0
            for number, event in self._events:
                found.append((number, event))
                size += len(event.get("data", b"")) + sum(map(len, event.get("files", {}).values()))
                if size > MOST_AT_ONCE:
                    break
            return found

    def stop(self) -> None:
        """Stop all jobs, which end as interrupted, and wait until they have ended."""
        self._stopping = True
        self._thread.join(GRACE_S + 5)
        shutil.rmtree(self.scratch, ignore_errors=True)

    # ---- the thread -----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        look_at_rows = 0.0
        while not (self._stopping and not self._running):
            while self._tasks and not self._stopping:
                self._begin(self._tasks.popleft())
            now = time.monotonic()
            rows_too = now >= look_at_rows
            look_at_rows = now + ROWS_S if rows_too else look_at_rows
            for job in list(self._running):
                try:
                    self._look(job, rows_too)
                except Exception as error:  # whatever it is, the other jobs need this thread
                    self._give_up(job, error)
            time.sleep(TICK_S)

    def _begin(self, task: Task) -> None:
        try:
            self._probe_and_start(task)
        except Exception as error:  # as in _watch()
            self._end(task, _failure("could not be started", error, 0.0), rows=0, files={})

    def _probe_and_start(self, task: Task) -> None:
        for gpu in task.gpus:
            if reason := self.probe(gpu):
                self._end(task, {"status": BUSY, "reason": reason, "seconds": 0.0}, rows=0, files={})
                return
        folder = self.scratch / f"{task.job}-{task.attempt}"
        folder.mkdir()
        self._running.append(JobProcess(task, folder, self.environment))

    def _look(self, job: JobProcess, rows_too: bool) -> None:
        if self._stopping:
            job.stop(INTERRUPTED)
        runs = job.runs()
        if runs and not rows_too:
            return
        while data := job.new_rows():
            self._add({"kind": "rows", "job": job.task.job, "attempt": job.task.attempt, "data": data})
        if not runs:
            self._over(job, job.how(), job.files())

    def _give_up(self, job: JobProcess, error: Exception) -> None:
        files = {}
        with suppress(Exception):  # of a host that has just failed
            job.kill()
            files = job.files()
        self._over(job, _failure("could not be watched", error, time.monotonic() - job.began), files)

    def _over(self, job: JobProcess, how: dict, files: dict[str, bytes]) -> None:
        self._running.remove(job)
        self._end(job.task, how, rows=job.rows, files=files)
        shutil.rmtree(job.folder, ignore_errors=True)

    def _end(self, task: Task, how: dict, **more) -> None:
        self._add({"kind": "ended", "job": task.job, "attempt": task.attempt} | how | more)

    def _add(self, event: dict) -> None:
        with self._news:
            self._numbers += 1
            self._events.append((self._numbers, event))
            self._news.notify_all()


def _failure(what: str, error: Exception, seconds: float) -> dict:
    """How a job ends that this host failed."""
    reason = f"it {what}: {type(error).__name__}: {' '.join(str(error).split())}"
    return {"status": ERROR, "reason": reason, "seconds": seconds}
