"""Read what Nsight Systems recorded: the SQLite export of any report, or a .nsys-rep, which nsys exports first.

A kernel is joined to its launch call by process and correlationId (all kernels of a graph have that of the
cudaGraphLaunch), and belongs to the NVTX ranges of the calling thread that enclose the call. If the export also says
when the nodes of a graph were made (--cuda-graph-trace=node, and the graph was captured while nsys recorded), a kernel
of the graph is also joined to that call, through the node that its own was instantiated from. Nothing is written.

What this workbook knows of the export's schema is in this file alone.
"""

import shutil
import sqlite3
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy

from .build import KINDS, UNTRACED_GRAPH, Events, Trace, build_trace

# What is read, by table: columns that must be there, and columns that may be. A scrubbed trace holds these only.
KERNEL, RUNTIME, NVTX = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"
MEMCPY, MEMSET, GRAPH = (f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("MEMCPY", "MEMSET", "GRAPH_TRACE"))
NODES = "CUDA_GRAPH_NODE_EVENTS"
_WORK = ("start", "end", "deviceId", "streamId", "correlationId", "globalPid")
TABLES = {
    "StringIds": (("id", "value"), ()),
    KERNEL: ((*_WORK, "demangledName"), ("shortName", "graphNodeId")),
    MEMCPY: ((*_WORK, "copyKind"), ("graphNodeId",)),
    MEMSET: (_WORK, ("graphNodeId",)),
    GRAPH: (("start", "end", "deviceId", "correlationId", "globalPid"), ("streamId",)),
    RUNTIME: (("start", "end", "globalTid", "correlationId"), ()),
    NODES: ((), ("start", "end", "globalTid", "graphNodeId", "originalGraphNodeId")),
    NVTX: (("start", "end", "eventType", "globalTid"), ("text", "textId", "domainId", "endGlobalTid")),
    "META_DATA_EXPORT": (("name", "value"), ()),
    "TARGET_INFO_GPU": (("name",), ()),
}
_WORK_TABLES = ((KERNEL, "demangledName"), (MEMCPY, "copyKind"), (MEMSET, None), (GRAPH, None))  # as KINDS; its label
STRING_COLUMNS = {KERNEL: ("demangledName", "shortName"), NVTX: ("textId",)}  # columns that point into StringIds
SCHEMA_MAJOR = 3  # the newest export schema whose meaning this reader knows
VERSION_KEYS = ("EXPORT_SCHEMA_VERSION", "EXPORT_SCHEMA_VERSION_MAJOR")
STYLES = {59: "PushPop", 60: "StartEnd", 70: "PushPop", 71: "StartEnd"}  # eventType; 70 and 71 are NVTX's legacy form
DOMAIN_CREATE = 75
IS_RANGE = f"eventType IN ({', '.join(map(str, STYLES))})"
_COPIES = {1: "HtoD", 2: "DtoH", 8: "DtoD", 9: "HtoH", 10: "PtoP"}  # CUpti_ActivityMemcpyKind
_LINEAGE = 16  # instantiations of instantiations that are followed; one or two occur


@dataclass(frozen=True)
class Export:
    """An open SQLite export. columns: {table: its columns among those of TABLES}, without tables that are absent."""

    path: Path
    connection: sqlite3.Connection
    columns: dict[str, tuple[str, ...]]


def read(path) -> Trace:
    """Read a .sqlite export or a .nsys-rep file.

    FileNotFoundError if there is none; ValueError, one sentence, if it is not a trace, is damaged, has a newer schema,
    holds no work of a GPU, or is a .nsys-rep that cannot be exported here.
    """
    with exported(path) as file, opened(file) as export:
        events, notes = _events(export)
        gpus = [row[0] for row in rows(export, "TARGET_INFO_GPU", ("name",), "ORDER BY rowid")]
        try:
            return build_trace("Nsight Systems", events, gpus, notes)
        except ValueError as error:
            raise ValueError(f"{path} {error}; record with nsys profile --trace=cuda,nvtx") from error


@contextmanager
def exported(path):
    """Yield the path of the SQLite export: `path` itself, or a temporary export of a .nsys-rep."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no trace {path}; give a .sqlite or .nsys-rep file of Nsight Systems")
    if path.suffix != ".nsys-rep":
        yield path
        return
    nsys = shutil.which("nsys")
    if nsys is None:
        raise ValueError(
            f"{path} must be exported first and there is no nsys here; "
            f"where there is one, run: nsys export --type sqlite {path.name}"
        )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "export.sqlite"
        command = [nsys, "export", "--type", "sqlite", "--force-overwrite", "true", "--output", target, path]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not target.is_file():
            message = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise ValueError(
                f"nsys could not export {path}, it said: {message}; try a newer nsys, or copy the file again"
            )
        yield target


@contextmanager
def opened(path):
    """Yield the Export at `path`; neither it nor its folder is written to. ValueError if it is none."""
    path = Path(path)
    _check_file(path)
    connection = sqlite3.connect(uri(path), uri=True)
    try:
        yield Export(path, connection, _columns(path, connection))
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} is damaged ({error}); copy or export it again") from error
    finally:
        connection.close()


def uri(path: Path) -> str:
    """Return SQLite's address of a file that nobody writes to."""
    return f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"


