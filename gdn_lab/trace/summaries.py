"""Compute three reports of nsys stats, cuda_gpu_kern_sum, nvtx_kern_sum and nvtx_gpu_proj_sum, from any Trace.

Columns, units and rounding are those of its CSV: ns; averages, medians, deviations and percentages to one decimal,
halves rounded up; the standard deviation is a sample's (n - 1), 0 for one value; rows with the longest total first. A
range is called "domain:name", or ":name" in the default domain. One that was never closed lasts until the last begin or
end of any range. Graphs recorded as a whole, and the ranges that graphs.py adds, are left out. Each function states its
definitions; they are what nsys stats computes, which its help does not say in full.
"""

from decimal import ROUND_HALF_UP, Decimal

import numpy
import pandas

from .build import GRAPH_CAPTURED, Trace


def cuda_gpu_kern_sum(trace: Trace) -> pandas.DataFrame:
    """Return one row for each kernel name, over all devices, processes and ranges. Copies and fills are not kernels.

    Time (%) is of the total of all kernels.
    """
    kernels = trace.kernels[trace.kernels["kind"] == "kernel"]
    work = pandas.DataFrame({"Name": kernels["name"], "ns": kernels["end_ns"] - kernels["start_ns"]})
    rows = _statistics(work.groupby("Name", observed=True)["ns"], "Instances").reset_index()
    share = 100 * rows["Total Time (ns)"] / max(rows["Total Time (ns)"].sum(), 1)
    rows.insert(0, "Time (%)", _rounded(share))
    rows = rows[[name for name in rows.columns if name != "Name"] + ["Name"]]
    return _ordered(rows.astype({"Name": str}), "Total Time (ns)", ["Name"])


def nvtx_kern_sum(trace: Trace) -> pandas.DataFrame:
    """Return one row for each range name, style, process, thread and kernel name.

    A kernel belongs to every range that encloses its launch call on the same thread, wherever and whenever it runs, and
    so counts in several rows if ranges nest. One outside any range is in a row whose range and style are "", and whose
    process and thread are those of its launch (NA if that was not recorded). Without any range there are no rows. NVTX
    Inst: ranges that hold this kernel. Kern Inst: kernels.
    """
    ranges, kernels, pairs = _pairs(trace, ("kernel",))
    keys = ["NVTX Range", "Style", "PID", "TID", "Kernel Name"]
    range_row, kernel_row = pairs["range"].to_numpy(), pairs["kernel"].to_numpy()
    outside = numpy.setdiff1d(numpy.flatnonzero((kernels["kind"] == "kernel") & (len(ranges) > 0)), kernel_row)
    kernel_row, no_range = numpy.concatenate((kernel_row, outside)), [""] * len(outside)
    work = pandas.DataFrame(
        {
            "NVTX Range": numpy.concatenate((ranges["label"].to_numpy()[range_row], no_range)),
            "Style": numpy.concatenate((ranges["style"].to_numpy()[range_row], no_range)),
            "PID": kernels["process"].to_numpy()[kernel_row],
            "TID": kernels["thread"].to_numpy()[kernel_row],
            "Kernel Name": kernels["name"].astype(object).to_numpy()[kernel_row],
            "ns": (kernels["end_ns"] - kernels["start_ns"]).to_numpy()[kernel_row],
            "range": numpy.concatenate((range_row, [-1] * len(outside))),
        }
    ).astype({"PID": "Int64", "TID": "Int64"})
    known = kernels["thread"].to_numpy()[kernel_row] >= 0
    work.loc[~known, ["PID", "TID"]] = pandas.NA
    groups = work.groupby(keys, dropna=False)
    rows = _statistics(groups["ns"], "Kern Inst")
    rows.insert(0, "NVTX Inst", work[work["range"] >= 0].groupby(keys)["range"].nunique())
    rows["NVTX Inst"] = rows["NVTX Inst"].fillna(0).astype("int64")
    rows = rows.reset_index()
    order = keys[:4] + ["NVTX Inst", "Kern Inst", *(name for name in rows.columns if "(ns)" in name), "Kernel Name"]
    return _ordered(rows[order], "Total Time (ns)", keys)


