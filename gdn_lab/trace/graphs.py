"""The parts of a step inside CUDA graphs: a graph's kernels under the ranges that enclosed their capture.

All kernels of a replay are launched by one call, so that the ranges around it are all they have in a Capture, and in
the tables of nsys stats. Here a Capture is made from it that has more: ranges of style "Captured", which no program
pushed, one for each replay and each range around the capture of its kernels. They start and end with the launch call,
and come after all others. Where a profiler does not record when the nodes of a graph are made, an eager run of the same
step tells by position.
"""

from dataclasses import replace

import numpy
import pandas

from .events import CAPTURED, Capture, labels, path_column
from .nesting import Chains
from .positions import parts_of_replays


def has_captured(capture: Capture) -> bool:
    """Whether the capture says which ranges enclosed the making of the nodes of its graphs."""
    return bool((capture.kernels["captured_node"] >= 0).any())


def unfolded(capture: Capture) -> Capture:
    """The capture with each graph kernel also under the ranges that enclosed its capture, below those of its launch.

    A range around both the capture and the launch counts once. Unchanged where nothing is known (has_captured()).
    """
    kernels = capture.kernels
    rows = numpy.flatnonzero(kernels["captured_node"] >= 0)
    if not len(rows):
        return capture
    launches, _ = pandas.factorize(pandas.MultiIndex.from_frame(kernels.loc[rows, ["process", "correlation"]]))
    pairs = list(zip(kernels["node"].to_numpy()[rows].tolist(), kernels["captured_node"].to_numpy()[rows].tolist(),
                     strict=True))  # fmt: skip
    stacks = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
    added = [_beyond(capture.chains, launch, captured) for launch, captured in stacks]
    return _with_stacks(capture, rows, launches, numpy.array([stacks[pair] for pair in pairs]), added)


def by_position(capture: Capture, eager_path: str, graph_path: str) -> Capture:
    """The capture with the kernels under graph_path also under the ranges that the same kernels have in an eager run.

    eager_path: path of a range around one eager run of a step; its last instance with kernels counts. graph_path: path
    of the ranges around the replays of a graph of the same step, or of that step several times over.
    ValueError, one sentence, if either has no kernels, or if they do not agree (see positions.parts_of_replays).
    """
    names = capture.kernels["name"].astype(object).to_numpy()
    start, end = (capture.kernels[side].to_numpy() for side in ("start_ns", "end_ns"))
    *_, eager = _instances(capture, eager_path)
    replays = _instances(capture, graph_path)
    run = [(names[row], place) for place, row in enumerate(eager[1])]
    timed = [[(names[row], start[row], end[row]) for row in rows] for _, rows in replays]
    places = [[place for place, _, _ in parts] for parts in parts_of_replays(run, timed)]
    rows = numpy.array([row for _, of in replays for row in of])
    turns = [number // len(run) for of in places for number in range(len(of))]
    instances = numpy.repeat(numpy.arange(len(replays)), [len(of) for of in places]) * (1 + max(turns)) + turns
    nodes = capture.kernels["node"].to_numpy()[eager[1]].tolist()
    added = [_below(capture.chains, node, eager[0]) for node in nodes]
    return _with_stacks(capture, rows, instances, numpy.array([place for of in places for place in of]), added)


def _instances(capture: Capture, path: str) -> list[tuple[int, list[int]]]:
    """[(row of the range, rows of its kernels in order of start)] of the ranges of this path that have kernels."""
    wanted = numpy.flatnonzero(capture.ranges["path"] == path)
    pairs = capture.enclosing()
    pairs = pairs[numpy.isin(pairs["range"], wanted)].sort_values(["range", "kernel"])
    found = [(int(row), of.tolist()) for row, of in pairs.groupby("range")["kernel"]]
    if not found:
        raise ValueError(f"no range {path!r} has work of a GPU in this capture; record an eager run and replays of it")
    return found


def _beyond(chains: Chains, launch: int, captured: int) -> tuple[int, ...]:
    """The ranges of the captured stack that the launch's has not, outermost first."""
    known = set(chains.rows(launch))
    return tuple(row for row in reversed(chains.rows(captured)) if row not in known)


def _below(chains: Chains, node: int, outer: int) -> tuple[int, ...]:
    """The ranges of a stack inside the range `outer`, outermost first."""
    rows = chains.rows(node)
    return tuple(reversed(rows[: rows.index(outer)]))


def _with_stacks(capture: Capture, rows, instances, which, stacks) -> Capture:
    """The capture with, for kernel rows[i], a copy of the ranges stacks[which[i]] on top of those it has.

    Kernels of one instance share the copies.
    """
    old, frame = capture.chains, capture.ranges
    codes = list(old.names)
    chains = Chains(codes)  # which appends to them as ranges are made
    for attribute in ("parent", "range", "path", "paths"):
        getattr(chains, attribute).extend(getattr(old, attribute))
    chains.index_paths()
    nodes = capture.kernels["node"].to_numpy().copy()
    calls = capture.kernels["launch_start_ns"].to_numpy()
    keys = instances.astype(numpy.int64) * len(stacks) + which
    _, first, inverse = numpy.unique(keys, return_index=True, return_inverse=True)
    made, copies, on_top = {}, [], numpy.empty(len(first), numpy.int64)
    for pair in numpy.argsort(first).tolist():
        place = int(first[pair])
        node, above = int(nodes[rows[place]]), ()
        for row in stacks[which[place]]:
            above += (row,)
            key = (int(instances[place]), above)
            if key not in made:
                copies.append((row, int(calls[rows[place]])))
                codes.append(codes[row])
                made[key] = chains.push(node, len(codes) - 1)
            node = made[key]
        on_top[pair] = node
    nodes[rows] = on_top[inverse]
    names = dict(zip(old.names, labels(frame["domain"], frame["name"]), strict=True))
    kernels = capture.kernels.assign(node=nodes, path=path_column(nodes, chains, names)[0])
    ranges = pandas.concat([frame, _copies(frame, copies, list(made.values()), chains, names)], ignore_index=True)
    return replace(capture, ranges=ranges, kernels=kernels, chains=chains)


def _copies(frame, copies, nodes, chains, names) -> pandas.DataFrame:
    """The rows of ranges.DataFrame for (row copied, time of the launch) of each copy."""
    rows, calls = numpy.array(copies, numpy.int64).reshape(-1, 2).T
    nodes = numpy.array(nodes, numpy.int64)
    path, depth = path_column(nodes, chains, names)
    return frame.iloc[rows].assign(
        style=CAPTURED, start_ns=calls, end_ns=calls, open=False, path=path.astype(object), depth=depth, node=nodes
    )