def rows(export: Export, table: str, columns, tail: str = "", parameters=()):
    """Return an iterator over these columns: NULL where the export lacks a column, empty where it lacks the table."""
    if table not in export.columns:
        return iter(())
    selected = ", ".join(f'"{name}"' if name in export.columns[table] else "NULL" for name in columns)
    return export.connection.execute(f"SELECT {selected} FROM {table} {tail}", parameters)


def _check_file(path: Path) -> None:
    """Refuse what cannot be a whole SQLite file. Since SQLite 3.7 the header gives the size in pages."""
    with open(path, "rb") as file:
        head = file.read(100)
    if not head:
        raise ValueError(f"{path} is empty; copy or export it again")
    if not head.startswith(b"SQLite format 3\0"[: len(head)]):
        raise ValueError(
            f"{path} is not a trace: expected a .nsys-rep or the SQLite file of nsys export --type sqlite, "
            "got another format"
        )
    page = int.from_bytes(head[16:18], "big")
    expected = (65536 if page == 1 else page) * int.from_bytes(head[28:32], "big")
    if len(head) < 100 or (head[24:28] == head[92:96] and path.stat().st_size < expected):
        raise ValueError(
            f"{path} is cut short: expected {max(expected, 100):,} bytes, got {path.stat().st_size:,}; "
            "copy or export it again"
        )


def _columns(path: Path, connection) -> dict[str, tuple[str, ...]]:
    """Return {table: those of its columns in TABLES that are there}; ValueError if this is no export or a newer one."""
    tables = {
        name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    }
    if "StringIds" not in tables or not tables & (TABLES.keys() - {"StringIds"}):
        raise ValueError(
            f"{path} is a SQLite file but not a trace: it has none of the tables of nsys export --type sqlite"
        )
    columns, version = {}, ""
    for table, (needed, optional) in TABLES.items():
        if table in tables:
            there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            columns[table] = tuple(name for name in (*needed, *optional) if name in there)
    if {"name", "value"} <= set(columns.get("META_DATA_EXPORT", ())):
        version = _check_version(path, connection)
    for table, there in columns.items():
        absent = [name for name in TABLES[table][0] if name not in there]
        if absent:
            raise ValueError(
                f"{path}: its table {table} lacks {', '.join(absent)}{version}, so its schema is one that this reader "
                f"does not know (it knows up to {SCHEMA_MAJOR}); export the report with another release of nsys"
            )
    return columns


def _check_version(path: Path, connection) -> str:
    """Return " (schema x.y)" for messages. ValueError if the schema is newer than this reader."""
    query = "SELECT name, value FROM META_DATA_EXPORT WHERE name IN (?, ?) ORDER BY name"
    known = dict(connection.execute(query, VERSION_KEYS).fetchall())
    version = str(known.get("EXPORT_SCHEMA_VERSION") or known.get("EXPORT_SCHEMA_VERSION_MAJOR") or "")
    major = version.split(".")[0]
    if major.isdigit() and int(major) > SCHEMA_MAJOR:
        raise ValueError(
            f"{path} has export schema {version}, newer than the {SCHEMA_MAJOR} that this reader knows; "
            "export the report with an older release of nsys"
        )
    return f" (schema {version})" if version else ""


# ---- from rows to Events --------------------------------------------------------------------------------------------


def _events(export: Export) -> tuple[Events, list[str]]:
    strings = dict(rows(export, "StringIds", ("id", "value"), "ORDER BY id"))
    kernels, names = _gpu_work(export, strings)
    creations, kernels["creation"] = _creations(export, kernels["process"], kernels.pop("graph_node"))
    launches = _integers(export, RUNTIME, ("start", "end", "globalTid", "correlationId"))
    start, end, thread, correlation = launches
    ranges, notes = _ranges(export, strings)
    calls = {"start": start, "end": end, "thread": thread, "process": _process(thread), "correlation": correlation}
    return Events(kernels, names, calls, ranges, creations, thread_id=lambda thread: thread & 0xFFFFFF), notes


def _process(global_id):
    """Return the PID in a globalTid or globalPid: the bits above the thread's 24."""
    return (global_id >> 24) & 0xFFFFFF


def _gpu_work(export: Export, strings: dict[int, str]) -> tuple[dict, list[str]]:
    """Return (columns, names) of everything that ran on a GPU."""
    parts, names = [], []
    for kind, (table, label) in enumerate(_WORK_TABLES):
        columns = (*_WORK, label, "shortName", "graphNodeId")
        start, end, device, stream, correlation, process, code, short, node = _integers(export, table, columns)
        labels, which = numpy.unique(numpy.where(code < 0, short, code), return_inverse=True)
        parts.append(
            {
                "start": start,
                "end": end,
                "device": device,
                "stream": stream,
                "correlation": correlation,
                "process": _process(process),
                "kind": numpy.full(len(start), kind),
                "name": which + len(names),
                "graph": (node > 0) | (KINDS[kind] == "graph"),
                "graph_node": node,
            }
        )
        names += [_work_name(KINDS[kind], label, strings) for label in labels.tolist()]
    return {key: numpy.concatenate([part[key] for part in parts]) for key in parts[0]}, names


