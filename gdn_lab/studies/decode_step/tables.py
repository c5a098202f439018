"""The tables of notebook 03, made of StepRows."""

import pandas

from ...layer.configurations import configuration
from ...report.recorded import published
from ...report.text import byte_size, number, percent
from .analysis import GDN, OTHERS, StepRows, shown_parts


def configuration_table(names) -> pandas.DataFrame:
    """What each configuration is."""
    entries = [configuration(name) for name in names]
    return pandas.DataFrame(
        [
            {
                "configuration": entry.name,
                "GDN kernel": f"{entry.gdn} or {entry.deferred}" if entry.deferred else entry.gdn,
                "pool": entry.layout,
                "other kernels": "fused, with PDL" if entry.fused else "separate",
                "what it is": entry.description,
            }
            for entry in entries
        ]
    )


def step_table(step: StepRows) -> pandas.DataFrame:
    """A line for each configuration: the whole step, what it moves, and GDN's share of it."""
    lines, first = [], None
    for name, row in step.whole.items():
        first, share = first or row, step.gdn_share(name)
        line = {
            "configuration": name,
            "GDN kernel": f"{row['backend']}/{row['variant']}",
            "µs": row["median_us"],
            "p20": row["p20_us"],
            "p80": row["p80_us"],
            "samples": row["count"],
            "% of the first": percent(row["median_us"] / first["median_us"]),
            "GDN's share": "" if share is None else percent(share),
            "kernels": step.traced.get(name, {}).get("kernels") or "",
            "MB": row["bytes"] / 1e6,
            "GB/s": row["gb_per_s"],
            "% of measured bandwidth": percent(row["share_of_roof"]),
            "largest error": row["max_abs_error"],
        }
        if name in step.eager:
            line["launched kernel by kernel, µs"] = step.eager[name]["median_us"]
        lines.append(line)
    return pandas.DataFrame(lines)


def parts_table(step: StepRows) -> pandas.DataFrame:
    """µs of each part by configuration, the gaps, their sum, the untraced step; the all-reduces as not run."""
    names = list(step.parts)
    lines = [
        {"part": part} | {name: f"{step.us(name, part):,.1f}" if part in step.parts[name] else "" for name in names}
        for part in step.part_order
    ]
    if names:
        lines.append({"part": "recorded step"} | {name: f"{step.traced[name]['median_us']:,.1f}" for name in names})
        lines.append({"part": "untraced step"} | {name: f"{step.whole[name]['median_us']:,.1f}" for name in names})
    if row := step.all_reduce:
        for place in ("out_proj", "combine")[: row["times_a_layer"]]:
            part = f"all-reduce after {place}, {byte_size(row['bytes'])}"
            lines.append({"part": part} | dict.fromkeys(names, "not run on one GPU"))
    return pandas.DataFrame(lines)


def changes_table(step: StepRows) -> pandas.DataFrame:
    """What each part adds to or takes from the recorded step, µs: a line for each part, a column for each transition.

    Parts that change little are added up as OTHERS; the last line is the whole recorded step.
    """
    names = list(step.traced)
    if len(names) < 2:
        return pandas.DataFrame()
    pairs = step.transitions + ([(names[0], names[-1])] if len(names) > 2 else [])
    shown, lines = shown_parts(step), []
    for part in shown:
        lines.append({"part": part} | {_arrow(*pair): step.change(part, *pair) for pair in pairs})
    whole = {_arrow(a, b): step.traced[b]["median_us"] - step.traced[a]["median_us"] for a, b in pairs}
    rest = {column: us - sum(line[column] for line in lines) for column, us in whole.items()}
    lines += [{"part": OTHERS} | rest, {"part": "whole step"} | whole]
    table = pandas.DataFrame(lines)
    columns = table.columns[1:]
    table[columns] = table[columns].map(lambda us: number(us, "+.1f"))
    return table


def _arrow(before: str, after: str) -> str:
    return f"{before} → {after}"


def bandwidth_table(step: StepRows) -> pandas.DataFrame:
    """A line for each part of the last configuration: its time, what it must move, its share of the bandwidth."""
    if not step.parts:
        return pandas.DataFrame()
    name, parts = list(step.parts.items())[-1]
    total = step.traced[name]["median_us"]
    return pandas.DataFrame(
        [
            {
                "part": part,
                "µs": row["median_us"],
                "p20": row["p20_us"],
                "p80": row["p80_us"],
                "% of the step": percent(row["median_us"] / total),
                "kernels": row["kernels"] or "",
                "MB": row["bytes"] / 1e6 or float("nan"),
                "% of measured bandwidth": percent(row["share_of_roof"]) if row["bytes"] else "",
            }
            for part, row in parts.items()
        ]
    )


def published_table(step: StepRows) -> pandas.DataFrame:
    """The published step and GDN kernel, µs on one of eight B200, and each configuration of this run."""
    lines = []
    for _, row in published("step_profile").iterrows():
        line = {"": row.part, "published before": float(row.triton), "published after": float(row.flashinfer)}
        if row.part == "decode step":
            line |= {name: whole["median_us"] for name, whole in step.whole.items()}
        else:
            line |= {name: step.us(name, GDN) for name in step.parts}
        lines.append(line)
    table = pandas.DataFrame(lines)
    numbers = table.drop(columns="")
    rest = {"": "rest of the step"} | (numbers.loc[0] - numbers.loc[1]).to_dict()
    return pandas.concat([table, pandas.DataFrame([rest])], ignore_index=True)
