"""Open what Nsight Systems recorded: the SQLite export of any report, or a .nsys-rep, which nsys exports first.

What this workbook knows of the export's schema is in this file alone: its tables and columns, which of their rows and
strings are read, and how a file is told that cannot be read. Nothing is written.
"""

import re
import shlex
import shutil
import sqlite3
import subprocess
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..names import LONGEST, readable
from . import limits
from .limits import TraceError

# What is read, by table: columns that must be there, and columns that may be. A scrubbed trace holds these only.
KERNEL, RUNTIME, NVTX = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"
MEMCPY, MEMSET, GRAPH = (f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("MEMCPY", "MEMSET", "GRAPH_TRACE"))
NODES = "CUDA_GRAPH_NODE_EVENTS"
WORK = ("start", "end", "deviceId", "streamId", "correlationId", "globalPid")
TABLES = {
    "StringIds": (("id", "value"), ()),
    KERNEL: ((*WORK, "demangledName"), ("shortName", "graphNodeId")),
    MEMCPY: ((*WORK, "copyKind"), ("graphNodeId",)),
    MEMSET: (WORK, ("graphNodeId",)),
    GRAPH: (("start", "end", "deviceId", "correlationId", "globalPid"), ("streamId",)),
    RUNTIME: (("start", "end", "globalTid", "correlationId"), ()),
    NODES: ((), ("start", "end", "globalTid", "graphNodeId", "originalGraphNodeId")),
    NVTX: (("start", "end", "eventType", "globalTid"), ("text", "textId", "domainId", "endGlobalTid")),
    "META_DATA_EXPORT": (("name", "value"), ()),
    "TARGET_INFO_GPU": (("name",), ()),
}
TEXTS = {("StringIds", "value"), (NVTX, "text"), ("TARGET_INFO_GPU", "name")}  # all other columns are whole numbers
REPORT = b"NVIDIA Tegra Profiler Report"  # how a .nsys-rep begins; the version that wrote it follows
SCHEMA_MAJOR = 3  # the newest export schema whose meaning this reader knows
VERSION_KEYS = ("EXPORT_SCHEMA_VERSION", "EXPORT_SCHEMA_VERSION_MAJOR")
STYLES = {59: "PushPop", 60: "StartEnd", 70: "PushPop", 71: "StartEnd"}  # eventType; 70 and 71 are NVTX's legacy form
DOMAIN_CREATE = 75
IS_RANGE = f"eventType IN ({', '.join(map(str, STYLES))})"


@dataclass(frozen=True)
class Export:
    """An open SQLite export. columns: {table: its columns among those of TABLES}, without tables that are absent."""

    path: Path
    connection: sqlite3.Connection
    columns: dict[str, tuple[str, ...]]


@contextmanager
def exported(path):
    """Yield the path of the SQLite export: `path` itself, or a temporary export of a .nsys-rep."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no trace {readable(path)}; give a .sqlite or .nsys-rep file of Nsight Systems"
        )
    if path.suffix != ".nsys-rep":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "export.sqlite"
        with limits.one_sentence(path):
            _export(path, target)
        yield target


def _export(report: Path, target: Path) -> None:
    nsys = shutil.which("nsys")
    if nsys is None:
        if not _first_bytes(report, len(REPORT)).startswith(REPORT):
            raise TraceError(
                f"is no report of Nsight Systems: expected a file that begins with {REPORT.decode()!r}, got another "
                "format; give the file that nsys profile wrote"
            )
        raise TraceError(
            "must be exported first and there is no nsys here; "
            f"where there is one, run: nsys export --type sqlite {shlex.quote(readable(report.name))}"
        )
    command = [nsys, "export", "--type", "sqlite", "--force-overwrite", "true", "--output", target, report.absolute()]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode or not target.is_file():
        message = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise TraceError(
            f"could not be exported; nsys gave as reason: {readable(message)}; try a newer nsys, or copy the file again"
        )


@contextmanager
def opened(path, called=None):
    """Yield the Export at `path`; neither it nor its folder is written to. called: what to call it if not `path`.

    ValueError, one sentence, for whatever goes wrong until the block ends, as limits.one_sentence() has it.
    """
    path = Path(path)
    with limits.one_sentence(called or path):
        _check_file(path)
        with closing(sqlite3.connect(uri(path), uri=True)) as connection:
            connection.text_factory = lambda text: text.decode("utf-8", "replace")
            export = Export(path, connection, _columns(connection))
            _check_size(export)
            yield export


def uri(path: Path) -> str:
    """Return SQLite's address of a file that nobody writes to."""
    return f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"


def rows(export: Export, table: str, columns, tail: str = ""):
    """Return an iterator over these columns: NULL where the export lacks a column, empty where it lacks the table."""
    if table not in export.columns:
        return iter(())
    selected = ", ".join(_selected(table, name) if name in export.columns[table] else "NULL" for name in columns)
    return export.connection.execute(f"SELECT {selected} FROM {table} {tail}")


def _selected(table: str, column: str) -> str:
    """Return the expression of a column; of texts no more than names.readable() keeps."""
    return f'substr(CAST("{column}" AS TEXT), 1, {LONGEST + 1})' if (table, column) in TEXTS else f'"{column}"'


