"""A copy of a capture that can be kept or shared: python -m gdn_lab.profiling.scrub CAPTURE [OUT].

A capture of Nsight Systems also holds the environment variables, processes, host name, paths and command lines of the
machine that made it, a trace of Kineto operators, stacks and paths. The copy is a new file with nothing in it but what
the reader reads: columns of kernels, launches and ranges, and the strings that name a kept kernel or range. Those names
themselves stay as they are.
"""

import argparse
import os
import sqlite3
import sys
from pathlib import Path
from urllib.parse import quote

from . import kineto, nsight
from .nsight import DOMAIN_CREATE, KERNEL, NVTX, STYLES, VERSION_KEYS

_RANGES = f"eventType IN ({', '.join(map(str, STYLES))})"
_NAMED_BY = {KERNEL: ("demangledName", "shortName"), NVTX: ("textId",)}  # columns that point into StringIds


def scrub(path, out=None) -> Path:
    """Writes the scrubbed copy of a capture: SQLite of a .sqlite or .nsys-rep, .json.gz of a trace; returns its path.

    out: where to, an existing copy is replaced; default <name>.scrubbed.sqlite or .json.gz beside the capture. It
    appears only when it is complete. Errors are those of profiling.read(); ValueError too if `out` is the capture
    itself, OSError if it cannot be written.
    """
    path = Path(path)
    is_trace = path.name.endswith((".json", ".json.gz"))
    if out is None:
        ending = ".scrubbed.json.gz" if is_trace else ".scrubbed.sqlite"
        stem = path.name.removesuffix(".gz").removesuffix(".json") if is_trace else path.stem
        out = path.with_name(stem + ending)
    out = Path(out)
    if out.exists() and path.exists() and out.samefile(path):
        raise ValueError(f"{out} is the capture itself; name another file for the copy")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent} for the copy; make it first")
    if is_trace:
        kineto.read(path)  # what cannot be read is refused before anything is written
        return kineto.copy(path, out)
    beside = out.with_name(f".{out.name}.part")
    beside.unlink(missing_ok=True)
    try:
        with nsight.exported(path) as file:
            nsight.read(file)  # what cannot be read is refused before anything is written
            with nsight.opened(file) as export:
                columns = export.columns
            _write(beside, file, columns)
        os.replace(beside, out)
    except sqlite3.Error as error:
        raise OSError(f"cannot write {out}: {error}; free space or choose a folder that you can write to") from error
    finally:
        beside.unlink(missing_ok=True)
    return out


def _write(beside: Path, source: Path, columns: dict[str, tuple[str, ...]]) -> None:
    connection = sqlite3.connect(f"file:{quote(str(beside.absolute()))}", uri=True)
    try:
        connection.execute("PRAGMA journal_mode = OFF")  # the file is renamed when whole, and thrown away otherwise
        connection.execute("ATTACH ? AS source", (nsight.uri(source),))
        for table, kept in columns.items():
            selected = ", ".join(f'"{name}"' for name in kept)
            primary = " PRIMARY KEY" if table == "StringIds" else ""
            declared = ", ".join(f'"{name}"{" INTEGER" + primary if name == "id" else ""}' for name in kept)
            connection.execute(f"CREATE TABLE main.{table} ({declared})")
            rows = f"SELECT {selected} FROM source.{table} {_condition(table, columns)} ORDER BY rowid"
            connection.execute(f"INSERT INTO main.{table} {rows}")
        connection.commit()
        connection.execute("DETACH source")
        connection.execute("VACUUM")
    finally:
        connection.close()


def _condition(table: str, columns: dict[str, tuple[str, ...]]) -> str:
    """Which rows of a table are kept."""
    events = _RANGES
    if "domainId" in columns.get(NVTX, ()):
        used = f"SELECT domainId FROM source.{NVTX} WHERE {_RANGES}"
        events = f"({_RANGES} OR eventType = {DOMAIN_CREATE} AND domainId IN ({used}))"
    if table == NVTX:
        return f"WHERE {events}"
    if table == "META_DATA_EXPORT":
        return f"WHERE name IN ({', '.join(repr(name) for name in VERSION_KEYS)})"
    if table != "StringIds":
        return ""
    used = [
        f"SELECT {name} FROM source.{user}" + (f" WHERE {events}" if user == NVTX else "")
        for user, names in _NAMED_BY.items()
        for name in names
        if name in columns.get(user, ())
    ]
    return f"WHERE id IN ({' UNION '.join(used)})" if used else "WHERE 0"


def main(arguments: list[str] | None = None) -> int:
    """Scrubs as the command line says and returns the exit status: 0, 1 failed, 2 wrongly asked."""
    asked = _parser().parse_args(arguments)
    if not asked.capture:
        print("gdn_lab: name the capture: make capture-scrub CAPTURE=file [OUT=file]", file=sys.stderr)
        return 2
    try:
        out = scrub(asked.capture, asked.out)
    except (ValueError, OSError) as error:
        print(f"gdn_lab: {error}", file=sys.stderr)
        return 1
    size, before = out.stat().st_size, Path(asked.capture).stat().st_size
    print(
        f"{out}: {size / 1e6:.2f} MB of {before / 1e6:.2f} MB. It names kernels and ranges as the program did: "
        "look through them before you share it."
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gdn_lab.profiling.scrub",
        usage="%(prog)s [-h] CAPTURE [OUT]",
        description="A copy of a capture that can be kept or shared.",
    )
    parser.add_argument("capture", nargs="?", metavar="CAPTURE", help=".nsys-rep, .sqlite, .json or .json.gz")
    parser.add_argument(
        "out", nargs="?", metavar="OUT", help="where to; default: <name>.scrubbed.sqlite or .json.gz beside the capture"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
