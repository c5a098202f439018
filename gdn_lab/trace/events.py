"""One capture, from whichever profiler: its ranges, what ran on the GPU, and the table of both.

A reader collects Events; capture() attributes each piece of GPU work to the ranges that enclose its launch and finds
the gaps; table() sums up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy
import pandas

from .nesting import NO_NODE, Chains, attribute

OUTSIDE = "(outside any range)"
KINDS = ("kernel", "memcpy", "memset", "graph")
CAPTURED = "Captured"  # the style of ranges that graphs.py makes
UNTRACED_GRAPH = "(CUDA graph as a whole)"
_MISSING = -1  # stands for an id, a time or a thread that was not recorded


@dataclass(frozen=True)
class Capture:
    """What a profiler recorded. Times in ns of the profiler's clock; rows in order of start.

    profiler: "Kineto" or "Nsight Systems". gpus: their names, as far as recorded.
    ranges: name, domain ("" = default), style ("PushPop", "StartEnd"; "Captured": made by graphs.py), start_ns, end_ns,
        process, thread, open (never closed: then end_ns is the end of the capture), path, depth (1 = outermost on its
        thread), node.
    kernels: kind (one of KINDS), name, start_ns, end_ns, device, stream, process, thread, launch_start_ns,
        launch_end_ns, correlation (one process, one correlation: launched by one call), graph (ran in a CUDA graph),
        path (OUTSIDE if no range encloses the launch), node; captured_path, captured_node: the ranges that enclosed the
        making of its graph node, at capture ("" and -1: none, not recorded, or not in a graph); gap_ns: how long the
        device had been idle when it started (0 for the first); busy_ns: how much longer it kept the device busy than
        what had started before it.
        Gaps and busy times of a device add up to its span. thread, launch_…: -1 where the launch was not recorded.
    notes: sentences about what is missing or was left out.
    chains: the stacks of ranges that `node` points into; enclosing() unfolds them.
    """

    profiler: str
    gpus: tuple[str, ...]
    ranges: pandas.DataFrame
    kernels: pandas.DataFrame
    notes: tuple[str, ...]
    chains: Chains

    def enclosing(self) -> pandas.DataFrame:
        """kernel, range (row numbers, int64): one row for each kernel and each range that encloses its launch."""
        parent = numpy.asarray(self.chains.parent, numpy.int64)
        rows = numpy.asarray(self.chains.range, numpy.int64)
        nodes, kernels, pairs = self.kernels["node"].to_numpy(), numpy.arange(len(self.kernels)), []
        while len(kernels := kernels[nodes >= 0]):
            nodes = nodes[nodes >= 0]
            pairs.append((kernels, rows[nodes]))
            nodes = parent[nodes]
        columns = [numpy.concatenate(column) for column in zip(*pairs, strict=True)] or [
            numpy.empty(0, numpy.int64)
        ] * 2
        return pandas.DataFrame({"kernel": columns[0], "range": columns[1]})


@dataclass
class Events:
    """What a reader collects, in any order. Arrays of int64 unless said otherwise; -1 where something is unknown.

    kernels: kind (index to KINDS), name (index to kernel_names), start, end, device, stream, process, correlation,
    graph (bool), creation (index to creations). launches: start, end, process, thread, correlation. ranges: name,
    domain, style (lists of str), start, end (-1: never closed), process, thread. creations: start, end, thread of the
    calls that made the nodes of CUDA graphs. Threads are numbers unique in the capture, of which thread_id() makes
    what the operating system calls them.
    """

    kernels: dict
    kernel_names: list[str]
    launches: dict
    ranges: dict
    creations: dict
    thread_id: Callable = lambda thread: thread


def capture(profiler: str, events: Events, gpus=(), notes=()) -> Capture:
    """The Capture of some Events. ValueError if nothing ran on the GPU."""
    if not len(events.kernels["start"]):
        raise ValueError("holds no work of a GPU: nothing ran on one while it was recorded, or CUDA was not traced")
    notes = list(notes)
    kernels = _sorted(events.kernels, ("correlation", "name", "stream", "device", "end", "start"))
    launch = _launch_of(kernels, events.launches)
    ranges, is_open = _closed_ranges(events.ranges, (kernels, launch))
    codes, names = pandas.factorize(numpy.array(labels(ranges["domain"], ranges["name"]), dtype=object))
    calls = [numpy.concatenate((launch[column], events.creations[column])) for column in ("start", "end", "thread")]
    chains, nodes, range_nodes = attribute(ranges["start"], ranges["end"], ranges["thread"], codes, *calls)
    nodes, of_creations = numpy.split(nodes, [len(launch["start"])])
    captured = numpy.append(of_creations, NO_NODE)[kernels["creation"]]  # creation -1: the last entry
    notes += _notes(kernels, launch, is_open)
    range_frame = _range_frame(ranges, is_open, range_nodes, path_column(range_nodes, chains, names), events)
    paths = path_column(nodes, chains, names)[0], path_column(captured, chains, names, outside="")[0]
    kernel_frame = _kernel_frame(kernels, launch, (nodes, captured), paths, events)
    return Capture(profiler, tuple(gpus), range_frame, kernel_frame, tuple(notes), chains)


def labels(domains, names) -> list[str]:
    """What paths call ranges: "domain:name", or the name alone in the default domain."""
    return [f"{domain}:{name}" if domain else name for domain, name in zip(domains, names, strict=True)]


def table(capture: Capture) -> pandas.DataFrame:
    """One row for each range path and kernel: path, kernel, count, total_us, median_us, min_us, max_us, share.

    Each kernel counts once, under the whole path of the ranges that enclose its launch, outermost first and joined by
    " / "; or under OUTSIDE. Copies, fills and graphs recorded as a whole count as kernels. share: of the time of all
    rows. Longest total first.
    """
    kernels = capture.kernels
    times = pandas.DataFrame({
        "path": kernels["path"], "kernel": kernels["name"], "us": (kernels["end_ns"] - kernels["start_ns"]) / 1e3,
    })  # fmt: skip
    groups = times.groupby(["path", "kernel"], observed=True)["us"]
    rows = groups.agg(count="count", total_us="sum", median_us="median", min_us="min", max_us="max").reset_index()
    rows = rows.astype({"path": str, "kernel": str})
    rows["share"] = rows["total_us"] / max(rows["total_us"].sum(), 1e-12)
    return rows.sort_values(["total_us", "path", "kernel"], ascending=[False, True, True], ignore_index=True)


def range_table(capture: Capture) -> pandas.DataFrame:
    """One row for each range path: path, depth, instances, kernels, total_us, share, span_us, host_us.

    Here a kernel counts under every range that encloses its launch, so that a range holds all that its inner ranges
    hold; share is of the time of all kernels. instances: ranges of this path. span_us: from the start of the first to
    the end of the last kernel of an instance, gaps included; host_us: its time on the CPU. Both are medians, span_us
    over the instances that have kernels (NaN if none has), host_us NaN for "Captured" ranges, which took none. In order
    of first beginning.
    """
    kernels, ranges = capture.kernels, capture.ranges
    pairs = capture.enclosing()
    start, end = (kernels[side].to_numpy()[pairs["kernel"]] for side in ("start_ns", "end_ns"))
    work = pandas.DataFrame({"range": pairs["range"], "start": start, "end": end, "us": (end - start) / 1e3})
    sums = work.groupby("range").agg(
        kernels=("us", "count"), us=("us", "sum"), first=("start", "min"), last=("end", "max")
    )
    sums["span_us"] = (sums["last"] - sums["first"]) / 1e3
    host_us = ((ranges["end_ns"] - ranges["start_ns"]) / 1e3).where(ranges["style"] != CAPTURED)
    each = ranges[["path", "depth"]].assign(host_us=host_us).join(sums)
    groups = each.groupby("path", observed=True, sort=False)
    rows = groups.agg(
        depth=("depth", "first"), instances=("depth", "count"), kernels=("kernels", "sum"), total_us=("us", "sum"),
        span_us=("span_us", "median"), host_us=("host_us", "median"),
    ).reset_index()  # fmt: skip
    everything = (kernels["end_ns"] - kernels["start_ns"]).sum() / 1e3
    rows.insert(5, "share", rows["total_us"] / max(everything, 1e-12))
    return rows.astype({"path": str, "kernels": "int64"})


def _sorted(columns: dict, keys) -> dict:
    """The columns in the order of `keys`, the last of which decides first."""
    order = numpy.lexsort([columns[key] for key in keys])
    return {name: _take(values, order) for name, values in columns.items()}


def _closed_ranges(ranges: dict, others) -> tuple[dict, numpy.ndarray]:
    """(ranges in order of start, the outer first; which of them were open). Those end with the capture now."""
    latest = max(int(part[side].max(initial=0)) for part in (*others, ranges) for side in ("start", "end"))
    is_open = ranges["end"] == _MISSING
    ends = numpy.where(is_open, latest, ranges["end"])
    order = numpy.lexsort((-ends, ranges["start"]))
    return {name: _take(values, order) for name, values in (ranges | {"end": ends}).items()}, is_open[order]


def _take(values, order):
    return [values[place] for place in order.tolist()] if isinstance(values, list) else values[order]


def _launch_of(kernels: dict, launches: dict) -> dict:
    """start, end, thread of each kernel's launch: the first call of its process with its correlation, or -1.

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