def _check_file(path: Path) -> None:
    """Refuse what cannot be a whole SQLite file. Since SQLite 3.7 the header gives the size in pages."""
    head = _first_bytes(path, 100)
    if not head:
        raise TraceError("is empty; copy or export it again")
    if not head.startswith(b"SQLite format 3\0"[: len(head)]):
        raise TraceError(
            "is not a trace: expected a .nsys-rep or the SQLite file of nsys export --type sqlite, got another format"
        )
    page = int.from_bytes(head[16:18], "big")
    expected = (65536 if page == 1 else page) * int.from_bytes(head[28:32], "big")
    if len(head) < 100 or (head[24:28] == head[92:96] and path.stat().st_size < expected):
        raise TraceError(
            f"is cut short: expected {max(expected, 100):,} bytes, got {path.stat().st_size:,}; copy or export it again"
        )
    for ending in ("-wal", "-journal"):
        log = path.with_name(path.name + ending)
        if log.is_file() and _first_bytes(log, 8).strip(b"\0"):
            raise TraceError(
                f"is not finished: {readable(log.name)} next to it holds changes that are not in it yet; close the "
                "program that writes it, or copy them in: sqlite3 FILE 'PRAGMA wal_checkpoint(TRUNCATE)'"
            )


def _first_bytes(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(count)


def _columns(connection) -> dict[str, tuple[str, ...]]:
    """Return {table: those of its columns in TABLES that are there}; TraceError if this is no export or a newer one."""
    tables = {
        name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    }
    if "StringIds" not in tables or not tables & (TABLES.keys() - {"StringIds"}):
        raise TraceError("is a SQLite file but not a trace: it has none of the tables of nsys export --type sqlite")
    columns, version = {}, ""
    for table, (needed, optional) in TABLES.items():
        if table in tables:
            there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            columns[table] = tuple(name for name in (*needed, *optional) if name in there)
    if {"name", "value"} <= set(columns.get("META_DATA_EXPORT", ())):
        version = _check_version(connection)
    for table, there in columns.items():
        absent = [name for name in TABLES[table][0] if name not in there]
        if absent:
            raise TraceError(
                f"cannot be read: its table {table} lacks {', '.join(absent)}{version}, so its schema is one that this "
                f"reader does not know (it knows up to {SCHEMA_MAJOR}); export the report with another release of nsys"
            )
    return columns


def _check_version(connection) -> str:
    """Return " (schema x.y)" for messages. TraceError if the schema is newer than this reader."""
    version = schema_version(connection)
    if version and int(version.split(".")[0]) > SCHEMA_MAJOR:
        raise TraceError(
            f"has export schema {version}, newer than the {SCHEMA_MAJOR} that this reader knows; "
            "export the report with an older release of nsys"
        )
    return f" (schema {version})" if version else ""


def schema_version(connection, schema: str = "main") -> str:
    """Return the version of the export's schema, such as "3.24.1", or "" if none is there that reads like one."""
    query = f"SELECT name, value FROM {schema}.META_DATA_EXPORT WHERE name IN (?, ?) ORDER BY name"
    known = dict(connection.execute(query, VERSION_KEYS).fetchall())
    version = str(known.get(VERSION_KEYS[0]) or known.get(VERSION_KEYS[1]) or "")
    return version if re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,6}){0,3}", version) else ""


def _check_size(export: Export) -> None:
    """Refuse more rows than there is memory for, before they are read. TraceError."""
    tables = [table for table in (KERNEL, MEMCPY, MEMSET, GRAPH, RUNTIME, NODES, NVTX) if table in export.columns]
    counts = [export.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]
    limits.check_memory(limits.ROW_BYTES * sum(counts), f"{sum(counts):,} kernels, launches and ranges")


def used_strings(columns: dict[str, tuple[str, ...]], schema: str = "main") -> str:
    """Return the query of the ids of the strings that name a kernel, a range or its domain; no rows if none can."""
    queries = ["SELECT NULL WHERE 0"]
    if KERNEL in columns:
        short = "shortName" if "shortName" in columns[KERNEL] else "NULL"
        code = f"CASE WHEN demangledName >= 0 THEN demangledName ELSE {short} END"
        queries.append(f"SELECT {code} FROM {schema}.{KERNEL}")
    if "textId" in columns.get(NVTX, ()):
        no_text = "COALESCE(text, '') = ''" if "text" in columns[NVTX] else "1"
        queries.append(f"SELECT textId FROM {schema}.{NVTX} WHERE {used_events(columns, schema)} AND {no_text}")
    return " UNION ".join(queries)


def used_events(columns: dict[str, tuple[str, ...]], schema: str = "main") -> str:
    """Return the condition of the rows of NVTX_EVENTS that are read: ranges of one thread, and names of their domains.

    The process of a domain's name must be that of the ranges too.
    """
    there = columns[NVTX]
    here = "AND (COALESCE(endGlobalTid, 0) <= 0 OR endGlobalTid = globalTid)" if "endGlobalTid" in there else ""
    ranges = f"{IS_RANGE} {here}"
    if "domainId" not in there:
        return f"({ranges})"
    key = "(globalTid >> 24) & 16777215, domainId"
    used = f"SELECT {key} FROM {schema}.{NVTX} WHERE {ranges}"
    return f"({ranges} OR eventType = {DOMAIN_CREATE} AND ({key}) IN ({used}))"
