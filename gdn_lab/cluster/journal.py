"""The journal of a sweep: a line for each attempt that began or ended, on the disk before anything follows from it."""

import json
import os
from collections import defaultdict
from pathlib import Path

from .job import FAILED

BEGAN, ENDED = "began", "ended"


class Journal:
    """journal.jsonl of a sweep's folder. Opening it reads what an earlier driver left.

    final: {job id: the line that ended it for good}. failures: {job id: lines of attempts that failed}, of jobs that
    are not final. attempts: {job id: attempts that began}.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / "journal.jsonl"
        self.final: dict[str, dict] = {}
        self.failures: dict[str, list[dict]] = defaultdict(list)
        self.attempts: dict[str, int] = defaultdict(int)
        self._cut_off_torn_line()
        for line in self.lines():
            self._count(line)
        self._file = open(self.path, "ab")

    def lines(self) -> list[dict]:
        """Every line, in the order in which they were written."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def began(self, job: str, *, attempt: int, **more) -> None:
        """An attempt is about to begin."""
        self._write({"job": job, "event": BEGAN, "attempt": attempt, **more})

    def ended(self, job: str, *, attempt: int, status: str, final: bool, **more) -> None:
        """An attempt has ended and its rows are on the disk. final: the job is not tried again."""
        self._write({"job": job, "event": ENDED, "attempt": attempt, "status": status, "final": final, **more})

    def sync(self) -> None:
        """Wait until all lines are on the disk: once for what came together, since a disk takes milliseconds."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, with all lines on the disk."""
        self.sync()
        self._file.close()

    def _write(self, line: dict) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self._count(line)

    def _count(self, line: dict) -> None:
        job = line["job"]
        if line["event"] == BEGAN:
            self.attempts[job] = max(self.attempts[job], line["attempt"])
        elif line["final"]:
            self.final[job] = line
            self.failures.pop(job, None)
        elif line["status"] in FAILED:
            self.failures[job].append(line)

    def _cut_off_torn_line(self) -> None:
        """A driver that was killed while it wrote leaves half a line: what it announced has not happened."""
        if not self.path.exists():
            return
        whole = self.path.read_bytes().rfind(b"\n") + 1
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)
