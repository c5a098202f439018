"""Read what Nsight Systems recorded, from the file that nsight_file.opened() opens.

A kernel is joined to its launch call by process and correlationId (all kernels of a graph have that of the
cudaGraphLaunch), and belongs to the NVTX ranges of the calling thread that enclose the call. If the export also says
when the nodes of a graph were made (--cuda-graph-trace=node, and the graph was captured while nsys recorded), a kernel
of the graph is also joined to that call, through the node that its own was instantiated from.
"""

import numpy

from . import limits
from .build import KINDS, UNTRACED_GRAPH, Events, Trace, build_trace
from .limits import TraceError
from .nsight_file import (
    DOMAIN_CREATE,
    GRAPH,
    IS_RANGE,
    KERNEL,
    MEMCPY,
    MEMSET,
    NODES,
    NVTX,
    RUNTIME,
    STYLES,
    WORK,
    Export,
    exported,
    opened,
    rows,
    used_strings,
)

_WORK_TABLES = ((KERNEL, "demangledName"), (MEMCPY, "copyKind"), (MEMSET, None), (GRAPH, None))  # as KINDS; its label
_COPIES = {1: "HtoD", 2: "DtoH", 8: "DtoD", 9: "HtoH", 10: "PtoP"}  # CUpti_ActivityMemcpyKind
_LINEAGE = 16  # instantiations of instantiations that are followed; one or two occur


def read(path) -> Trace:
    """Read a .sqlite export or a .nsys-rep file.

    FileNotFoundError if there is none; ValueError, one sentence, if it is not a trace, is damaged, has a newer schema,
    holds no work of a GPU, or is a .nsys-rep that cannot be exported here.
    """
    with exported(path) as file, opened(file, called=path) as export:
        events, notes = _events(export)
        gpus = [row[0] for row in rows(export, "TARGET_INFO_GPU", ("name",), "ORDER BY rowid")]
        return build_trace("Nsight Systems", events, gpus, notes)


def _events(export: Export) -> tuple[Events, list[str]]:
    tail = f"WHERE id IN ({used_strings(export.columns)}) ORDER BY id"
    strings = dict(_counted(rows(export, "StringIds", ("id", "value"), tail)))
    kernels, names = _gpu_work(export, strings)
    creations, kernels["creation"] = _creations(export, kernels["process"], kernels.pop("graph_node"))
    launches = _integers(export, RUNTIME, ("start", "end", "globalTid", "correlationId"))
    start, end, thread, correlation = launches
    ranges, notes = _ranges(export, strings)
    calls = {"start": start, "end": end, "thread": thread, "process": _process(thread), "correlation": correlation}
    return Events(kernels, names, calls, ranges, creations, thread_id=lambda thread: thread & 0xFFFFFF), notes


def _counted(found):
    """Yield the rows, whose last value is a text. TraceError when all the texts need too much memory."""
    size = 0
    for number, row in enumerate(found):
        size += len(row[-1] or "")
        if number % 1000 == 0:
            limits.check_memory(4 * size, "its names")
        yield row


def _process(global_id):
    """Return the PID in a globalTid or globalPid: the bits above the thread's 24."""
    return (global_id >> 24) & 0xFFFFFF


def _gpu_work(export: Export, strings: dict[int, str]) -> tuple[dict, list[str]]:
    """Return (columns, names) of everything that ran on a GPU."""
    parts, names = [], []
    for kind, (table, label) in enumerate(_WORK_TABLES):
        columns = (*WORK, label, "shortName", "graphNodeId")
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


def _integers(export: Export, table: str, columns, order='start, "end", correlationId', where="1") -> numpy.ndarray:
    """Return int64 [columns, rows] of a table in order of start; -1 for NULL (but for a start) and absent columns."""
    if table not in export.columns:
        return numpy.empty((len(columns), 0), numpy.int64)
    there = export.columns[table]
    given = {name: f'"{name}"' if name == "start" else f'COALESCE("{name}", -1)' for name in there}
    chosen = ", ".join(given.get(name, "-1") for name in columns)
    query = f"SELECT {chosen} FROM {table} WHERE {where} ORDER BY {order}"
    row = numpy.dtype((numpy.int64, len(columns)))
    try:
        return numpy.fromiter(export.connection.execute(query), row).T  # row by row: no list of a million tuples
    except (TypeError, ValueError, OverflowError) as error:
        raise TraceError(
            f"is damaged (a value of {table} is not a whole number of 64 bits); copy or export it again"
        ) from error


def _ranges(export: Export, strings: dict[int, str]) -> tuple[dict, list[str]]:
    """Return (columns of the ranges, notes). Ranges that end on another thread belong to none and are left out."""
    columns = ("start", "end", "eventType", "globalTid", "endGlobalTid", "domainId", "textId")
    order = 'start, "end" DESC, rowid'
    start, end, style, thread, end_thread, domain, text_id = _integers(export, NVTX, columns, order, IS_RANGE)
    texts = rows(export, NVTX, ("text",), f"WHERE {IS_RANGE} ORDER BY {order}")
    texts = _counted(texts)
    names = [text or strings.get(code) or "(unnamed)" for (text,), code in zip(texts, text_id.tolist(), strict=True)]
    here = (end_thread <= 0) | (end_thread == thread)
    end = numpy.where(end < start, -1, end)  # older exports have 0 for NULL
    process = _process(thread)
    known = _domains(export, strings)
    domains = [
        known.get(key, f"domain {key[1]}") if key[1] > 0 else ""
        for key in zip(process.tolist(), domain.tolist(), strict=True)
    ]
    kept = numpy.flatnonzero(here)
    ranges = {
        "name": [names[row] for row in kept.tolist()],
        "domain": [domains[row] for row in kept.tolist()],
        "style": [STYLES[code] for code in style[kept].tolist()],
        "start": start[kept],
        "end": end[kept],
        "thread": thread[kept],
        "process": process[kept],
    }
    across = len(here) - len(kept)
    notes = [f"ranges that end on a thread other than the one they began on, left out: {across:,}"]
    return ranges, notes if across else []


def _domains(export: Export, strings: dict[int, str]) -> dict[tuple[int, int], str]:
    """Return {(process, domainId): its name}; the default domain 0 has none."""
    where, order = f"eventType = {DOMAIN_CREATE}", "start, rowid"
    thread, domain, text_id = _integers(export, NVTX, ("globalTid", "domainId", "textId"), order, where)
    texts = rows(export, NVTX, ("text",), f"WHERE {where} ORDER BY {order}")
    keys = zip(_process(thread).tolist(), domain.tolist(), text_id.tolist(), texts, strict=True)
    return {(process, number): text or strings.get(code) or "" for process, number, code, (text,) in keys}
