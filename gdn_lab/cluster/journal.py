"""The journal of a sweep: a line for each attempt that began or ended, on the disk before anything follows from it."""

import errno
import fcntl
import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path

from .job import FAILED

BEGAN, ENDED = "began", "ended"
KEYS = {BEGAN: {"job": str, "attempt": int}, ENDED: {"job": str, "attempt": int, "status": str, "final": bool}}
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # what file systems without locks say


def folder_error(sentence: str) -> OSError:
    """Make an OutputFolderError, whose message every command prints; its module takes seconds to import."""
    from ..bench.results import OutputFolderError

    return OutputFolderError(sentence)


class Journal:
    """journal.jsonl of a sweep's folder as an earlier driver left it, or as the one that runs has written it so far.

    write: open it for a driver, which has it alone until close(). OutputFolderError, one sentence, if another driver
    has it, if it cannot be written, or if a line is damaged.
    final: {job id: the line that ended it for good}. failures: {job id: lines of attempts that failed}, of jobs that
    are not final. attempts: {job id: attempts that began}.
    """

    def __init__(self, folder: Path, *, write: bool = False):
        self.path = Path(folder) / "journal.jsonl"
        self.final: dict[str, dict] = {}
        self.failures: dict[str, list[dict]] = defaultdict(list)
        self.attempts: dict[str, int] = defaultdict(int)
        self._file = self._opened() if write else None
        try:
            for line in self.lines():
                self._count(line)
        except BaseException:
            self.close()
            raise

    def lines(self) -> list[dict]:
        """Every whole line, in the order in which they were written."""
        if not self.path.exists():
            return []
        whole = self.path.read_bytes().split(b"\n")[:-1]
        return [self._read(number, line) for number, line in enumerate(whole, 1)]

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
        """Close a file that was opened to be written, with all lines on the disk; another driver may have it then."""
        if self._file is None:
            return
        with self._file:
            self.sync()
        self._file = None

    def _opened(self):
        """The file, locked: a lock goes with its process, however that ends."""
        try:
            with tempfile.NamedTemporaryFile(dir=self.path.parent):
                pass
            file = open(self.path, "ab")
        except OSError as error:
            raise folder_error(f"cannot write {self.path}: {error.strerror}; make its folder writable") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise folder_error(
                f"another sweep or record runs in {self.path.parent}; wait until it has ended, or begin a new one"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                file.close()
                raise
        self._cut_off_torn_line()
        return file

    def _read(self, number: int, text: bytes) -> dict:
        try:
            line = json.loads(text)
            good = all(isinstance(line[key], kind) for key, kind in KEYS[line["event"]].items())
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            shown = text[:60].decode(errors="replace")
            raise folder_error(f"{self.path}: line {number} is damaged: {shown!r}; restore it, or begin a new sweep")
        return line

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
