"""The folder of a sweep: what was asked for, and for each job its rows and files.

    <folder>/sweep.json  journal.jsonl  jobs/<id>/{job.json, rows.jsonl, run.json, …}

Rows of an attempt that has not ended are in jobs/<id>/attempt-<n>.jsonl; rows.jsonl is of the attempt that was final.
"""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..files import replacing
from .job import Job
from .job_process import ROWS
from .journal import folder_error

ABOUT = "sweep.json"
ABOUT_KEYS = {"requests": list, "commit": str, "command": str}
JOB = "job.json"
JOB_KEYS = {"study": str, "parameters": dict, "gpu": str, "commit": str}
MENDED = "restore it, or begin a new sweep"


class Gathered:
    """Writes what the hosts send. No row is kept in memory."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def begin(self, job: Job, attempt: int) -> None:
        """Make room for an attempt: remove files that an earlier one kept.

        Rows of an attempt of the same number, of a driver that was killed, are removed too.
        """
        folder = self.folder / "jobs" / job.id
        folder.mkdir(parents=True, exist_ok=True)
        self._attempt(job.id, attempt).unlink(missing_ok=True)
        _remove_kept(folder)
        with replacing(folder / JOB) as partial:
            about = {"study": job.study, "parameters": job.parameters, "gpu": job.gpu, "commit": job.commit}
            partial.write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8")

    def rows(self, job: str, attempt: int, data: bytes) -> None:
        """Append whole lines to an attempt's rows."""
        with open(self._attempt(job, attempt), "ab") as file:
            file.write(data)

    def count(self, job: str, attempt: int) -> int:
        """Rows of an attempt that are here."""
        path = self._attempt(job, attempt)
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def end(self, job: str, attempt: int, files: dict[str, bytes], *, final: bool) -> None:
        """Keep an attempt's files, by name; if it was the last, its rows become the job's. All is on the disk then."""
        folder = self.folder / "jobs" / job
        _remove_kept(folder)
        for name, data in files.items():
            with replacing(folder / Path(name).name) as partial:
                partial.write_bytes(data)
        if not final:
            return
        path = self._attempt(job, attempt)
        path.touch()
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(path, folder / ROWS)
        for other in folder.glob("attempt-*.jsonl"):
            other.unlink()

    def _attempt(self, job: str, attempt: int) -> Path:
        return self.folder / "jobs" / job / f"attempt-{attempt}.jsonl"


def _remove_kept(folder: Path) -> None:
    """Remove what an attempt left, but for its rows: an attempt's files must not be mixed with another's."""
    for path in folder.iterdir():
        if path.is_file() and path.name != JOB and not path.match("attempt-*.jsonl"):
            path.unlink()


def write_about(folder: Path, about: dict) -> None:
    """Write sweep.json: what was asked for, by which command, of which commit."""
    with replacing(folder / ABOUT) as partial:
        partial.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_about(folder: Path) -> dict:
    """What sweep.json holds. FileNotFoundError or ValueError, a sentence, if it is not a sweep's folder."""
    path = folder / ABOUT
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a sweep's folder: it has no {ABOUT}; name one of runs/sweeps/")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); begin a new sweep") from error
    for key, kind in ABOUT_KEYS.items():
        found = about.get(key) if isinstance(about, dict) else None
        if not isinstance(found, kind):
            expected = "a list" if kind is list else "text"
            raise ValueError(f"{path} is no sweep's: {key}: expected {expected}, got {found!r}; begin a new sweep")
    return about


def described(folder: Path, job_id: str) -> dict:
    """study, parameters, gpu and commit of a job that was begun. OutputFolderError, one sentence, if damaged."""
    path = folder / "jobs" / job_id / JOB
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        good = all(isinstance(about[key], kind) for key, kind in JOB_KEYS.items())
    except OSError as error:
        raise folder_error(f"{path} cannot be read: {error.strerror}; {MENDED}") from error
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise folder_error(f"{path} is damaged: expected a JSON object with {', '.join(JOB_KEYS)}; {MENDED}")
    return about


def rows_of(folder: Path, job_id: str) -> Iterator[dict]:
    """The rows of a job that is final. OutputFolderError, one sentence, for one that is damaged."""
    path = folder / "jobs" / job_id / ROWS
    try:
        file = open(path, "rb")
    except OSError as error:
        raise folder_error(f"{path} cannot be read: {error.strerror}; {MENDED}") from error
    with file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise folder_error(f"{path}: line {number} is damaged; {MENDED}")
            yield row


def check_final(folder: Path, final: Iterable[str]) -> None:
    """OutputFolderError, one sentence, for the first job that is final and whose files are gone or damaged."""
    for job_id in final:
        described(folder, job_id)
        deque(rows_of(folder, job_id), maxlen=0)


def all_rows(folder: Path, final: dict[str, dict]) -> Iterator[dict]:
    """Every row of every job that is final, in the order of the jobs' ids, with the job's own fields in front.

    final: {job id: its last line of the journal}.
    """
    for job_id in sorted(final):
        about = described(folder, job_id)
        common = {"job": job_id, "job_status": final[job_id]["status"], "study": about["study"], "gpu": about["gpu"]}
        common |= {"commit": about["commit"]} | {f"asked_{name}": text for name, text in about["parameters"].items()}
        for row in rows_of(folder, job_id):
            yield common | row
