"""Build a Trace from what a reader found: attribute GPU work to the ranges around its launch, and find the gaps."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy
import pandas

from ..names import readable
from . import limits
from .limits import LAST_NS, TraceError
from .range_stacks import NO_NODE, RangeStacks, attribute

OUTSIDE = "(outside any range)"
KINDS = ("kernel", "memcpy", "memset", "graph")
GRAPH_CAPTURED = "Captured"  # the style of the ranges that graphs.py adds: they were open at graph capture
UNTRACED_GRAPH = "(CUDA graph as a whole)"
_RECORD_WITH = {"Kineto": "ProfilerActivity.CUDA on a GPU", "Nsight Systems": "nsys profile --trace=cuda,nvtx"}
_PAIR_BYTES, _PATH_BYTES = 100, 16  # of memory for a pair of kernel and range, and for a character of a path, about
_MISSING = -1  # an id, a time or a thread that was not recorded


@dataclass(frozen=True)
class Trace:
    """What a profiler recorded. Times in ns of the profiler's clock; rows in order of start.

    profiler: "Kineto" or "Nsight Systems". gpus: their names, as far as recorded.
    ranges: name, domain ("" = default), style ("PushPop", "StartEnd"; GRAPH_CAPTURED: added by graphs.py), start_ns,
        end_ns, process, thread, open (never closed: then end_ns is the end of the trace), path, depth (1 = outermost on
        its thread), node.
    kernels: kind (one of KINDS), name, start_ns, end_ns, device, stream, process, thread, launch_start_ns,
        launch_end_ns, correlation (one process, one correlation: launched by one call), graph (ran in a CUDA graph),
        path (OUTSIDE if no range encloses the launch), node; captured_path, captured_node: the ranges that were open
        when its graph node was made, at graph capture ("" and -1: none, not recorded, or not in a graph); gap_ns: how
        long the device had been idle when it started (0 for the first); busy_ns: how much longer it kept the device
        busy than what had started before it. Gaps and busy times of a device add up to the time from its first start
        to its last end. thread, launch_…: -1 where the launch was not recorded.
    notes: sentences about what is missing or was left out.
    stacks: the tree of range stacks that `node` points into; enclosing() lists its entries.
    """

    profiler: str
    gpus: tuple[str, ...]
    ranges: pandas.DataFrame
    kernels: pandas.DataFrame
    notes: tuple[str, ...]
    stacks: RangeStacks

    def enclosing(self) -> pandas.DataFrame:
        """Return kernel, range (row numbers, int64): one row for each kernel and each range around its launch."""
        parent = numpy.asarray(self.stacks.parent, numpy.int64)
        rows = numpy.asarray(self.stacks.range, numpy.int64)
        nodes, kernels, pairs = self.kernels["node"].to_numpy(), numpy.arange(len(self.kernels)), []
        while len(kernels := kernels[nodes >= 0]):
            nodes = nodes[nodes >= 0]
            pairs.append((kernels, rows[nodes]))
            nodes = parent[nodes]
        nothing = numpy.empty(0, numpy.int64)
        columns = [numpy.concatenate(column) for column in zip(*pairs, strict=True)] or [nothing, nothing]
        return pandas.DataFrame({"kernel": columns[0], "range": columns[1]})


@dataclass
class Events:
    """What a reader collects, in any order. Arrays of int64 unless said otherwise; -1 where something is unknown.

    kernels: kind (index into KINDS), name (index into kernel_names), start, end, device, stream, process, correlation,
    graph (bool), creation (index into creations). launches: start, end, process, thread, correlation. ranges: name,
    domain, style (lists of str), start, end (-1: never closed), process, thread. creations: start, end, thread of the
    calls that made the nodes of CUDA graphs. Threads are numbers unique in the trace; thread_id() converts them to the
    operating system's.
    """

    kernels: dict
    kernel_names: list[str]
    launches: dict
    ranges: dict
    creations: dict
    thread_id: Callable = lambda thread: thread


def build_trace(profiler: str, events: Events, gpus=(), notes=()) -> Trace:
    """Build the Trace of some Events, with names as names.readable() has them.

    TraceError if nothing ran on the GPU, or if the values cannot be those of a recording.
    """
    if not len(events.kernels["start"]):
        raise TraceError(
            "holds no work of a GPU: nothing ran on one while it was recorded, or CUDA was not traced; "
            f"record with {_RECORD_WITH[profiler]}"
        )
    _check(events)
    events = _with_readable_names(events)
    kernels = _sorted(events.kernels, ("correlation", "name", "stream", "device", "end", "start"))
    launch = _launch_of(kernels, events.launches)
    ranges, is_open = _closed_ranges(events.ranges, (kernels, launch))
    codes, names = pandas.factorize(numpy.array(labels(ranges["domain"], ranges["name"]), dtype=object))
    calls = [numpy.concatenate((launch[column], events.creations[column])) for column in ("start", "end", "thread")]
    stacks, nodes, range_nodes = attribute(ranges["start"], ranges["end"], ranges["thread"], codes, *calls)
    check_pairs(stacks, nodes)
    nodes, creation_nodes = numpy.split(nodes, [len(launch["start"])])
    captured = numpy.append(creation_nodes, NO_NODE)[kernels["creation"]]  # creation -1: the last entry
    range_frame = _range_frame(ranges, is_open, range_nodes, path_column(range_nodes, stacks, names), events)
    paths = path_column(nodes, stacks, names)[0], path_column(captured, stacks, names, outside="")[0]
    kernel_frame = _kernel_frame(kernels, launch, (nodes, captured), paths, events)
    notes = (*notes, *_notes(kernels, launch, is_open))
    return Trace(profiler, tuple(map(readable, gpus)), range_frame, kernel_frame, notes, stacks)


def _check(events: Events) -> None:
    """Refuse times and numbers that no recording has, with which sums and products would overflow."""
    kernels, launches, ranges = events.kernels, events.launches, events.ranges
    for part in (kernels, launches, ranges, events.creations):
        times = numpy.concatenate((part["start"], part["end"]))
        if len(times) and not -LAST_NS <= times.min() <= times.max() <= LAST_NS:
            raise TraceError("is damaged (a time is later than 2116); copy or export it again")
    if ((ranges["end"] < ranges["start"]) & (ranges["end"] != _MISSING)).any():
        raise TraceError("is damaged (a range ends before it starts); copy or export it again")
    length = kernels["end"] - kernels["start"]
    if length.min() < 0 or length.sum(dtype=float) > LAST_NS:
        raise TraceError("is damaged (a kernel ends before it starts, or lasts too long); copy or export it again")
    for part in (kernels, launches):
        if len(part["start"]) and not -1 <= part["correlation"].min() <= part["correlation"].max() < 2**32:
            raise TraceError("is damaged (a correlation has more than 32 bits); copy or export it again")


def _with_readable_names(events: Events) -> Events:
    ranges = dict(events.ranges)
    for column in ("name", "domain"):
        spelt = {name: readable(name) for name in set(ranges[column])}
        ranges[column] = [spelt[name] for name in ranges[column]]
    return replace(events, ranges=ranges, kernel_names=[readable(name) for name in events.kernel_names])


def check_pairs(stacks: RangeStacks, nodes) -> None:
    """Refuse kernels in so many ranges that a row for each pair, as enclosing() has it, would not fit. TraceError."""
    depths = numpy.append(numpy.asarray(stacks.depths(), numpy.int64), 0)
    limits.check_memory(_PAIR_BYTES * int(depths[nodes].sum()), "the ranges around its kernels")


def labels(domains, names) -> list[str]:
    """Return what paths call ranges: "domain:name", or the name alone in the default domain."""
    return [f"{domain}:{name}" if domain else name for domain, name in zip(domains, names, strict=True)]


def path_column(nodes, stacks: RangeStacks, names, outside=OUTSIDE) -> tuple[pandas.Categorical, numpy.ndarray]:
    """Return (path, depth) of the nodes; the path is `outside` for -1. Paths that read alike are one category.

    names: the label of each code in stacks.paths.
    """
    paths = numpy.append(numpy.asarray(stacks.path, numpy.int64), NO_NODE)[nodes]  # node -1: the last entry
    distinct, which = numpy.unique(paths, return_inverse=True)
    limits.check_memory(_PATH_BYTES * int(stacks.path_lengths(names)[distinct].sum()), "the paths of its ranges")
    spelt = [[names[code] for code in stacks.path_names(path)] for path in distinct.tolist()]
    depths = numpy.array([len(parts) for parts in spelt], numpy.int64)
    return _categorical(which, [" / ".join(parts) or outside for parts in spelt]), depths[which]


def _sorted(columns: dict, keys) -> dict:
    """Return the columns in the order of `keys`, the last of which decides first."""
    order = numpy.lexsort([columns[key] for key in keys])
    return {name: _take(values, order) for name, values in columns.items()}


def _closed_ranges(ranges: dict, others) -> tuple[dict, numpy.ndarray]:
    """Return (ranges in order of start, outer ones first; which of them were open). Open ones end with the trace."""
    latest = max(int(part[side].max(initial=0)) for part in (*others, ranges) for side in ("start", "end"))
    is_open = ranges["end"] == _MISSING
    ends = numpy.where(is_open, latest, ranges["end"])
    order = numpy.lexsort((-ends, ranges["start"]))
    return {name: _take(values, order) for name, values in (ranges | {"end": ends}).items()}, is_open[order]


def _take(values, order):
    return [values[place] for place in order.tolist()] if isinstance(values, list) else values[order]


def _launch_of(kernels: dict, launches: dict) -> dict:
    """Return start, end, thread of each kernel's launch: the first call of its process with its correlation, or -1.

    Correlations are unique within a process only.
    """
    processes = numpy.unique(numpy.concatenate((kernels["process"], launches["process"])))
    width = 1 + max(int(part["correlation"].max(initial=0)) for part in (kernels, launches))
    wanted = numpy.searchsorted(processes, kernels["process"]) * width + kernels["correlation"]
    offered = numpy.searchsorted(processes, launches["process"]) * width + launches["correlation"]
    order = numpy.lexsort((launches["end"], launches["start"], offered))
    offered = offered[order]
    place = numpy.searchsorted(offered, wanted, "left")
    if not len(offered):
        return {name: numpy.full(len(wanted), _MISSING, numpy.int64) for name in ("start", "end", "thread")}
    place[place == len(offered)] = 0
    found = (offered[place] == wanted) & (kernels["correlation"] >= 0)
    return {name: numpy.where(found, launches[name][order[place]], _MISSING) for name in ("start", "end", "thread")}


def _categorical(codes, texts: list[str]) -> pandas.Categorical:
    merged, distinct = pandas.factorize(numpy.array(texts, dtype=object))
    return pandas.Categorical.from_codes(merged[codes], categories=pandas.Index(distinct, dtype=object))


def _kernel_frame(kernels, launch, nodes, paths, events: Events) -> pandas.DataFrame:
    gap, busy = _gaps(kernels["start"], kernels["end"], kernels["device"])
    thread = numpy.where(launch["thread"] == _MISSING, _MISSING, events.thread_id(launch["thread"]))
    return pandas.DataFrame(
        {
            "kind": pandas.Categorical.from_codes(kernels["kind"], categories=list(KINDS)),
            "name": _categorical(kernels["name"], events.kernel_names),
            "start_ns": kernels["start"],
            "end_ns": kernels["end"],
            "device": kernels["device"],
            "stream": kernels["stream"],
            "process": kernels["process"],
            "thread": thread,
            "launch_start_ns": launch["start"],
            "launch_end_ns": launch["end"],
            "correlation": kernels["correlation"],
            "graph": kernels["graph"],
            "path": paths[0],
            "node": nodes[0],
            "captured_path": paths[1],
            "captured_node": nodes[1],
            "gap_ns": gap,
            "busy_ns": busy,
        }
    )


def _range_frame(ranges, is_open, nodes, paths, events: Events) -> pandas.DataFrame:
    path, depth = paths
    return pandas.DataFrame(
        {
            **{name: numpy.array(ranges[name], dtype=object) for name in ("name", "domain", "style")},
            "start_ns": ranges["start"],
            "end_ns": ranges["end"],
            "process": ranges["process"],
            "thread": events.thread_id(ranges["thread"]),
            "open": is_open,
            "path": path,
            "depth": depth,
            "node": nodes,
        }
    )


def _gaps(starts, ends, devices):
    """Return (gap, busy) of each kernel, in order of start; streams of one device count together."""
    gap, busy = numpy.zeros_like(starts), numpy.zeros_like(starts)
    for device in numpy.unique(devices):
        rows = numpy.flatnonzero(devices == device)
        start, end = starts[rows], ends[rows]
        until = numpy.maximum.accumulate(end)
        before = numpy.concatenate((start[:1], until[:-1]))  # until when the device was busy, seen from each kernel
        gap[rows] = numpy.maximum(start - before, 0)
        busy[rows] = numpy.maximum(end - numpy.maximum(start, before), 0)
    return gap, busy


def _notes(kernels, launch, is_open) -> list[str]:
    graphs = int((kernels["kind"] == KINDS.index("graph")).sum())
    lost, left_open = int((launch["thread"] == _MISSING).sum()), int(is_open.sum())
    notes = []
    if graphs:
        notes.append(
            f"launches of CUDA graphs recorded as a whole, without their kernels: {graphs:,}; "
            "record with --cuda-graph-trace=node to see them"
        )
    if lost:
        notes.append(f"kernels without their launch in the trace, counted as {OUTSIDE}: {lost:,}")
    if left_open:
        notes.append(f"ranges that were never closed, taken to last until the trace ends: {left_open:,}")
    return notes
