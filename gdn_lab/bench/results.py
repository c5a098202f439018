"""A run is a folder: run.json says what was measured, where and how; rows.jsonl has a row a line, written when made.

    runs/20261122T081500Z-02_decode_kernels/     run.json  rows.jsonl  figures
    runs/latest                                  symbolic link to the newest, where the file system has links

run.json's status is "running", "complete", "interrupted" or "failed"; load() says "died" of a run that is still
"running" although its process has gone. Every row has a status; ROW_FIELDS lists the fields that a row of each status
has at least.
"""

import json
import math
import os
import re
import time
import warnings
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ..backends import author_files
from ..files import replacing
from . import clocks
from .environment import environment, utc
from .processes import this_process
from .run_folder import count_rows, load, next_order
from .sources import kernel_hashes

__all__ = ["NULLABLE", "ROW_FIELDS", "OutputFolderError", "Run", "load", "settle"]

PADDING_INCHES = 0.1  # around a figure

_CASE = ("phase", "backend", "variant", "layout", "state_dtype", "batch", "tokens", "num_k_heads", "num_v_heads")
_TIMES = ("timer", "median_us", "p20_us", "p80_us", "count")
_RATES = ("bytes", "bytes_formula", "gb_per_s", "roof_gb_per_s", "share_of_roof")
ROW_FIELDS = {
    "ok": _CASE + _TIMES + _RATES + ("max_abs_error",),  # right, and timed
    "wrong": _CASE + ("max_abs_error",),  # further from the float64 reference than tolerated, and not timed
    "error": _CASE + _TIMES + _RATES + ("reason",),  # right, but its time cannot be
    "refused": ("phase", "backend", "variant", "reason"),  # cannot serve the call, or cannot be timed
    "fact": ("phase",),  # anything else that is worth a row
}
NULLABLE = {"max_abs_error"}  # null where the result is not finite


class OutputFolderError(OSError):
    """Results cannot be written; the message says where, why and what to do."""


class Run:
    """The folder of one run, made by Run.create(); a context manager that records how the run ended.

    folder: its absolute Path. rows: number of rows written. info: what run.json holds.
    """

    def __init__(self, folder: Path, info: dict):
        self.folder, self.info, self.rows = folder, info, 0
        self._began = time.monotonic()

    @classmethod
    def create(
        cls,
        notebook: str,
        parameters: dict,
        *,
        root="runs",
        folder=None,
        command: str | None = None,
        seed: int | None = None,
    ) -> "Run":
        """Make <root>/<UTC time>-<notebook>/, write its run.json and link <root>/latest to it.

        notebook: name of what runs, such as "02_decode_kernels". parameters: its parameters, as JSON can hold them.
        folder: an existing folder without results to use instead; `latest` is then made in its parent.
        command, seed: recorded. Warns where `latest` cannot be made. Raises OutputFolderError if the folder cannot be
        written, ValueError for a bad name or for parameters that JSON cannot hold.
        """
        if not re.fullmatch(r"[\w.-]+", notebook):
            raise ValueError(f"notebook: expected a plain name of letters, digits, '_', '-', '.', got {notebook!r}")
        info = {"notebook": notebook, "status": "running", "parameters": parameters, "command": command, "seed": seed}
        infinite = [f"{name} {value}" for name, value in parameters.items() if _infinite(value)]
        if infinite:
            raise ValueError(f"parameters: expected finite numbers, got {', '.join(infinite)}")
        _json(parameters, "parameters")
        info |= {"start_utc": utc(), "process": this_process()}
        info |= {"environment": environment(), "kernels": kernel_hashes(), "clocks_before": clocks.clocks()}
        info |= {"kernel_files": files} if (files := author_files.hashes()) else {}
        root, folder = Path(root).absolute(), None if folder is None else Path(folder).absolute()
        with _writing(folder or root):
            folder = new_folder(root, notebook) if folder is None else _given_folder(folder)
            run = cls(folder, info | {"order": next_order(folder.parent)})
            run._write_info()
            run._point_latest()
        return run

    def append(self, row: dict) -> None:
        """Write one row to rows.jsonl; when this returns it is whole and on the disk.

        row: {field: str, number, bool, None, list or dict}; its `status`, by default "ok", is a key of ROW_FIELDS.
        Raises ValueError and writes nothing if a field of ROW_FIELDS is missing or null, or a number is not finite;
        OutputFolderError if the row cannot be written. Earlier rows stay as they are.
        """
        row = {"status": "ok"} | row
        _check_row(row)
        line = (_json(row, "row") + "\n").encode()
        with _writing(self.folder):
            _append_line(self.folder / "rows.jsonl", line)
        self.rows += 1

    def finish(self, status: str | None = None) -> None:
        """Write status, end time and clocks to run.json.

        status: "complete", "interrupted" or "failed". None is "complete", unless an earlier call set another status:
        a run that was interrupted stays so, even if it went on.
        """
        if status not in (None, "complete", "interrupted", "failed"):
            raise ValueError(f"status: expected complete, interrupted or failed, got {status!r}")
        if status is None:
            status = self.info["status"] if self.info["status"] in ("interrupted", "failed") else "complete"
        self.info |= {"status": status, "end_utc": utc(), "clocks_during": clocks.summary(self._began)}
        # Counted in the file: an interrupt may have come between writing a row and counting it.
        self.rows = count_rows(self.folder)
        self.info |= {"clocks_after": clocks.clocks(), "rows": self.rows}
        with _writing(self.folder):
            self._write_info()

    def save_figure(self, figure, name: str) -> Path:
        """Write a matplotlib figure as <name>.png and <name>.svg into the folder, and return the PNG's path."""
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"name: expected a plain name without a suffix, got {name!r}")
        figure.draw_without_rendering()  # lays it out, which takes longer than drawing: once for both files
        layout, box = figure.get_layout_engine(), figure.get_tightbbox().padded(PADDING_INCHES)
        figure.set_layout_engine("none")
        with _writing(self.folder):
            for suffix, options in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": 150})):
                path = self.folder / f"{name}{suffix}"
                with replacing(path) as partial:
                    figure.savefig(partial, format=suffix[1:], bbox_inches=box, **options)
        figure.set_layout_engine(layout)
        return path

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        status = None if kind is None else "failed" if issubclass(kind, Exception) else "interrupted"
        try:
            self.finish(status)
        except KeyboardInterrupt:  # while the end was being recorded
            self.finish(status or "interrupted")
            raise

    def _write_info(self) -> None:
        _write_info(self.folder, self.info)

    def _point_latest(self) -> None:
        latest = self.folder.parent / "latest"
        try:
            if latest.exists() and not latest.is_symlink():
                raise FileExistsError(None, "there is a file or folder of that name")
            with replacing(latest) as partial:
                partial.symlink_to(self.folder.name, target_is_directory=True)
        except OSError as error:
            reason = error.strerror or str(error)
            warnings.warn(f"{latest} cannot be linked to this run ({reason}); the run goes on without it", stacklevel=3)


