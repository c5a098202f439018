"""Choose what a step is, in a trace that may come from any program: a range, two ranges, a launch, or a period."""

import difflib
import re
from typing import NamedTuple

import numpy
import pandas

from . import limits
from .build import Trace, labels
from .ranges import STEP, WARM_UP

LAUNCH, WHOLE = "(launch of a CUDA graph)", "(whole trace)"  # the steps of traces without ranges
PERIOD = "(period of the kernels)"
WITHOUT_RANGES = (LAUNCH, PERIOD, WHOLE)
COMMUNICATION = "communication"  # the part that such steps give to kernels between GPUs
BETWEEN_GPUS = re.compile(r"nccl|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|send_?recv|cross_device", re.I)
FEWEST_PERIODS = 3
SHARE_IN_PERIODS = 0.6  # of the kernels, at least


class Steps(NamedTuple):
    """name: of what a step is. owner: for each kernel a number of its step, or -1. notes: sentences."""

    name: str
    owner: numpy.ndarray
    notes: list[str]


def choose(trace: Trace, wanted: str) -> Steps:
    """Find the step of each kernel.

    wanted: the range that is a step, or several separated by commas; "" chooses STEP, or the most frequent range of
    two kernels or more, together with one as frequent that differs from it in being launched kernel by kernel or
    replayed. The innermost range counts. TraceError if a wanted range has no work of a GPU.
    """
    ranges, pairs = trace.ranges, trace.enclosing()
    warm_up = ranges["path"].astype(str).str.split(" / ").str[0] == WARM_UP
    pairs = pairs[~warm_up.to_numpy()[pairs["range"]]]
    names = numpy.array(labels(ranges["domain"], ranges["name"]), dtype=object)
    graph = trace.kernels["graph"].to_numpy(dtype=bool)
    named = pairs.assign(name=names[pairs["range"]], graph=graph[pairs["kernel"]])
    counts = named.groupby("name").agg(
        ranges=("range", "nunique"), kernels=("kernel", "count"), graph=("graph", "mean")
    )
    asked = _asked(wanted, counts)
    if not len(counts):
        return _without_ranges(trace)
    steps, notes = (asked, []) if asked else _likely(counts)
    owner = numpy.full(len(trace.kernels), -1)
    inside = named[named["name"].isin(steps)].sort_values("range")  # inner ranges begin later, and are written last
    owner[inside["kernel"].to_numpy()] = inside["range"].to_numpy()
    return Steps(" and ".join(steps), owner, notes)


def part_of_kernel(name: str, short: str) -> str:
    """Return the part of a kernel in a trace without ranges: its short name, or COMMUNICATION between GPUs."""
    return COMMUNICATION if BETWEEN_GPUS.search(name) else short


def _asked(wanted: str, counts: pandas.DataFrame) -> list[str]:
    if not wanted or wanted in counts.index:
        return [wanted] if wanted else []
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in counts.index:
            raise limits.TraceError(_no_such_range(name, counts))
    return names


def _likely(counts: pandas.DataFrame) -> tuple[list[str], list[str]]:
    """Return (the ranges that are steps, notes that name the others that could be)."""
    if STEP in counts.index:
        return [STEP], []
    several = counts[counts["kernels"] >= 2 * counts["ranges"]]
    ranked = (several if len(several) else counts).sort_values(["ranges", "kernels"], ascending=False)
    best = ranked.iloc[0]
    others = ranked.iloc[1:]
    opposite = others[(others["ranges"] == best["ranges"]) & ((others["graph"] - best["graph"]).abs() == 1)]
    steps = [best.name, *opposite.index[:1]]
    rest = [f"{name!r} × {row.ranges:,.0f}" for name, row in others.drop(steps[1:]).head(5).iterrows()]
    if not rest:
        return steps, []
    chosen = " and ".join(f"{name!r} × {counts.ranges[name]:,.0f}" for name in steps)
    return steps, [f"steps are the ranges {chosen}; others that repeat: {', '.join(rest)} (choose with step_range)"]


