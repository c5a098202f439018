"""Put the kernels of a CUDA graph under the ranges that were open at its capture, so that a replay has parts.

One call launches all kernels of a replay, so the ranges around that call are all that a Trace, and the tables of nsys
stats, have for them. The functions here return a Trace that has more: for each replay and each range open at graph
capture, a range of style GRAPH_CAPTURED that no program pushed. It starts and ends with the launch call, and follows
all other ranges. Where a profiler does not record when the nodes of a graph are made, an eager run of the same step
tells the part of a kernel by its position.
"""

from dataclasses import replace

import numpy
import pandas

from . import limits
from .build import GRAPH_CAPTURED, Trace, check_pairs, labels, path_column
from .positions import parts_of_replays
from .range_stacks import RangeStacks

_COPY_BYTES = 300  # of memory for a range that a replay gets, about


def has_graph_capture(trace: Trace) -> bool:
    """Return whether the trace says which ranges were open when the nodes of its graphs were made."""
    return bool((trace.kernels["captured_node"] >= 0).any())


def unfolded(trace: Trace) -> Trace:
    """Return the trace with each graph kernel also under the ranges open at graph capture, below those of its launch.

    A range around both the graph's capture and its launch counts once. Unchanged if has_graph_capture() is false.
    """
    kernels = trace.kernels
    rows = numpy.flatnonzero(kernels["captured_node"] >= 0)
    if not len(rows):
        return trace
    launches, _ = pandas.factorize(pandas.MultiIndex.from_frame(kernels.loc[rows, ["process", "correlation"]]))
    nodes, captured = (kernels[column].to_numpy()[rows].tolist() for column in ("node", "captured_node"))
    pairs = list(zip(nodes, captured, strict=True))
    stack_of = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
    added = [_only_at_capture(trace.stacks, launch, capture) for launch, capture in stack_of]
    return _with_stacks(trace, rows, launches, numpy.array([stack_of[pair] for pair in pairs]), added)


def by_position(trace: Trace, eager_path: str, graph_path: str) -> Trace:
    """Return the trace with the kernels under graph_path also under the ranges of the same kernels in an eager run.

    eager_path: path of a range around one eager run of a step; its last instance with kernels counts. graph_path: path
    of the ranges around the replays of a graph of the same step, or of that step several times over.
    ValueError, one sentence, if either has no kernels, or if they do not agree (see positions.parts_of_replays).
    """
    names = trace.kernels["name"].astype(object).to_numpy()
    start, end = (trace.kernels[side].to_numpy() for side in ("start_ns", "end_ns"))
    eager_range, eager_kernels = _instances(trace, eager_path)[-1]
    replays = _instances(trace, graph_path)
    run = [(names[row], place) for place, row in enumerate(eager_kernels)]
    timed = [[(names[row], start[row], end[row]) for row in rows] for _, rows in replays]
    places = [[place for place, _, _ in parts] for parts in parts_of_replays(run, timed)]
    rows = numpy.array([row for _, replay_rows in replays for row in replay_rows])
    turns = [number // len(run) for replay in places for number in range(len(replay))]
    replay_numbers = numpy.repeat(numpy.arange(len(replays)), [len(replay) for replay in places])
    nodes = trace.kernels["node"].to_numpy()[eager_kernels].tolist()
    added = [_inside(trace.stacks, node, eager_range) for node in nodes]
    which = numpy.array([place for replay in places for place in replay])
    return _with_stacks(trace, rows, replay_numbers * (1 + max(turns)) + turns, which, added)


def _instances(trace: Trace, path: str) -> list[tuple[int, list[int]]]:
    """Return [(row of the range, rows of its kernels in order of start)] of the ranges of this path with kernels."""
    wanted = numpy.flatnonzero(trace.ranges["path"] == path)
    pairs = trace.enclosing()
    pairs = pairs[numpy.isin(pairs["range"], wanted)].sort_values(["range", "kernel"])
    found = [(int(row), kernels.tolist()) for row, kernels in pairs.groupby("range")["kernel"]]
    if not found:
        raise ValueError(f"no range {path!r} has work of a GPU in this trace; record an eager run and replays of it")
    return found


def _only_at_capture(stacks: RangeStacks, launch: int, captured: int) -> tuple[int, ...]:
    """Return the ranges open at graph capture that are not open at the launch, outermost first."""
    known = set(stacks.rows(launch))
    return tuple(row for row in reversed(stacks.rows(captured)) if row not in known)


def _inside(stacks: RangeStacks, node: int, outer: int) -> tuple[int, ...]:
    """Return the ranges of a stack inside the range `outer`, outermost first."""
    rows = stacks.rows(node)
    return tuple(reversed(rows[: rows.index(outer)]))


def _with_stacks(trace: Trace, rows, instances, which, added) -> Trace:
    """Return the trace with, for kernel rows[i], a copy of the ranges added[which[i]] on top of those it has.

    Kernels of one instance share the copies.
    """
    frame, stacks = trace.ranges, trace.stacks.copy()
    nodes = trace.kernels["node"].to_numpy().copy()
    calls = trace.kernels["launch_start_ns"].to_numpy()
    keys = instances.astype(numpy.int64) * len(added) + which
    _, first, inverse = numpy.unique(keys, return_index=True, return_inverse=True)
    most = sum(len(added[place]) for place in which[first].tolist())
    limits.check_memory(_COPY_BYTES * most, "the ranges of its replays")
    made, copies, on_top = {}, [], numpy.empty(len(first), numpy.int64)
    for pair in numpy.argsort(first).tolist():
        place = int(first[pair])
        node, above = int(nodes[rows[place]]), ()
        for row in added[which[place]]:
            above += (row,)
            key = (int(instances[place]), above)
            if key not in made:
                copies.append((row, int(calls[rows[place]])))
                stacks.names.append(stacks.names[row])
                made[key] = stacks.push(node, len(stacks.names) - 1)
            node = made[key]
        on_top[pair] = node
    nodes[rows] = on_top[inverse]
    check_pairs(stacks, nodes)
    names = dict(zip(trace.stacks.names, labels(frame["domain"], frame["name"]), strict=True))
    kernels = trace.kernels.assign(node=nodes, path=path_column(nodes, stacks, names)[0])
    ranges = pandas.concat([frame, _copies(frame, copies, list(made.values()), stacks, names)], ignore_index=True)
    return replace(trace, ranges=ranges, kernels=kernels, stacks=stacks)


def _copies(frame, copies, nodes, stacks: RangeStacks, names) -> pandas.DataFrame:
    """Return the rows that Trace.ranges gains. copies: (row copied, time of the launch) of each."""
    rows, calls = numpy.array(copies, numpy.int64).reshape(-1, 2).T
    nodes = numpy.array(nodes, numpy.int64)
    path, depth = path_column(nodes, stacks, names)
    return frame.iloc[rows].assign(
        style=GRAPH_CAPTURED,
        start_ns=calls,
        end_ns=calls,
        open=False,
        path=path.astype(object),
        depth=depth,
        node=nodes,
    )