def nvtx_gpu_proj_sum(trace: Trace) -> pandas.DataFrame:
    """Return one row for each range name and style: its ranges projected onto the GPU.

    A range's projection lasts from the start of the first to the end of the last operation (kernel, copy or fill) whose
    launch call it encloses on its thread; ranges without one are not counted. Total Range Time: on the CPU, of the
    ranges counted. GPU Ops: launch calls, so that a graph is one however many kernels it runs. Avg Range Lvl: ranges
    that enclose it on its thread (0: none). Avg Num Child: ranges with work of a GPU that have it as the tightest of
    those that enclose them.
    """
    ranges, kernels, pairs = _pairs(trace, ("kernel", "memcpy", "memset"))
    launched = kernels.iloc[pairs["kernel"]]
    work = pandas.DataFrame(
        {
            "range": pairs["range"].to_numpy(),
            "start": launched["start_ns"].to_numpy(),
            "end": launched["end_ns"].to_numpy(),
            "call": launched["correlation"].to_numpy(),
        }
    )
    each = work.groupby("range").agg(first=("start", "min"), last=("end", "max"), operations=("call", "nunique"))
    level, parent = _family(trace, ranges)
    children = pandas.Series(parent[each.index]).value_counts()
    each = each.assign(ns=each["last"] - each["first"], level=level[each.index])
    each["children"] = children.reindex(each.index, fill_value=0)
    each = each.join(ranges[["label", "style", "start_ns", "end_ns"]])
    each["host_ns"] = each["end_ns"] - each["start_ns"]
    groups = each.groupby(["label", "style"])
    rows = _statistics(groups["ns"], "Range Instances")
    rows.columns = [name.replace("Total", "Total Proj") if "Total" in name else name for name in rows.columns]
    rows = rows.rename(columns={f"{name} (ns)": f"Proj {name} (ns)" for name in ("Avg", "Med", "Min", "Max", "StdDev")})
    rows.insert(0, "Total Range Time (ns)", groups["host_ns"].sum())
    rows.insert(0, "Total Proj Time (ns)", rows.pop("Total Proj Time (ns)"))
    rows["Total GPU Ops"] = groups["operations"].sum()
    for name, column in (("GPU Ops", "operations"), ("Range Lvl", "level"), ("Num Child", "children")):
        rows[f"Avg {name}"] = _rounded(groups[column].sum() / groups[column].count())
    rows = rows.rename_axis(["Range", "Style"]).reset_index()
    return _ordered(rows, "Total Proj Time (ns)", ["Range", "Style"])


def _statistics(groups, count: str) -> pandas.DataFrame:
    total, number = groups.sum(), groups.count()
    return pandas.DataFrame(
        {
            "Total Time (ns)": total,
            count: number,
            "Avg (ns)": _rounded(total / number),
            "Med (ns)": _rounded(groups.median()),
            "Min (ns)": groups.min(),
            "Max (ns)": groups.max(),
            "StdDev (ns)": _rounded(groups.std().fillna(0.0)),
        }
    )


def _rounded(values: pandas.Series) -> pandas.Series:
    """Round to one decimal as SQLite does; numpy rounds .25 to .2."""
    tenth = Decimal("0.1")
    return values.map(lambda value: float(Decimal(value).quantize(tenth, ROUND_HALF_UP))).astype("float64")


def _ordered(rows: pandas.DataFrame, total: str, keys: list[str]) -> pandas.DataFrame:
    return rows.sort_values([total, *keys], ascending=[False, *(True for _ in keys)], ignore_index=True)


def _pairs(trace: Trace, kinds):
    """Return (ranges with their label and end as nsys has it, kernels, pairs of both): work of these kinds only."""
    ranges, kernels, pairs = trace.ranges, trace.kernels, trace.enclosing()
    is_open, pushed = ranges["open"], ranges["style"] != GRAPH_CAPTURED
    latest = max(ranges["start_ns"].max(), ranges["end_ns"][pushed & ~is_open].max()) if len(ranges) else 0
    ranges = ranges.assign(label=ranges["domain"] + ":" + ranges["name"])
    ranges["end_ns"] = ranges["end_ns"].where(~is_open, latest)
    range_row, kernel_row = pairs["range"].to_numpy(), pairs["kernel"].to_numpy()
    within = kernels["launch_end_ns"].to_numpy()[kernel_row] <= ranges["end_ns"].to_numpy()[range_row]
    is_kind = kernels["kind"].isin(kinds).to_numpy()[kernel_row]
    return ranges, kernels, pairs[within & is_kind & pushed.to_numpy()[range_row]]


def _family(trace: Trace, ranges) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return (level, parent) of each range: how many ranges enclose it, and the row of the tightest of them, or -1."""
    stacks, end = trace.stacks, ranges["end_ns"].to_numpy()
    level, parent = numpy.zeros(len(ranges), numpy.int64), numpy.full(len(ranges), -1)
    for row, node in enumerate(ranges["node"].tolist()):
        below = stacks.parent[node]
        while below >= 0 and parent[row] < 0:
            outer = stacks.range[below]
            parent[row] = outer if end[row] <= end[outer] else -1
            below = stacks.parent[below]
        level[row] = level[parent[row]] + 1 if parent[row] >= 0 else 0
    return level, parent