def _no_such_range(wanted: str, counts: pandas.DataFrame) -> str:
    near = difflib.get_close_matches(wanted, counts.index, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    known = ", ".join(counts.sort_values("ranges", ascending=False).index[:8]) or "none"
    return f"has no range {wanted!r} with work of a GPU (step_range){hint}; the ranges that have: {known}"


# ---- traces without ranges ------------------------------------------------------------------------------------------


def _without_ranges(trace: Trace) -> Steps:
    """Take each launch of a CUDA graph as a step; without one, each period of the kernels; else the whole trace."""
    kernels = trace.kernels
    in_graph = numpy.flatnonzero(kernels["graph"])
    owner = numpy.full(len(kernels), -1)
    if len(in_graph):
        calls = pandas.MultiIndex.from_frame(kernels.loc[in_graph, ["process", "correlation"]])
        owner[in_graph], _ = pandas.factorize(calls)
        return Steps(LAUNCH, owner, [])
    found = periods(kernels)
    if found is None:
        return Steps(WHOLE, numpy.zeros(len(kernels), numpy.int64), [])
    rows, length = found
    owner[rows] = numpy.arange(len(rows)) // length
    note = f"no ranges: the same {length} kernels follow each other {len(rows) // length} times, each time is a step"
    return Steps(PERIOD, owner, [note])


def periods(kernels: pandas.DataFrame) -> tuple[numpy.ndarray, int] | None:
    """Find the kernels of whole periods on the GPU with most kernels: (their rows in order, kernels of a period).

    A period begins after the longest gap, on average. None if no sequence of kernels repeats exactly FEWEST_PERIODS
    times or more over most of the trace.
    """
    device = kernels["device"].mode()
    if not len(device):
        return None
    rows = kernels.index[kernels["device"] == device[0]].to_numpy()
    rows = rows[numpy.lexsort((kernels["end_ns"].to_numpy()[rows], kernels["start_ns"].to_numpy()[rows]))]
    sequence, _ = pandas.factorize(kernels["name"].astype(str).to_numpy()[rows])
    length = _period(sequence)
    if length is None:
        return None
    first, last = _longest_run(sequence[length:] == sequence[:-length])
    last += length  # the run's last kernel is compared with the one a period later
    whole = (last - first) // length
    if whole < FEWEST_PERIODS or last - first < SHARE_IN_PERIODS * len(rows):
        return None
    start, end = (kernels[name].to_numpy()[rows[first:last]] for name in ("start_ns", "end_ns"))
    gaps = numpy.append(0, start[1:] - end[:-1])
    mean = [gaps[place::length].mean() for place in range(length)]
    shift = int(numpy.argmax(mean))
    count = (last - first - shift) // length
    if count < FEWEST_PERIODS:  # the beginning of the run is as good a place
        shift, count = 0, whole
    return rows[first + shift : first + shift + count * length], length


def _period(sequence: numpy.ndarray) -> int | None:
    """Return the most common distance between neighbours of the rarest kernel that occurs often enough."""
    counts = numpy.bincount(sequence)
    often = numpy.flatnonzero(counts >= FEWEST_PERIODS)
    if not len(often) or len(sequence) < 2 * FEWEST_PERIODS:
        return None
    rarest = often[numpy.argmin(counts[often])]
    distances = numpy.diff(numpy.flatnonzero(sequence == rarest))
    per_period = numpy.bincount(distances).argmax()
    # A kernel that occurs several times in a period repeats at the sum of so many distances.
    for occurrences in range(1, len(distances) // 2 + 1):
        length = int(distances[:occurrences].sum()) if occurrences > 1 else int(per_period)
        matches = sequence[length:] == sequence[:-length]
        if length < len(sequence) // 2 + 1 and matches.mean() > SHARE_IN_PERIODS:
            return length
    return None


def _longest_run(matches: numpy.ndarray) -> tuple[int, int]:
    """Return (first, one past the last) of the longest run of True."""
    edges = numpy.flatnonzero(numpy.diff(numpy.concatenate([[0], matches.astype(int), [0]])))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return 0, 0
    longest = int(numpy.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest])
