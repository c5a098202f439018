"""The tables of notebook 03, made of the rows of sweeps/step.py."""

import pandas

from ...layer import configuration
from ...report.recorded import published
from ...report.text import byte_size, percent
from .analysis import ALL_REDUCE, GDN, eager, part_order, part_us, parts, share_of_gdn, traced, whole


def configuration_table(names) -> pandas.DataFrame:
    """What each configuration is: a line of step.CONFIGURATIONS."""
    entries = {name: configuration(name) for name in names}
    return pandas.DataFrame([
        {
            "configuration": name, "GDN kernel": entry.gdn, "pool": entry.layout,
            "small kernels": "fused, launches overlapped" if entry.fused else "separate",
            "what it is": entry.description,
        }
        for name, entry in entries.items()
    ])  # fmt: skip


def step_table(rows) -> pandas.DataFrame:
    """A line for each configuration: the whole step, what it moves, and what of it is GDN."""
    of, first = whole(rows), None
    lines = []
    for name, row in of.items():
        first = first or row
        share, kernels = share_of_gdn(rows, name), traced(rows).get(name, {}).get("kernels")
        line = {"configuration": name, "GDN kernel": f"{row['backend']}/{row['variant']}", "µs": row["median_us"]}
        line |= {"p20": row["p20_us"], "p80": row["p80_us"], "count": row["count"]}
        ratio = row["median_us"] / first["median_us"]
        line |= {"of the first": f"{ratio:.1%}", "GDN's share": _percent_or_nothing(share)}
        line |= {"kernels": kernels or "", "MB": row["bytes"] / 1e6, "GB/s": row["gb_per_s"]}
        line |= {"of the roof": percent(row["share_of_roof"]), "largest error": row["max_abs_error"]}
        by_kernel = eager(rows).get(name)
        lines.append(line | ({"launched by kernel, µs": by_kernel["median_us"]} if by_kernel else {}))
    return pandas.DataFrame(lines)


def _percent_or_nothing(share) -> str:
    return "" if share is None else percent(share)


def parts_table(rows) -> pandas.DataFrame:
    """µs of each part by configuration, gaps, what they add up to, the untraced step; the all-reduces as not run."""
    apart, of = parts(rows), whole(rows)
    lines = [
        {"part": part} | {name: f"{part_us(rows, name, part):,.1f}" if part in apart[name] else "" for name in apart}
        for part in part_order(rows)
    ]
    if apart:
        recorded = traced(rows)
        lines.append({"part": "the step as recorded"} | {name: f"{recorded[name]['median_us']:,.1f}" for name in apart})
        lines.append({"part": "the step untraced"} | {name: f"{of[name]['median_us']:,.1f}" for name in apart})
    facts = {row["part"]: row for row in rows if row.get("part") == ALL_REDUCE and row.get("sweep") == "step"}
    for row in facts.values():
        for place in ("out_proj", "combine")[: row["times_a_layer"]]:
            what = f"all-reduce after {place}, {byte_size(row['bytes'])}"
            lines.append({"part": what} | dict.fromkeys(apart, "not run on one GPU"))
    return pandas.DataFrame(lines)


def roof_table(rows) -> pandas.DataFrame:
    """A line for each part of the last configuration: µs, p20, p80, kernels, what it must move, share of the roof."""
    apart = parts(rows)
    name = list(apart)[-1] if apart else None
    of, total = apart.get(name, {}), traced(rows).get(name)
    lines = [
        {
            "part": part, "µs": row["median_us"], "p20": row["p20_us"], "p80": row["p80_us"],
            "of the step": percent(row["median_us"] / total["median_us"]),
            "kernels": row["kernels"] or "", "MB": row["bytes"] / 1e6 or float("nan"),
            "of the roof": percent(row["share_of_roof"]) if row["bytes"] else "",
        }
        for part, row in of.items()
    ]  # fmt: skip
    return pandas.DataFrame(lines)


def published_table(rows) -> pandas.DataFrame:
    """The published step and GDN kernel, µs on one of eight B200, beside each configuration of this machine."""
    table, of, apart = published("step_profile"), whole(rows), parts(rows)
    lines = []
    for _, row in table.iterrows():
        line = {"": row.part, "published before": float(row.triton), "published after": float(row.flashinfer)}
        measured = (
            {name: us["median_us"] for name, us in of.items()} if row.part == "decode step"
            else {name: part_us(rows, name, GDN) for name in apart}
        )  # fmt: skip
        lines.append(line | measured)
    frame = pandas.DataFrame(lines)
    numbers = frame.drop(columns="")
    rest = {"": "the rest of the step"} | (numbers.loc[0] - numbers.loc[1]).to_dict()
    return pandas.concat([frame, pandas.DataFrame([rest])], ignore_index=True)