def path_column(nodes, chains: Chains, names, outside=OUTSIDE) -> tuple[pandas.Categorical, numpy.ndarray]:
    """(path, depth) of the nodes, `outside` for -1. Only paths that occur here are spelt; two that read alike are one.

    names: the label of each code that chains.paths has.
    """
    paths = numpy.append(numpy.asarray(chains.path, numpy.int64), NO_NODE)[nodes]  # node -1: the last entry
    distinct, which = numpy.unique(paths, return_inverse=True)
    spelt = [_path_names(path, chains, names) for path in distinct.tolist()]
    depths = numpy.array([len(parts) for parts in spelt], numpy.int64)
    return _categorical(which, [" / ".join(parts) or outside for parts in spelt]), depths[which]


def _path_names(path: int, chains: Chains, names) -> list[str]:
    """Names along a path, outermost first; none for -1."""
    parts = []
    while path >= 0:
        path, name = chains.paths[path]
        parts.append(names[name])
    return parts[::-1]


def _categorical(codes, texts: list[str]) -> pandas.Categorical:
    merged, distinct = pandas.factorize(numpy.array(texts, dtype=object))
    return pandas.Categorical.from_codes(merged[codes], categories=pandas.Index(distinct, dtype=object))


def _kernel_frame(kernels, launch, nodes, paths, events: Events) -> pandas.DataFrame:
    gap, busy = _gaps(kernels["start"], kernels["end"], kernels["device"])
    thread = numpy.where(launch["thread"] == _MISSING, _MISSING, events.thread_id(launch["thread"]))
    return pandas.DataFrame({
        "kind": pandas.Categorical.from_codes(kernels["kind"], categories=list(KINDS)),
        "name": _categorical(kernels["name"], events.kernel_names),
        "start_ns": kernels["start"], "end_ns": kernels["end"], "device": kernels["device"],
        "stream": kernels["stream"], "process": kernels["process"], "thread": thread,
        "launch_start_ns": launch["start"], "launch_end_ns": launch["end"], "correlation": kernels["correlation"],
        "graph": kernels["graph"], "path": paths[0], "node": nodes[0], "captured_path": paths[1],
        "captured_node": nodes[1], "gap_ns": gap, "busy_ns": busy,
    })  # fmt: skip


def _range_frame(ranges, is_open, nodes, paths, events: Events) -> pandas.DataFrame:
    path, depth = paths
    return pandas.DataFrame({
        **{name: numpy.array(ranges[name], dtype=object) for name in ("name", "domain", "style")},
        "start_ns": ranges["start"], "end_ns": ranges["end"], "process": ranges["process"],
        "thread": events.thread_id(ranges["thread"]), "open": is_open, "path": path, "depth": depth, "node": nodes,
    })  # fmt: skip


def _gaps(starts, ends, devices):
    """(gap, busy) of each kernel, in order of start; streams of one device count together."""
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
        notes.append(f"kernels without their launch in the capture, so counted as {OUTSIDE}: {lost:,}")
    if left_open:
        notes.append(f"ranges never closed, taken to last until the capture ends: {left_open:,}")
    return notes