def settle(folder, status: str | None) -> None:
    """Complete the run.json of a run whose process has ended: status, end and number of rows.

    status: "interrupted" or "failed", unless the run says one of these already; None: "complete" if it says "running".
    Nothing where there is no run.json or its status stays as it is.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        return
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if info["status"] not in (("running", "complete") if status else ("running",)):
        return
    info |= {"status": status or "complete", "end_utc": info.get("end_utc") or utc(), "rows": count_rows(folder)}
    with _writing(folder):
        _write_info(folder, info)


def _write_info(folder: Path, info: dict) -> None:
    text = _json(info, "run.json", indent=2) + "\n"
    with replacing(folder / "run.json") as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _writing(folder):
    """Turn any failure to write into an OutputFolderError about `folder`."""
    try:
        yield
    except OutputFolderError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputFolderError(
            f"cannot write results to {folder}: {reason}; free space or choose a folder that you can write to"
        ) from error


def new_folder(root: Path, notebook: str) -> Path:
    """Make and return <root>/<UTC time>-<notebook>/, with a number after it if that is there already."""
    root.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{notebook}"
    for number in range(1, 1000):
        folder = root / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise OutputFolderError(f"cannot write results to {root}: it has a thousand runs of this second; use another root")


def _given_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise OutputFolderError(f"cannot write results to {folder}: there is no such folder; make it first")
    taken = [name for name in ("run.json", "rows.jsonl") if (folder / name).exists()]
    if taken:
        raise OutputFolderError(
            f"cannot write results to {folder}: it holds {' and '.join(taken)} of another run; give an empty folder"
        )
    return folder


def _append_line(path: Path, line: bytes) -> None:
    """Append the whole line or nothing. The file is closed each time, so that no line is lost if the process dies."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        before, written = os.fstat(descriptor).st_size, 0
        try:
            while written < len(line):
                written += os.write(descriptor, line[written:])
        except BaseException:
            if os.fstat(descriptor).st_size < before + len(line):
                os.ftruncate(descriptor, before)
            raise
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_row(row: dict) -> None:
    status = row["status"]
    if status not in ROW_FIELDS:
        raise ValueError(f"row: status {status!r} is unknown; expected one of {', '.join(ROW_FIELDS)}")
    absent = [name for name in ROW_FIELDS[status] if name not in row]
    if absent:
        raise ValueError(f"row: a row of status {status!r} needs {', '.join(absent)}, which this one lacks")
    null = [name for name in ROW_FIELDS[status] if row[name] is None and name not in NULLABLE]
    if null:
        raise ValueError(f"row: expected a value for {', '.join(null)}, got null")
    infinite = [name for name, value in row.items() if _infinite(value)]
    if infinite:
        raise ValueError(f"row: expected finite numbers, got {', '.join(f'{name} {row[name]}' for name in infinite)}")


def _infinite(value) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _json(value, what: str, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: expected what JSON can hold, got something else ({error})") from error