def _work_name(kind: str, label: int, strings: dict[int, str]) -> str:
    if kind == "kernel":
        return strings.get(label) or "(unnamed)"
    if kind == "memcpy":
        return f"Memcpy {_COPIES.get(label, f'kind {label}')}"
    return "Memset" if kind == "memset" else UNTRACED_GRAPH


def _creations(export: Export, processes, nodes) -> tuple[dict, numpy.ndarray]:
    """Return (start, end, thread of the calls that made nodes at graph capture; for each kernel, place of its call).

    nodes: graphNodeId of each kernel, which belongs to the instantiated graph. For a node made by instantiation the
    table has a row with the id of its original as originalGraphNodeId, and sometimes a second row without one, as for
    a node made at graph capture. A place is -1 where nothing is recorded.
    """
    nothing = {name: numpy.empty(0, numpy.int64) for name in ("start", "end", "thread")}, numpy.full(len(nodes), -1)
    if not {"start", "globalTid", "graphNodeId", "originalGraphNodeId"} <= set(export.columns.get(NODES, ())):
        return nothing
    columns = ("start", "end", "globalTid", "graphNodeId", "originalGraphNodeId")
    start, end, thread, node, original = _integers(export, NODES, columns, "start, graphNodeId, originalGraphNodeId")
    keys = list(zip(_process(thread).tolist(), node.tolist(), strict=True))
    originals = original.tolist()
    made = {key: place for place, key in reversed(list(enumerate(keys))) if originals[place] <= 0}
    parents = {key: (key[0], parent) for key, parent in zip(keys, originals, strict=True) if parent > 0}
    places = numpy.full(len(nodes), -1)
    for process in numpy.unique(processes[nodes > 0]).tolist():
        rows = numpy.flatnonzero((processes == process) & (nodes > 0))
        distinct, which = numpy.unique(nodes[rows], return_inverse=True)
        places[rows] = numpy.array([_made_at((process, one), made, parents) for one in distinct.tolist()])[which]
    return {"start": start, "end": numpy.maximum(start, end), "thread": thread}, places


def _made_at(key, made: dict, parents: dict) -> int:
    for _ in range(_LINEAGE):
        if key not in parents:
            break
        key = parents[key]
    return made.get(key, -1)


def _integers(export: Export, table: str, columns, order='start, "end", correlationId') -> numpy.ndarray:
    """Return int64 [columns, rows] of a table in order of start; -1 for NULL, absent columns and an absent table."""
    if table not in export.columns:
        return numpy.empty((len(columns), 0), numpy.int64)
    chosen = ", ".join(f'COALESCE("{name}", -1)' if name in export.columns[table] else "-1" for name in columns)
    query = f"SELECT {chosen} FROM {table} ORDER BY {order}"
    row = numpy.dtype((numpy.int64, len(columns)))
    return numpy.fromiter(export.connection.execute(query), row).T  # row by row: no list of a million tuples


def _ranges(export: Export, strings: dict[int, str]) -> tuple[dict, list[str]]:
    """Return (columns of the ranges, notes). Ranges that end on another thread belong to none and are left out."""
    domains = _domains(export, strings)
    columns = ("start", "end", "eventType", "globalTid", "endGlobalTid", "domainId", "text", "textId")
    tail = f'WHERE {IS_RANGE} ORDER BY start, "end" DESC, rowid'
    names, domain_names, styles, times, across = [], [], [], [], 0
    for start, end, style, thread, end_thread, domain, text, text_id in rows(export, NVTX, columns, tail):
        if end_thread and end_thread != thread:
            across += 1
            continue
        names.append(text or strings.get(text_id) or "(unnamed)")
        domain_names.append(domains.get((_process(thread), domain), f"domain {domain}") if domain else "")
        styles.append(STYLES[style])
        times.append((start, -1 if end is None or end < start else end, thread))  # older exports have 0 for NULL
    start, end, thread = numpy.array(times, numpy.int64).reshape(-1, 3).T
    ranges = {"name": names, "domain": domain_names, "style": styles, "start": start, "end": end, "thread": thread}
    notes = [f"ranges that end on a thread other than the one they began on, left out: {across:,}"]
    return ranges | {"process": _process(thread)}, notes if across else []


def _domains(export: Export, strings: dict[int, str]) -> dict[tuple[int, int], str]:
    """Return {(process, domainId): its name}; the default domain 0 has none."""
    columns = ("globalTid", "domainId", "text", "textId")
    found = rows(export, NVTX, columns, "WHERE eventType = ? ORDER BY start, rowid", (DOMAIN_CREATE,))
    return {(_process(thread), domain): text or strings.get(text_id) or "" for thread, domain, text, text_id in found}
