"""Tables and rows of notebook 04: what a StepTrace says of its steps, parts, kernels and gaps.

Every time in one step is a median over the steps, so the parts of a step need not add up to its median exactly.
"""

import math

import numpy
import pandas

from ...trace import range_table
from ...trace.steps import MODES, StepTrace, short_name


def step_table(trace: StepTrace) -> pandas.DataFrame:
    """Return a line for each mode: steps, kernels, and medians in µs: step, kernels, gaps, launching on the CPU."""
    lines = []
    for mode in trace.modes:
        steps = trace.steps_of(mode)
        lines.append(
            {
                "step": MODES[mode],
                "steps": len(steps),
                "kernels": steps["kernels"].median(),
                "step µs": steps["step_us"].median(),
                "p20 µs": steps["step_us"].quantile(0.2),
                "p80 µs": steps["step_us"].quantile(0.8),
                "kernels µs": steps["busy_us"].median(),
                "gaps µs": steps["gap_us"].median(),
                "gaps %": 100 * gap_share(trace, mode),
                "launching on the CPU µs": steps["host_us"].median(),
            }
        )
    return pandas.DataFrame(lines)


def gap_share(trace: StepTrace, mode: str) -> float:
    """Return the share of a step in which nothing runs: the median gap time over the median step."""
    steps = trace.steps_of(mode)
    return steps["gap_us"].median() / max(steps["step_us"].median(), 1e-12)


def eager_over_replayed(trace: StepTrace) -> float | None:
    """Return a step launched kernel by kernel over one replayed; None if the trace does not have both."""
    if len(trace.modes) < 2:
        return None
    replayed, eager = (trace.steps_of(mode)["step_us"].median() for mode in ("graph", "eager"))
    return eager / replayed


def part_times(trace: StepTrace, mode: str) -> pandas.Series:
    """Return {part: median µs of its kernels in one step}, in the order in which parts begin, "gaps" last."""
    kernels = trace.kernels_of(mode)
    medians = _median_in_a_step(kernels, ["part"], "busy_us", len(trace.steps_of(mode)))
    order = kernels.assign(place=kernels.groupby("step").cumcount()).groupby("part")["place"].median().sort_values()
    times = medians[order.index]
    times["gaps"] = trace.steps_of(mode)["gap_us"].median()
    return times


def part_table(trace: StepTrace, most: int = 100) -> pandas.DataFrame:
    """Return a line for each part: for each mode its kernels and µs in one step, and its share of the kernels' µs.

    At most so many parts: the longest.
    """
    if not trace.modes:
        return pandas.DataFrame()
    columns, order = {}, {}
    for mode in trace.modes:
        times, kernels = part_times(trace, mode), trace.kernels_of(mode)
        counts = kernels.groupby("part").size() / kernels["step"].nunique()
        columns[f"{mode}: kernels"] = counts.reindex(times.index)
        columns[f"{mode}: µs"] = times
        columns[f"{mode}: % of kernels"] = (100 * times / times.drop("gaps").sum()).where(times.index != "gaps")
        order |= dict.fromkeys(_longest(times, most).index)
    return pandas.DataFrame(columns).loc[[*order, "gaps"]].rename_axis("part").reset_index()


def _longest(times: pandas.Series, most: int = 100) -> pandas.Series:
    """Return the longest parts out of part_times(), in its order, without gaps."""
    parts = times.iloc[:-1]
    return parts.iloc[sorted(parts.reset_index(drop=True).nlargest(most).index)]


def gaps(trace: StepTrace, mode: str) -> pandas.DataFrame:
    """Return a row for each two kernels that follow each other in a step: step, after, before (parts), gap_us."""
    kernels = trace.kernels_of(mode)
    after = kernels.groupby("step")["part"].shift()
    rows = kernels[["step", "gap_us"]].assign(after=after, before=kernels["part"])
    return rows.loc[after.notna(), ["step", "after", "before", "gap_us"]].reset_index(drop=True)


def gap_table(trace: StepTrace, most: int = 15) -> pandas.DataFrame:
    """Return where nothing runs in a step of the first mode: after and before which part, and for how long."""
    if not trace.modes:
        return pandas.DataFrame()
    mode = trace.modes[0]
    rows = _in_a_step(gaps(trace, mode), ["after", "before"], "gap_us", trace.steps_of(mode).index)
    rows["% of gaps"] = 100 * rows["in a step"] / max(rows["in a step"].sum(), 1e-12)
    rows = rows[["after", "before", "count", "median", "in a step", "% of gaps"]].head(most)
    return rows.rename(columns={"count": "gaps in a step", "median": "median µs", "in a step": "µs in a step"})


def kernel_table(trace: StepTrace, most: int = 40) -> pandas.DataFrame:
    """Return the kernels of a step of the first mode, longest first: part, how many, µs of one and of all, share."""
    if not trace.modes:
        return pandas.DataFrame()
    mode = trace.modes[0]
    kernels = trace.kernels_of(mode)
    kernels = kernels.assign(us=(kernels["end_ns"] - kernels["start_ns"]) / 1e3)
    rows = _in_a_step(kernels, ["part", "name"], "us", trace.steps_of(mode).index)
    rows["%"] = 100 * rows["in a step"] / max(rows["in a step"].sum(), 1e-12)
    rows["name"] = [short_name(name) for name in rows["name"]]
    rows = rows[["part", "name", "count", "median", "min", "max", "in a step", "%"]].head(most)
    return rows.rename(
        columns={
            "name": "kernel",
            "count": "kernels in a step",
            "median": "median µs",
            "min": "least µs",
            "max": "most µs",
            "in a step": "µs in a step",
        }
    )


