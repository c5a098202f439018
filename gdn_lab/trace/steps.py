"""Take the steps out of a trace: how long each is, which part keeps the GPU busy, and where nothing runs.

A step is a range with work of a GPU that occurs many times: "decode step" if there is one, else the most frequent range
of two kernels or more. In a trace without ranges each launch of a CUDA graph is a step, or each period of the kernels,
or the whole trace is one (choose_steps.py). The parts of a step are the ranges directly inside it.

Within a step a kernel counts from when those before it have all ended, so parts and gaps add up to the step, from the
start of its first kernel to the end of its last.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy
import pandas

from ..names import readable
from . import graphs, limits, read
from .build import Trace, labels
from .choose_steps import WITHOUT_RANGES, choose, part_of_kernel
from .ranges import EAGER, GRAPH

REST = "(outside the parts)"
GAPS = "gaps"  # what tables of parts call the time between kernels, so no part
MODES = {"graph": "replayed as a CUDA graph", "eager": "launched kernel by kernel"}


@dataclass(frozen=True)
class StepTrace:
    """A trace as steps. Times in us unless a name says otherwise.

    name: of the file. recorded: the Trace as read. unfolded: with the kernels of graphs under the ranges open at graph
    capture, as far as known. step: name of the range that is a step. steps: mode (key of MODES), first_ns, last_ns,
    step_us, busy_us, gap_us, kernels, host_us (launching it, on the CPU), launch (of its graph). kernels, in order of
    start within a step: step (row of steps), mode, part, name, stream, start_ns, end_ns, busy_us, gap_us (before it, 0
    for a step's first), launch_start_ns, launch_end_ns. notes: sentences.
    """

    name: str
    recorded: Trace
    unfolded: Trace
    step: str
    steps: pandas.DataFrame
    kernels: pandas.DataFrame
    notes: tuple[str, ...]

    @property
    def modes(self) -> list[str]:
        """Those of MODES that occur, the replayed step first; none in NO_TRACE."""
        return [mode for mode in MODES if (self.steps["mode"] == mode).any()]

    def steps_of(self, mode: str) -> pandas.DataFrame:
        """The rows of steps of one mode."""
        return self.steps[self.steps["mode"] == mode]

    def kernels_of(self, mode: str) -> pandas.DataFrame:
        """The rows of kernels of one mode."""
        return self.kernels[self.kernels["mode"] == mode]


_NO_ROWS = pandas.DataFrame({"mode": []})
NO_TRACE = StepTrace(
    name="", recorded=None, unfolded=None, step="", steps=_NO_ROWS, kernels=_NO_ROWS, notes=("There is no trace.",)
)


def read_steps(path, step_range: str = "") -> StepTrace:
    """Read a trace file and find its steps; NO_TRACE for None.

    step_range: name of the range that is a step, or names separated by commas; "" chooses. Errors are those of
    trace.read(); ValueError too if no range of such a name has work of a GPU.
    """
    if path is None:
        return NO_TRACE
    trace = read(path)
    with limits.one_sentence(path):
        return _step_trace(path, trace, step_range)


def _step_trace(path, trace: Trace, step_range: str) -> StepTrace:
    unfolded, notes = _unfolded(trace)
    step, owner, about_steps = choose(unfolded, step_range)
    notes += about_steps
    kernels = _kernels(unfolded, owner)
    if step in WITHOUT_RANGES:
        kernels["part"] = [part_of_kernel(name, short_name(name)) for name in kernels["name"]]
    else:
        kernels["part"] = _parts(unfolded, kernels)
    if left_out := sorted(set(unfolded.kernels["device"]) - set(kernels["device"])):
        notes.append(f"steps are those of GPU {kernels['device'].iloc[0]}; others in the trace: {left_out}")
    steps = _step_rows(kernels)
    kernels["mode"] = steps["mode"].to_numpy()[kernels["step"]]
    return StepTrace(readable(Path(path).name), trace, unfolded, step, steps, kernels, (*trace.notes, *notes))


def short_name(kernel: str, width: int = 48) -> str:
    """Return a kernel's name without type, namespaces, template arguments and parameters, at most `width` long."""
    bare = re.sub(r"^(void|__global__)\s+", "", kernel)
    bare = re.split(r"[<(]", bare.replace("(anonymous namespace)::", ""))[0] or bare
    bare = bare.split("::")[-1] or bare
    return bare if len(bare) <= width else bare[: width - 1] + "…"


def _unfolded(trace: Trace) -> tuple[Trace, list[str]]:
    """Return (the trace with the kernels of graphs under the ranges of their parts, notes if that cannot be)."""
    if graphs.has_graph_capture(trace):
        return graphs.unfolded(trace), []
    if not trace.kernels["graph"].any():
        return trace, []
    if {EAGER, GRAPH} <= set(trace.ranges["path"]):
        try:
            return graphs.by_position(trace, EAGER, GRAPH), []
        except ValueError as error:
            return trace, [f"the kernels of the replays cannot be attributed to parts: {error}"]
    return trace, [
        "the trace does not say when its CUDA graphs were captured, so their kernels have only the ranges around the "
        "launch; capture the graph while Nsight Systems records with --cuda-graph-trace=node"
    ]


def _kernels(trace: Trace, owner) -> pandas.DataFrame:
    """Return the kernels of steps on the GPU that is busiest with them, in order, with busy time and gap of each."""
    rows = numpy.flatnonzero(owner >= 0)
    kernels = trace.kernels.iloc[rows].assign(owner=owner[rows])
    work = (kernels["end_ns"] - kernels["start_ns"]).groupby(kernels["device"]).sum()
    kernels = kernels[kernels["device"] == work.idxmax()].sort_values(
        ["owner", "start_ns", "end_ns"], ignore_index=True
    )
    kernels["step"], _ = pandas.factorize(kernels["owner"])
    until = kernels.groupby("step")["end_ns"].cummax()
    before = until.groupby(kernels["step"]).shift().fillna(kernels["start_ns"]).astype("int64")
    start, end = kernels["start_ns"], kernels["end_ns"]
    kernels["gap_us"] = (start - before).clip(lower=0) / 1e3
    kernels["busy_us"] = (end - numpy.maximum(start, before)).clip(lower=0) / 1e3
    return kernels.astype({"name": str})


def _step_rows(kernels: pandas.DataFrame) -> pandas.DataFrame:
    kernels = kernels.assign(launch=kernels.groupby(["process", "correlation"]).ngroup())
    groups = kernels.groupby("step")
    steps = groups.agg(
        first_ns=("start_ns", "min"),
        last_ns=("end_ns", "max"),
        busy_us=("busy_us", "sum"),
        gap_us=("gap_us", "sum"),
        kernels=("start_ns", "count"),
        graph=("graph", "any"),
        launch=("launch", "first"),
    )
    steps["mode"] = numpy.where(steps.pop("graph"), "graph", "eager")
    steps["step_us"] = (steps["last_ns"] - steps["first_ns"]) / 1e3
    host = (groups["launch_end_ns"].max() - groups["launch_start_ns"].min()) / 1e3
    shared = steps.groupby("launch")["mode"].transform("count")  # one launch of a graph may run several steps
    return steps.assign(host_us=numpy.where(steps["mode"] == "graph", host / shared, host))


def _parts(trace: Trace, kernels: pandas.DataFrame) -> list[str]:
    """Return for each kernel the name of the range directly inside its step, or its short name if steps have none."""
    names = [
        "gaps (a range)" if name == GAPS else name for name in labels(trace.ranges["domain"], trace.ranges["name"])
    ]
    nodes = kernels["node"].tolist()
    enclosing = {node: trace.stacks.rows(node)[::-1] for node in set(nodes)}  # outermost first
    parts = []
    for node, step in zip(nodes, kernels["owner"].tolist(), strict=True):
        inner = enclosing[node][enclosing[node].index(step) + 1 :]
        parts.append(names[inner[0]] if inner else REST)
    return parts if set(parts) != {REST} else [short_name(name) for name in kernels["name"]]
