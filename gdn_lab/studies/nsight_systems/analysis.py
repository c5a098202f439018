"""Tables and rows of notebook 04: what a StepTrace says of its steps, parts, kernels and gaps.

Tables, sentences and figures of one trace show one step, that of median length, so its parts and gaps add up to it.
Rows, and what compares two traces, are medians over all steps, which add up nearly.
"""

import math

import numpy
import pandas

from ...trace import range_table
from ...trace.steps import MODES, StepTrace, short_name


def median_step(trace: StepTrace, mode: str) -> pandas.Series:
    """Return the row of trace.steps that has the median length; of two in the middle the shorter."""
    steps = trace.steps_of(mode).sort_values("step_us", kind="stable")
    return steps.iloc[(len(steps) - 1) // 2]


def kernels_of_step(trace: StepTrace, mode: str) -> pandas.DataFrame:
    """Return the rows of trace.kernels of the step of median length."""
    return trace.kernels[trace.kernels["step"] == median_step(trace, mode).name]


def step_table(trace: StepTrace) -> pandas.DataFrame:
    """Return a line for each mode: how many steps, p20 and p80 of their length, and the step of median length, µs."""
    lines = []
    for mode in trace.modes:
        steps, step = trace.steps_of(mode), median_step(trace, mode)
        between = gaps(trace, mode)["gap_us"]
        lines.append(
            {
                "step": MODES[mode],
                "steps": len(steps),
                "p20 µs": steps["step_us"].quantile(0.2),
                "p80 µs": steps["step_us"].quantile(0.8),
                "step µs": step["step_us"],
                "kernels": int(step["kernels"]),
                "kernels µs": step["busy_us"],
                "gaps": int((between > 0).sum()),
                "gaps µs": step["gap_us"],
                "gaps %": 100 * gap_share(trace, mode),
                "longest gap µs": between.max() if len(between) else 0.0,
                "launching on the CPU µs": step["host_us"],
            }
        )
    return pandas.DataFrame(lines)


def gap_share(trace: StepTrace, mode: str) -> float:
    """Return the share of the step of median length in which nothing runs."""
    step = median_step(trace, mode)
    return step["gap_us"] / max(step["step_us"], 1e-12)


def eager_over_replayed(trace: StepTrace) -> float | None:
    """Return a step launched kernel by kernel over one replayed; None if the trace does not have both, or no time."""
    if len(trace.modes) < 2:
        return None
    replayed, eager = (median_step(trace, mode)["step_us"] for mode in ("graph", "eager"))
    return eager / replayed if replayed else None


def parts_of_step(trace: StepTrace, mode: str) -> pandas.Series:
    """Return {part: µs of its kernels} of the step of median length, and "gaps" last. They add up to the step.

    In the order of part_times(); a part that only other steps have takes 0.
    """
    times = kernels_of_step(trace, mode).groupby("part")["busy_us"].sum()
    times = times.reindex(part_times(trace, mode).index, fill_value=0.0)
    times["gaps"] = median_step(trace, mode)["gap_us"]
    return times


def part_times(trace: StepTrace, mode: str) -> pandas.Series:
    """Return {part: median over the steps of µs of its kernels}, in the order in which parts begin, "gaps" last."""
    kernels = trace.kernels_of(mode)
    medians = _median_in_a_step(kernels, len(trace.steps_of(mode)))
    order = kernels.assign(place=kernels.groupby("step").cumcount()).groupby("part")["place"].median().sort_values()
    times = medians[order.index]
    times["gaps"] = trace.steps_of(mode)["gap_us"].median()
    return times


def part_table(trace: StepTrace, most: int = 100) -> pandas.DataFrame:
    """Return a line for each part: for each mode its kernels, µs and % of the step of median length.

    At most `most` parts, the longest; the others are one line. The last lines are the gaps and the step, their sum.
    """
    if not trace.modes:
        return pandas.DataFrame()
    columns, order = {}, {}
    for mode in trace.modes:
        times, kernels = parts_of_step(trace, mode), kernels_of_step(trace, mode)
        counts = kernels.groupby("part").size().reindex(times.index[:-1], fill_value=0)
        columns[f"{mode}: kernels"], columns[f"{mode}: µs"] = counts, times
        order |= dict.fromkeys(_longest(times, most).index)
    every = pandas.DataFrame(columns)
    shown = every.loc[[*order, "gaps"]]
    others = every.drop(index=shown.index)
    lines = [shown.iloc[:-1], *([_sum_line(others, "(other parts)")] if len(others) else []), shown.iloc[-1:]]
    table = pandas.concat([*lines, _sum_line(every, "the whole step")])
    for mode in trace.modes:
        table[f"{mode}: kernels"] = table[f"{mode}: kernels"].astype("Int64")  # gaps have none
        times = table[f"{mode}: µs"]
        table.insert(table.columns.get_loc(times.name) + 1, f"{mode}: %", 100 * times / max(times.iloc[-1], 1e-12))
    return table.rename_axis("part").reset_index()


def _sum_line(table: pandas.DataFrame, name: str) -> pandas.DataFrame:
    return table.sum().to_frame(name).T


def _longest(times: pandas.Series, most: int = 100) -> pandas.Series:
    """Return the longest parts out of part_times(), in its order, without gaps."""
    parts = times.iloc[:-1]
    return parts.iloc[sorted(parts.reset_index(drop=True).nlargest(most).index)]


def gaps(trace: StepTrace, mode: str) -> pandas.DataFrame:
    """Return a row for each two kernels that follow each other in the step of median length.

    after, before: their parts. gap_us: 0 if the second starts before the first ends.
    """
    kernels = kernels_of_step(trace, mode)
    rows = kernels[["gap_us"]].assign(after=kernels["part"].shift(), before=kernels["part"])
    return rows.loc[rows["after"].notna(), ["after", "before", "gap_us"]].reset_index(drop=True)


def gap_table(trace: StepTrace, most: int = 15) -> pandas.DataFrame:
    """Return where nothing runs in a step of the first mode: after and before which part, and for how long."""
    if not trace.modes:
        return pandas.DataFrame()
    rows = gaps(trace, trace.modes[0])
    rows = _sums(rows[rows["gap_us"] > 0], ["after", "before"], "gap_us")
    names = {"count": "gaps", "sum": "µs in the step", "max": "longest µs", "%": "% of gaps"}
    return rows[["after", "before", *names]].head(most).rename(columns=names)


def kernel_table(trace: StepTrace, most: int = 40) -> pandas.DataFrame:
    """Return the kernels of a step of the first mode, longest first: part, how many, their own µs, share of the sum."""
    if not trace.modes:
        return pandas.DataFrame()
    kernels = kernels_of_step(trace, trace.modes[0])
    kernels = kernels.assign(us=(kernels["end_ns"] - kernels["start_ns"]) / 1e3)
    rows = _sums(kernels, ["part", "name"], "us")
    rows["name"] = [short_name(name) for name in rows["name"]]
    names = {
        "name": "kernel",
        "count": "kernels",
        "sum": "µs in the step",
        "min": "shortest µs",
        "max": "longest µs",
        "%": "% of kernels",
    }
    return rows[["part", *names]].head(most).rename(columns=names)


def _sums(rows: pandas.DataFrame, keys: list[str], column: str) -> pandas.DataFrame:
    """Return for each value of `keys`: count, sum, min, max and % of the whole sum. The largest sum first."""
    groups = rows.groupby(keys, sort=False)[column].agg(["count", "sum", "min", "max"]).reset_index()
    groups["%"] = 100 * groups["sum"] / max(groups["sum"].sum(), 1e-12)
    return groups.sort_values("sum", ascending=False, ignore_index=True, kind="stable")


def _median_in_a_step(kernels: pandas.DataFrame, steps: int) -> pandas.Series:
    """Return for each part the median over all steps of a step's sum of busy_us.

    A step without the part counts as 0. There may be as many parts as kernels: no table of steps by parts is made.
    """
    sums = kernels.groupby(["part", "step"])["busy_us"].sum().rename("sum").reset_index()
    sums = sums.sort_values(["part", "sum"], ignore_index=True)
    count = sums.groupby("part", sort=False)["sum"].count()
    first = count.cumsum() - count  # the row of each part's least sum
    middle = []
    for place in ((steps - 1) // 2, steps // 2):
        row = place - (steps - count)  # among the part's sums, before which all zeros come
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
    """Return the parts of two traces of the same step: median µs in one step of each, and the difference in %.

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
