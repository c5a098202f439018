"""Sum up a Trace: one table by range and kernel, one by range alone."""

import pandas

from .build import GRAPH_CAPTURED, Trace


def table(trace: Trace) -> pandas.DataFrame:
    """Return one row for each range path and kernel: path, kernel, count, total_us, median_us, min_us, max_us, share.

    Each kernel counts once, under the whole path of the ranges that enclose its launch, outermost first and joined by
    " / ", or under OUTSIDE. Copies, fills and graphs recorded as a whole count as kernels. share: of the time of all
    rows. Longest total first.
    """
    kernels = trace.kernels
    us = (kernels["end_ns"] - kernels["start_ns"]) / 1e3
    times = pandas.DataFrame({"path": kernels["path"], "kernel": kernels["name"], "us": us})
    groups = times.groupby(["path", "kernel"], observed=True)["us"]
    rows = groups.agg(count="count", total_us="sum", median_us="median", min_us="min", max_us="max").reset_index()
    rows = rows.astype({"path": str, "kernel": str})
    rows["share"] = rows["total_us"] / max(rows["total_us"].sum(), 1e-12)
    return rows.sort_values(["total_us", "path", "kernel"], ascending=[False, True, True], ignore_index=True)


def range_table(trace: Trace) -> pandas.DataFrame:
    """Return one row for each range path: path, depth, instances, kernels, total_us, share, span_us, host_us.

    Here a kernel counts under every range that encloses its launch, so a range holds all that its inner ranges hold;
    share is of the time of all kernels. instances: ranges of this path. span_us: from the start of an instance's first
    kernel to the end of its last, gaps included; host_us: the instance's time on the CPU. Both are medians: span_us
    over the instances that have kernels (NaN if none has), host_us NaN for ranges of style GRAPH_CAPTURED, which took
    no time. In order of first beginning.
    """
    kernels, ranges = trace.kernels, trace.ranges
    pairs = trace.enclosing()
    start, end = (kernels[side].to_numpy()[pairs["kernel"]] for side in ("start_ns", "end_ns"))
    work = pandas.DataFrame({"range": pairs["range"], "start": start, "end": end, "us": (end - start) / 1e3})
    sums = work.groupby("range").agg(
        kernels=("us", "count"), us=("us", "sum"), first=("start", "min"), last=("end", "max")
    )
    sums["span_us"] = (sums["last"] - sums["first"]) / 1e3
    host_us = ((ranges["end_ns"] - ranges["start_ns"]) / 1e3).where(ranges["style"] != GRAPH_CAPTURED)
    each = ranges[["path", "depth"]].assign(host_us=host_us).join(sums)
    rows = each.groupby("path", observed=True, sort=False).agg(
        depth=("depth", "first"),
        instances=("depth", "count"),
        kernels=("kernels", "sum"),
        total_us=("us", "sum"),
        span_us=("span_us", "median"),
        host_us=("host_us", "median"),
    )
    rows = rows.reset_index()
    everything = (kernels["end_ns"] - kernels["start_ns"]).sum() / 1e3
    rows.insert(5, "share", rows["total_us"] / max(everything, 1e-12))
    return rows.astype({"path": str, "kernels": "int64"})
