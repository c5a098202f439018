"""Copy a trace without anything private, so that it can be kept or shared.

A report of Nsight Systems also holds the environment variables, processes, host name, paths and command lines of the
machine that recorded it; a trace of Kineto holds operators, stacks and paths. The copy is a new file with only what the
readers read: columns of kernels, launches and ranges, and the strings that name a kept kernel or range. Those names
stay as they are.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from ..files import replacing
from . import kineto, nsight, nsight_file
from .nsight_file import NVTX, VERSION_KEYS


def scrub(path, out=None) -> Path:
    """Write the scrubbed copy of a trace: SQLite of a .sqlite or .nsys-rep, .json.gz of a .json; return its path.

    out: where to write, an existing copy is replaced; default: <name>.scrubbed.sqlite or .json.gz next to the trace. It
    appears only when it is complete. Errors are those of trace.read(); ValueError too if `out` is the trace itself,
    OSError if it cannot be written.
    """
    path = Path(path)
    is_json = path.name.endswith((".json", ".json.gz"))
    if out is None:
        ending = ".scrubbed.json.gz" if is_json else ".scrubbed.sqlite"
        stem = path.name.removesuffix(".gz").removesuffix(".json") if is_json else path.stem
        out = path.with_name(stem + ending)
    out = Path(out)
    if out.exists() and path.exists() and out.samefile(path):
        raise ValueError(f"{out} is the trace itself; name another file for the copy")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent} for the copy; make it first")
    if is_json:
        kineto.read(path)  # what cannot be read is refused before anything is written
        return kineto.copy(path, out)
    with nsight_file.exported(path) as file:
        nsight.read(file)  # what cannot be read is refused before anything is written
        with nsight_file.opened(file) as export:
            columns = export.columns
        try:
            with replacing(out) as partial:
                _write(partial, file, columns)
        except sqlite3.Error as error:
            raise OSError(f"cannot write {out}: {error}; free space or choose a folder you can write to") from error
    return out


def _write(out: Path, source: Path, columns: dict[str, tuple[str, ...]]) -> None:
    """Copy the columns and the rows that are kept from one SQLite file into a new one: numbers as whole numbers."""
    with closing(sqlite3.connect(f"file:{quote(str(out.absolute()))}", uri=True)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")  # a file that is not whole is thrown away
        connection.execute("ATTACH ? AS source", (nsight_file.uri(source),))
        for table, kept in columns.items():
            primary = " PRIMARY KEY" if table == "StringIds" else ""
            declared = ", ".join(f'"{name}"{" INTEGER" + primary if name == "id" else ""}' for name in kept)
            connection.execute(f"CREATE TABLE main.{table} ({declared})")
            if table == "META_DATA_EXPORT":
                _write_version(connection)
                continue
            selected = ", ".join(_value(table, name, columns) for name in kept)
            rows = f"SELECT {selected} FROM source.{table} {_condition(table, columns)} ORDER BY rowid"
            connection.execute(f"INSERT INTO main.{table} {rows}")
        connection.commit()
        connection.execute("DETACH source")
        connection.execute("VACUUM")


def _write_version(connection) -> None:
    """Write the schema's version, and nothing else that the table says."""
    if version := nsight_file.schema_version(connection, "source"):
        connection.execute("INSERT INTO main.META_DATA_EXPORT (name, value) VALUES (?, ?)", (VERSION_KEYS[0], version))


def _value(table: str, column: str, columns: dict[str, tuple[str, ...]]) -> str:
    """Return the expression of a value: of the type that the reader expects, and NULL where it does not look."""
    if (table, column) in nsight_file.TEXTS:
        return f'CAST("{column}" AS TEXT)'
    if (table, column) == (nsight_file.KERNEL, "shortName"):
        return "CASE WHEN demangledName >= 0 THEN NULL ELSE CAST(shortName AS INTEGER) END"
    if (table, column) == (NVTX, "textId") and "text" in columns[NVTX]:
        return "CASE WHEN COALESCE(text, '') = '' THEN CAST(textId AS INTEGER) END"
    return f'CAST("{column}" AS INTEGER)'


def _condition(table: str, columns: dict[str, tuple[str, ...]]) -> str:
    """Return the WHERE clause of the rows of a table that are kept."""
    if table == NVTX:
        return f"WHERE {nsight_file.used_events(columns, 'source')}"
    return f"WHERE id IN ({nsight_file.used_strings(columns, 'source')})" if table == "StringIds" else ""
