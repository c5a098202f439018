"""What a capture says of one step: how long it takes, which part keeps the GPU busy, and where nothing runs.

A step is a range with work of a GPU that occurs many times: "decode step" if there is one, as step/capture.py records
it, else the most frequent range of two kernels or more. A capture without ranges has the launches of its CUDA graphs
for steps, or is one step itself. The parts of a step are the ranges directly inside it.

Within a step a kernel counts from when those before it have all ended, so that parts and gaps add up to the step, from
the start of its first kernel to the end of its last.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy
import pandas

from ... import trace as profiling
from ...layer.step import STEP
from ...trace import Capture, graphs, range_table
from ..decode_step.record import EAGER, GRAPH, WARM_UP

LAUNCH, WHOLE = "(launch of a CUDA graph)", "(whole capture)"  # steps of captures without ranges
REST = "(outside the parts)"
MODES = {"graph": "replayed as a CUDA graph", "eager": "launched kernel by kernel"}


@dataclass(frozen=True)
class Analysis:
    """A capture, taken apart. Times in us unless a name says otherwise.

    name: of the file. capture: as recorded. unfolded: with the kernels of graphs under the ranges around their capture,
    as far as known. step: name of the range that is a step. steps: mode (key of MODES), first_ns, last_ns, step_us,
    busy_us, gap_us, kernels, host_us (on the CPU: launching it), launch (of its graph). kernels, in order of start
    within a step: step (row of steps), mode, part, name, stream, start_ns, end_ns, busy_us, gap_us (before it, 0 for a
    step's first), launch_start_ns, launch_end_ns. notes: sentences.
    """

    name: str
    capture: Capture
    unfolded: Capture
    step: str
    steps: pandas.DataFrame
    kernels: pandas.DataFrame
    notes: tuple[str, ...]

    @property
    def modes(self) -> list[str]:
        """Those of MODES that occur, the replayed step first; none in NOTHING."""
        return [mode for mode in MODES if (self.steps["mode"] == mode).any()]


NOTHING = Analysis(
    "", None, None, "", pandas.DataFrame({"mode": []}), pandas.DataFrame({"mode": []}), ("There is no capture.",)
)  # fmt: skip


# ---- from a capture to its steps ------------------------------------------------------------------------------------


def analyse(path, step_range: str = "") -> Analysis:
    """The Analysis of a capture; NOTHING of None. step_range: name of the range that is a step; "" chooses.

    Errors are those of profiling.read(); ValueError too if no range of that name has work of a GPU.
    """
    if path is None:
        return NOTHING
    capture = profiling.read(path)
    unfolded, notes = _unfolded(capture)
    step, owner = _steps(unfolded, step_range)
    kernels = _kernels(unfolded, owner)
    kernels["part"] = _parts(unfolded, kernels) if step not in (LAUNCH, WHOLE) else kernels["name"].map(short_name)
    if left := sorted(set(unfolded.kernels["device"]) - set(kernels["device"])):
        notes.append(f"steps are taken from GPU {kernels['device'].iloc[0]}; others in the capture: {left}")
    steps = _step_table(kernels)
    kernels["mode"] = steps["mode"].to_numpy()[kernels["step"]]
    return Analysis(Path(path).name, capture, unfolded, step, steps, kernels, (*capture.notes, *notes))


def _unfolded(capture: Capture) -> tuple[Capture, list[str]]:
    if graphs.has_captured(capture):
        return graphs.unfolded(capture), []
    paths = set(capture.ranges["path"])
    if not capture.kernels["graph"].any():
        return capture, []
    if {EAGER, GRAPH} <= paths:
        try:
            return graphs.by_position(capture, EAGER, GRAPH), []
        except ValueError as error:
            return capture, [f"the kernels of the replays cannot be told apart by part: {error}"]
    return capture, [
        "the capture does not say when its graphs were captured, so their kernels have only the ranges around the "
        "launch; capture the graph while Nsight Systems records with --cuda-graph-trace=node"
    ]


def _steps(capture: Capture, wanted: str) -> tuple[str, numpy.ndarray]:
    """(name of a step, for each kernel the row of the range that is its step, or -1). Of nested ones the innermost."""
    ranges, pairs = capture.ranges, capture.enclosing()
    warm = ranges["path"].astype(str).str.split(" / ").str[0] == WARM_UP
    pairs = pairs[~warm.to_numpy()[pairs["range"]]]
    names = profiling.capture.labels(ranges["domain"], ranges["name"])
    named = pairs.assign(name=numpy.array(names, dtype=object)[pairs["range"]])
    counts = named.groupby("name").agg(ranges=("range", "nunique"), kernels=("kernel", "count"))
    if wanted and wanted not in counts.index:
        near = difflib.get_close_matches(wanted, counts.index, n=1)
        raise ValueError(
            f"no range {wanted!r} has work of a GPU in this capture{f' (did you mean {near[0]!r}?)' if near else ''}; "
            f"those that have: {', '.join(counts.sort_values('ranges', ascending=False).index[:8]) or 'none'}"
        )
    owner = numpy.full(len(capture.kernels), -1)
    if not len(counts):
        return _steps_without_ranges(capture, owner)
    if not wanted:
        several = counts[counts["kernels"] >= 2 * counts["ranges"]]
        order = (several if len(several) else counts).sort_values(["ranges", "kernels"], ascending=False)
        wanted = STEP if STEP in counts.index else order.index[0]
    mine = named[named["name"] == wanted].sort_values("range")  # inner ranges begin later
    owner[mine["kernel"].to_numpy()] = mine["range"].to_numpy()
    return wanted, owner


def _steps_without_ranges(capture: Capture, owner) -> tuple[str, numpy.ndarray]:
    """The same, with the number of the launch, or 0 for all."""
    kernels = capture.kernels
    rows = numpy.flatnonzero(kernels["graph"])
    if not len(rows):
        owner[:] = 0
        return WHOLE, owner
    owner[rows], _ = pandas.factorize(pandas.MultiIndex.from_frame(kernels.loc[rows, ["process", "correlation"]]))
    return LAUNCH, owner


def _kernels(capture: Capture, owner) -> pandas.DataFrame:
    """The kernels of steps on the GPU that is busiest with them, in order, with the time each is busy and the gap."""
    rows = numpy.flatnonzero(owner >= 0)
    kernels = capture.kernels.iloc[rows].assign(step=owner[rows])
    work = (kernels["end_ns"] - kernels["start_ns"]).groupby(kernels["device"]).sum()
    kernels = kernels[kernels["device"] == work.idxmax()].sort_values(["step", "start_ns", "end_ns"], ignore_index=True)
    kernels["owner"] = kernels["step"]
    kernels["step"], _ = pandas.factorize(kernels["step"])
    until = kernels.groupby("step")["end_ns"].cummax()
    before = until.groupby(kernels["step"]).shift().fillna(kernels["start_ns"]).astype("int64")
    start, end = kernels["start_ns"], kernels["end_ns"]
    kernels["gap_us"] = (start - before).clip(lower=0) / 1e3
    kernels["busy_us"] = (end - numpy.maximum(start, before)).clip(lower=0) / 1e3
    return kernels.astype({"name": str})


def _step_table(kernels: pandas.DataFrame) -> pandas.DataFrame:
    kernels = kernels.assign(launch=kernels["process"] * (1 << 40) + kernels["correlation"])
    groups = kernels.groupby("step")
    steps = groups.agg(
        first_ns=("start_ns", "min"), last_ns=("end_ns", "max"), busy_us=("busy_us", "sum"), gap_us=("gap_us", "sum"),
        kernels=("start_ns", "count"), graph=("graph", "any"), launch=("launch", "first"),
    )  # fmt: skip
    steps["mode"] = numpy.where(steps.pop("graph"), "graph", "eager")
    steps["step_us"] = (steps["last_ns"] - steps["first_ns"]) / 1e3
    host = (groups["launch_end_ns"].max() - groups["launch_start_ns"].min()) / 1e3
    shared = steps.groupby("launch")["mode"].transform("count")  # one launch of a graph runs several steps
    return steps.assign(host_us=numpy.where(steps["mode"] == "graph", host / shared, host))


def _parts(capture: Capture, kernels: pandas.DataFrame) -> list[str]:
    """For each kernel the name of the range directly inside its step; of a step without any, the kernels' own names."""
    ranges, chains, found, parts = capture.ranges, capture.chains, {}, []
    names = profiling.capture.labels(ranges["domain"], ranges["name"])
    for node in kernels["node"].tolist():
        if node not in found:
            found[node] = chains.rows(node)[::-1]  # outermost first
    for node, owner in zip(kernels["node"].tolist(), kernels["owner"].tolist(), strict=True):
        inner = found[node][found[node].index(owner) + 1 :]
        parts.append(names[inner[0]] if inner else REST)
    return parts if set(parts) != {REST} else [short_name(name) for name in kernels["name"]]


def short_name(kernel: str, width: int = 48) -> str:
    """A kernel's name without return type, namespaces, template arguments and parameters, at most `width` long."""
    bare = re.sub(r"^(void|__global__)\s+", "", kernel)
    bare = re.split(r"[<(]", bare.replace("(anonymous namespace)::", ""))[0] or bare
    bare = bare.split("::")[-1] or bare
    return bare if len(bare) <= width else bare[: width - 1] + "…"


# ---- tables ---------------------------------------------------------------------------------------------------------


def step_table(of: Analysis) -> pandas.DataFrame:
    """A line for each mode: steps, kernels, and in µs the medians of step, kernels, gaps, and launching on the CPU."""
    lines = []
    for mode in of.modes:
        steps = of.steps[of.steps["mode"] == mode]
        lines.append({
            "step": MODES[mode], "steps": len(steps), "kernels": steps["kernels"].median(),
            "step µs": steps["step_us"].median(), "p20 µs": steps["step_us"].quantile(0.2),
            "p80 µs": steps["step_us"].quantile(0.8), "kernels µs": steps["busy_us"].median(),
            "gaps µs": steps["gap_us"].median(), "gaps %": 100 * steps["gap_us"].sum() / steps["step_us"].sum(),
            "launching on the CPU µs": steps["host_us"].median(),
        })  # fmt: skip
    return pandas.DataFrame(lines)


def part_times(of: Analysis, mode: str) -> pandas.Series:
    """{part: median µs of its kernels in one step}, gaps last, in the order in which parts begin."""
    kernels = of.kernels[of.kernels["mode"] == mode]
    sums = kernels.pivot_table(index="step", columns="part", values="busy_us", aggfunc="sum", fill_value=0.0)
    order = kernels.assign(place=kernels.groupby("step").cumcount()).groupby("part")["place"].median().sort_values()
    times = sums.median()[order.index]
    times["gaps"] = of.steps.loc[of.steps["mode"] == mode, "gap_us"].median()
    return times


def part_table(of: Analysis) -> pandas.DataFrame:
    """A line for each part: kernels and µs in one step, and its share of the step's kernels, for each mode."""
    if not of.modes:
        return pandas.DataFrame()
    columns = {}
    for mode in of.modes:
        times, kernels = part_times(of, mode), of.kernels[of.kernels["mode"] == mode]
        counts = kernels.groupby("part").size() / kernels["step"].nunique()
        columns[f"{mode}: kernels"] = counts.reindex(times.index)
        columns[f"{mode}: µs"] = times
        columns[f"{mode}: % of kernels"] = (100 * times / times.drop("gaps").sum()).where(times.index != "gaps")
    table = pandas.DataFrame(columns)
    order = list(dict.fromkeys(part for mode in of.modes for part in part_times(of, mode).index if part != "gaps"))
    return table.loc[[*order, "gaps"]].rename_axis("part").reset_index()


def gaps(of: Analysis, mode: str) -> pandas.DataFrame:
    """One row for each two kernels that follow each other in a step: step, after, before (parts), gap_us."""
    kernels = of.kernels[of.kernels["mode"] == mode]
    after = kernels.groupby("step")["part"].shift()
    found = pandas.DataFrame({
        "step": kernels["step"], "after": after, "before": kernels["part"], "gap_us": kernels["gap_us"],
    })  # fmt: skip
    return found[after.notna()].reset_index(drop=True)


def gap_table(of: Analysis, most: int = 15) -> pandas.DataFrame:
    """Where nothing runs in a step of the first mode: after and before which part, gaps in a step, their µs, share."""
    if not of.modes:
        return pandas.DataFrame()
    mode = of.modes[0]
    found, steps = gaps(of, mode), (of.steps["mode"] == mode).sum()
    rows = found.groupby(["after", "before"], sort=False)["gap_us"].agg(["count", "median", "sum"]).reset_index()
    rows["count"], rows["sum"] = rows["count"] / steps, rows["sum"] / steps
    rows["% of gaps"] = 100 * rows["sum"] / max(rows["sum"].sum(), 1e-12)
    rows = rows.sort_values("sum", ascending=False, ignore_index=True).head(most)
    return rows.rename(columns={"count": "in a step", "median": "median µs", "sum": "µs in a step"})


def kernel_table(of: Analysis, most: int = 40) -> pandas.DataFrame:
    """The kernels of a step of the first mode, longest first: part, how many in a step, µs of one and of all, share."""
    if not of.modes:
        return pandas.DataFrame()
    mode = of.modes[0]
    kernels, steps = of.kernels[of.kernels["mode"] == mode], (of.steps["mode"] == mode).sum()
    us = (kernels["end_ns"] - kernels["start_ns"]) / 1e3
    rows = us.groupby([kernels["part"], kernels["name"]]).agg(["count", "median", "min", "max", "sum"]).reset_index()
    rows["count"], rows["sum"] = rows["count"] / steps, rows["sum"] / steps
    rows["%"] = 100 * rows["sum"] / rows["sum"].sum()
    rows["name"] = [short_name(name) for name in rows["name"]]
    rows = rows.sort_values("sum", ascending=False, ignore_index=True).head(most)
    return rows.rename(columns={
        "name": "kernel", "count": "in a step", "median": "median µs", "min": "least µs", "max": "most µs",
        "sum": "µs in a step",
    })  # fmt: skip


def ranges(of: Analysis, most: int = 60) -> pandas.DataFrame:
    """range_table() of the ranges that have work of a GPU, at most those with the longest time, in order."""
    if not of.modes:
        return pandas.DataFrame()
    rows = range_table(of.unfolded)
    rows = rows[rows["kernels"] > 0]
    rows = rows.loc[sorted(rows["total_us"].nlargest(most).index)]
    rows["share"] *= 100
    return rows.rename(columns={
        "path": "range", "total_us": "µs of all kernels", "share": "%", "span_us": "first to last µs",
        "host_us": "CPU µs",
    }).reset_index(drop=True)  # fmt: skip


def agreement(one: Analysis, other: Analysis, least_us: float = 5.0) -> pandas.DataFrame:
    """Parts of two captures of the same step beside each other: µs in one step of each, and the difference in %.

    Only parts that last `least_us` in either; the replayed step if both have it. Empty if one is NOTHING.
    """
    if not one.modes or not other.modes:
        return pandas.DataFrame()
    mode = next((mode for mode in MODES if mode in one.modes and mode in other.modes), None)
    if mode is None:
        raise ValueError(f"{one.name} and {other.name} have no steps of the same kind: {one.modes}, {other.modes}")
    names = [f"{of.capture.profiler}: {of.name} µs" for of in (one, other)]
    table = pandas.DataFrame({name: part_times(of, mode) for name, of in zip(names, (one, other), strict=True)})
    table = table.drop("gaps")[table.drop("gaps").max(axis=1) >= least_us]
    table["difference %"] = 100 * (table[names[1]] / table[names[0]] - 1)
    return table.rename_axis("part").reset_index()


def agreement_rows(one: Analysis, other: Analysis) -> list[dict]:
    """Rows for a run: the parts of agreement(), what each profiler says of them, and the difference in %."""
    profilers = [of.capture.profiler for of in (one, other)] if one.modes and other.modes else []
    return [
        {
            "status": "fact", "phase": "profile", "part": part, "profilers": profilers, "median_us": [first, second],
            "difference_percent": difference,
        }
        for part, first, second, difference in agreement(one, other).itertuples(index=False)
    ]  # fmt: skip


def rows(of: Analysis) -> list[dict]:
    """Rows for a run: what one step takes, whole ("step"), by part and in gaps, in each mode."""
    common = {"status": "fact", "phase": "profile", "timer": of.capture.profiler, "range": of.step} if of.modes else {}
    made = []
    for mode in of.modes:
        steps, times = of.steps[of.steps["mode"] == mode], part_times(of, mode)
        times = {"step": steps["step_us"].median()} | times.to_dict()
        made += [
            common | {"mode": mode, "part": part, "median_us": float(us), "count": len(steps)}
            for part, us in times.items()
        ]
    return made


# ---- sentences ------------------------------------------------------------------------------------------------------


def conditions(of: Analysis) -> str:
    """What the figures hold for, in one line."""
    if not of.modes:
        return "no capture"
    gpu = ", ".join(dict.fromkeys(of.capture.gpus)) or "GPU not recorded"
    counts = ", ".join(f"{(of.steps['mode'] == mode).sum()} {MODES[mode]}" for mode in of.modes)
    return f"{gpu} · {of.capture.profiler}: {of.name} · steps: {of.step}, {counts}, medians"


def overhead(of: Analysis) -> float | None:
    """A step launched kernel by kernel over one replayed; None if the capture has not both."""
    if len(of.modes) < 2:
        return None
    graph, eager = (of.steps.loc[of.steps["mode"] == mode, "step_us"].median() for mode in ("graph", "eager"))
    return eager / graph


def answers(of: Analysis) -> list[str]:
    """What the capture says to the question of notebook 04, a sentence each; only what it can answer."""
    if not of.modes:
        return list(of.notes)
    said = [_step_sentence(of, mode) for mode in of.modes]
    mode = of.modes[0]
    if ratio := overhead(of):
        busy = [of.steps.loc[of.steps["mode"] == one, "busy_us"].median() for one in ("graph", "eager")]
        said.append(
            f"Launched kernel by kernel a step takes {ratio:.2f} times as long as replayed, while its kernels take "
            f"{busy[1] / busy[0]:.2f} times as long; the rest of the difference is the GPU waiting for launches."
        )
    times = part_times(of, mode).drop("gaps")
    longest = times.sort_values(ascending=False).index[:3]
    shares = ", ".join(f"{part} {times[part]:,.1f} µs ({100 * times[part] / times.sum():.0f} %)" for part in longest)
    said.append(f"The longest parts of the {mode_noun(mode)}'s kernels: {shares}.")
    if "gdn" in times.index and "gdn" not in longest:
        said.append(f"gdn takes {times['gdn']:,.1f} µs, {100 * times['gdn'] / times.sum():.0f} % of the kernels' time.")
    where = gap_table(of, 1)
    if len(where) and where["µs in a step"][0] > 0:
        first = where.iloc[0]
        said.append(
            f"Of the time in gaps, {first['% of gaps']:.0f} % lies after {first['after']} and before "
            f"{first['before']}: {first['µs in a step']:,.1f} µs in a step."
        )
    return said


def mode_noun(mode: str) -> str:
    return {"graph": "replayed step", "eager": "eager step"}[mode]


def _step_sentence(of: Analysis, mode: str) -> str:
    steps = of.steps[of.steps["mode"] == mode]
    step, busy = steps["step_us"].median(), steps["busy_us"].median()
    between = gaps(of, mode)
    pauses = between[between["gap_us"] > 0]["gap_us"]
    count = len(pauses) / len(steps)
    text = (
        f"A step {MODES[mode]} takes {step:,.1f} µs; for {busy:,.1f} of them ({100 * busy / step:.0f} %) a kernel runs"
    )
    if not len(pauses):
        return f"{text}, and nothing ever waits between two kernels."
    return f"{text}, {count:,.0f} gaps of {pauses.median():.2f} µs (median) make up the rest."