def _in_a_step(rows: pandas.DataFrame, keys: list[str], column: str, steps) -> pandas.DataFrame:
    """Return for each value of `keys`: count in a step, median, min and max of one, and the median of a step's sum.

    steps: the numbers of all steps; one without such rows counts as 0 µs. The longest in a step first.
    """
    groups = rows.groupby(keys, sort=False)[column].agg(["count", "median", "min", "max"]).reset_index()
    groups["count"] /= len(steps)
    if not len(groups):
        return groups.assign(**{"in a step": 0.0})
    medians = _median_in_a_step(rows, keys, column, len(steps)).rename("in a step").reset_index()
    return groups.merge(medians, on=keys).sort_values("in a step", ascending=False, ignore_index=True, kind="stable")


def _median_in_a_step(rows: pandas.DataFrame, keys: list[str], column: str, steps: int) -> pandas.Series:
    """Return for each value of `keys` the median over all steps of a step's sum; values are 0 or more.

    A step without such rows counts as 0. There may be as many keys as rows: no table of steps by keys is made.
    """
    sums = rows.groupby([*keys, "step"])[column].sum().rename("sum").reset_index()
    sums = sums.sort_values([*keys, "sum"], ignore_index=True)
    groups = sums.groupby(keys, sort=False)["sum"]
    count = groups.count()
    first = count.cumsum() - count  # the row of each key's least sum
    middle = []
    for place in ((steps - 1) // 2, steps // 2):
        row = place - (steps - count)  # among the key's sums, before which all zeros come
        values = sums["sum"].to_numpy()[(first + row.clip(lower=0)).to_numpy()]
        middle.append(numpy.where(row >= 0, values, 0.0))
    return pandas.Series((middle[0] + middle[1]) / 2, index=count.index)


def ranges(trace: StepTrace, most: int = 60) -> pandas.DataFrame:
    """Return range_table() of the ranges that have work of a GPU, at most those with the longest time, in order."""
    if not trace.modes:
        return pandas.DataFrame()
    rows = range_table(trace.unfolded)
    rows = rows[rows["kernels"] > 0]
    rows = rows.loc[sorted(rows["total_us"].nlargest(most).index)].reset_index(drop=True)
    rows["share"] *= 100
    return rows.rename(
        columns={
            "path": "range",
            "total_us": "µs of all kernels",
            "share": "%",
            "span_us": "first to last µs",
            "host_us": "CPU µs",
        }
    )


# ---- two traces -----------------------------------------------------------------------------------------------------


def common_mode(one: StepTrace, other: StepTrace) -> str | None:
    """Return the mode in which two traces are compared: the replayed step if both have it, None if they share none."""
    return next((mode for mode in MODES if mode in one.modes and mode in other.modes), None)


def agreement(one: StepTrace, other: StepTrace, least_us: float = 5.0) -> pandas.DataFrame:
    """Return the parts of two traces of the same step: µs in one step of each, and the difference in %.

    The 100 longest parts that last at least `least_us` in either trace; NaN where a trace does not have the part.
    Empty without a common mode.
    """
    mode = common_mode(one, other)
    if mode is None:
        return pandas.DataFrame()
    times = [part_times(trace, mode).drop("gaps") for trace in (one, other)]
    order = list(dict.fromkeys([*times[0].index, *times[1].index]))
    columns = zip(_columns(one, other), times, strict=True)
    table = pandas.DataFrame({column: each.reindex(order) for column, each in columns})
    first, second = (table[column] for column in table.columns)
    table["difference %"] = 100 * (second / first - 1)
    table = table[table.iloc[:, :2].max(axis=1) >= least_us].rename_axis("part").reset_index()
    return table.loc[sorted(table.iloc[:, 1:3].max(axis=1).nlargest(100).index)].reset_index(drop=True)


def _columns(one: StepTrace, other: StepTrace) -> list[str]:
    """Return the names of the two columns of µs, which differ even if profiler and file name are the same."""
    names = [f"{trace.recorded.profiler}: {trace.name} µs" for trace in (one, other)]
    return names if names[0] != names[1] else [names[0], f"other {names[1]}"]


def agreement_rows(one: StepTrace, other: StepTrace) -> list[dict]:
    """Return rows for a run: the parts of agreement() that both traces have."""
    profilers = [trace.recorded.profiler for trace in (one, other)] if common_mode(one, other) else []
    return [
        {
            "status": "fact",
            "phase": "profile",
            "part": part,
            "profilers": profilers,
            "median_us": [first, second],
            "difference_percent": difference,
        }
        for part, first, second, difference in agreement(one, other).itertuples(index=False)
        if math.isfinite(difference)
    ]


def rows(trace: StepTrace) -> list[dict]:
    """Return rows for a run: what one step takes, whole ("step"), by part and in gaps, in each mode."""
    made = []
    for mode in trace.modes:
        steps = trace.steps_of(mode)
        parts = part_times(trace, mode)
        times = [("step", steps["step_us"].median()), *_longest(parts).items(), ("gaps", parts["gaps"])]
        made += [
            {
                "status": "fact",
                "phase": "profile",
                "timer": trace.recorded.profiler,
                "range": trace.step,
                "mode": mode,
                "part": part,
                "median_us": float(us),
                "count": len(steps),
            }
            for part, us in times
        ]
    return made
