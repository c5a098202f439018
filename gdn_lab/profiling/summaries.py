"""The summaries that nsys stats calls cuda_gpu_kern_sum, nvtx_kern_sum and nvtx_gpu_proj_sum, of any Capture.

Columns, units and rounding are those of its CSV: ns; averages, medians, deviations and percentages to one decimal; the
deviation is that of a sample (n - 1), 0 for one value; rows with the longest total first. A range is called
"domain:name", or ":name" in the default domain. Ranges that were never closed, and graphs recorded as a whole, are left
out. The definitions are stated at each function; they follow NVIDIA's description of the reports.
"""

import numpy
import pandas

from .capture import Capture


def cuda_gpu_kern_sum(capture: Capture) -> pandas.DataFrame:
    """One row for each kernel name, over all devices, processes and ranges. Copies and fills are not kernels.

    Time (%) is of the total of all kernels.
    """
    kernels = capture.kernels[capture.kernels["kind"] == "kernel"]
    work = pandas.DataFrame({"Name": kernels["name"], "ns": kernels["end_ns"] - kernels["start_ns"]})
    rows = _statistics(work.groupby("Name", observed=True)["ns"], "Instances").reset_index()
    share = 100 * rows["Total Time (ns)"] / max(rows["Total Time (ns)"].sum(), 1)
    rows.insert(0, "Time (%)", share.round(1))
    rows = rows[[name for name in rows.columns if name != "Name"] + ["Name"]]
    return _ordered(rows.astype({"Name": str}), "Total Time (ns)", ["Name"])


def nvtx_kern_sum(capture: Capture) -> pandas.DataFrame:
    """One row for each range name, style, process, thread and kernel name.

    A kernel belongs to every range that encloses its launch call on the same thread, wherever and whenever it runs, and
    so counts in several rows if ranges nest; a kernel outside any range is in no row. NVTX Inst: ranges that hold this
    kernel. Kern Inst: kernels.
    """
    ranges, kernels, pairs = _closed(capture, ("kernel",))
    keys = ["NVTX Range", "Style", "PID", "TID", "Kernel Name"]
    work = pandas.DataFrame({
        "NVTX Range": ranges["label"].to_numpy()[pairs["range"]], "Style": ranges["style"].to_numpy()[pairs["range"]],
        "PID": ranges["process"].to_numpy()[pairs["range"]], "TID": ranges["thread"].to_numpy()[pairs["range"]],
        "Kernel Name": kernels["name"].to_numpy()[pairs["kernel"]],
        "ns": (kernels["end_ns"] - kernels["start_ns"]).to_numpy()[pairs["kernel"]], "range": pairs["range"].to_numpy(),
    })  # fmt: skip
    groups = work.groupby(keys)
    rows = _statistics(groups["ns"], "Kern Inst")
    rows.insert(0, "NVTX Inst", groups["range"].nunique())
    rows = rows.reset_index()
    order = keys[:4] + ["NVTX Inst", "Kern Inst", *(name for name in rows.columns if "(ns)" in name), "Kernel Name"]
    return _ordered(rows[order], "Total Time (ns)", keys)


def nvtx_gpu_proj_sum(capture: Capture) -> pandas.DataFrame:
    """One row for each range name and style: its ranges projected onto the GPU.

    A range's projection lasts from the start of the first to the end of the last operation (kernel, copy or fill) whose
    launch call it encloses on its thread; ranges without one are not counted. Total Range Time: on the CPU, of the
    ranges counted. Avg Range Lvl: closed push/pop ranges that were open on its thread when it began (0: none). Avg Num
    Child: closed push/pop ranges directly inside it, with or without work of a GPU.
    """
    ranges, kernels, pairs = _closed(capture, ("kernel", "memcpy", "memset"))
    work = pandas.DataFrame({
        "range": pairs["range"], "start": kernels["start_ns"].to_numpy()[pairs["kernel"]],
        "end": kernels["end_ns"].to_numpy()[pairs["kernel"]],
    })  # fmt: skip
    each = work.groupby("range").agg(first=("start", "min"), last=("end", "max"), operations=("start", "count"))
    level, children = _family(capture)
    each = each.assign(ns=each["last"] - each["first"], level=level[each.index], children=children[each.index])
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
        rows[f"Avg {name}"] = groups[column].mean().round(1)
    rows = rows.rename_axis(["Range", "Style"]).reset_index()
    return _ordered(rows, "Total Proj Time (ns)", ["Range", "Style"])


def _statistics(groups, count: str) -> pandas.DataFrame:
    rows = pandas.DataFrame({
        "Total Time (ns)": groups.sum(), count: groups.count(), "Avg (ns)": groups.mean(), "Med (ns)": groups.median(),
        "Min (ns)": groups.min(), "Max (ns)": groups.max(), "StdDev (ns)": groups.std().fillna(0.0),
    })  # fmt: skip
    return rows.round({"Avg (ns)": 1, "Med (ns)": 1, "StdDev (ns)": 1})


def _ordered(rows: pandas.DataFrame, total: str, keys: list[str]) -> pandas.DataFrame:
    return rows.sort_values([total, *keys], ascending=[False, *(True for _ in keys)], ignore_index=True)


def _closed(capture: Capture, kinds):
    """(ranges with their label, kernels, pairs of both): pairs of closed ranges and work of these kinds only."""
    ranges = capture.ranges.assign(label=capture.ranges["domain"] + ":" + capture.ranges["name"])
    pairs = capture.enclosing()
    is_kind = capture.kernels["kind"].isin(kinds).to_numpy()
    pairs = pairs[is_kind[pairs["kernel"]] & ~ranges["open"].to_numpy()[pairs["range"]]]
    return ranges, capture.kernels, pairs


def _family(capture: Capture) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(level, children) of each range, from closed push/pop ranges alone; of the others both are 0."""
    ranges, chains = capture.ranges, capture.chains
    counted = ((ranges["style"] == "PushPop") & ~ranges["open"]).to_numpy()
    below, nearest = [0], [-1]  # of each node: how many counted ranges it holds, the innermost of them; last: no node
    for parent, row in zip(chains.parent, chains.range, strict=True):
        below.insert(-1, below[parent] + bool(counted[row]))
        nearest.insert(-1, row if counted[row] else nearest[parent])
    outer = numpy.append(numpy.asarray(chains.parent, numpy.int64), -1)[ranges["node"]]
    level = numpy.where(counted, numpy.array(below)[outer], 0)
    parents = numpy.array(nearest)[outer][counted]
    return level, numpy.bincount(parents[parents >= 0], minlength=len(ranges))
