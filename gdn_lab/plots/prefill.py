"""What prefill's rows say and how they are drawn: tokens a second, share of the roof, the pool against the detour.

Nothing here measures; rows are sweeps/prefill.py's. Looks and colours are drawing.py's.
"""

import pandas
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..data import published
from ..findings.rows import TIMER_ORDER, VARIANTS, clock_prefix, name_of, not_timed
from ..findings.words import device_name
from .drawing import GREY, STYLE, colour, empty_figure, marker, new_figure

DETOUR = "detour"
NATIVE = {"triton/kv32": "triton/vk", "torch/kv": "torch/vk"}  # what the pool in place runs where the detour runs KV


# ---- what rows say --------------------------------------------------------------------------------------------------


def timed(rows) -> list[dict]:
    """The timed prefill rows of the first timer of TIMER_ORDER that occurs."""
    rows = [row for row in rows if row.get("phase") == "prefill" and row.get("status") == "ok"]
    present = {row["timer"] for row in rows}
    timer = next((name for name in TIMER_ORDER if name in present), None)
    return [row for row in rows if row["timer"] == timer]


def workload(row) -> str:
    return f"{row['batch']} × {row['length']:,}"


def label(row) -> str:
    return name_of(row) + (", detour" if row["indexing"] == DETOUR else "")


def _order(rows) -> list[str]:
    """Labels in the order of VARIANTS, in place before the detour."""
    rank = {name: place for place, name in enumerate(VARIANTS)}
    found = {label(row): (row["indexing"] == DETOUR, rank.get(name_of(row), 99), name_of(row)) for row in rows}
    return sorted(found, key=found.get)


def time_table(rows) -> pandas.DataFrame:
    """Median µs: a line for each number of heads and workload, a column for each variant."""
    rows, lines = timed(rows), {}
    for row in rows:
        key = (row["num_v_heads"], row["batch"], row["length"])
        line = lines.setdefault(key, {"HV": key[0], "sequences × tokens": workload(row)})
        line[label(row)] = row["median_us"]
    return pandas.DataFrame(lines.values(), columns=["HV", "sequences × tokens", *_order(rows)] if rows else None)


def detail_table(rows) -> pandas.DataFrame:
    """Each timed row: tokens a second, GB/s, share of the roof, TFLOP/s, the largest error."""
    lines = []
    for row in timed(rows):
        line = {"HV": row["num_v_heads"], "sequences × tokens": workload(row), "variant": label(row)}
        line |= {"µs": row["median_us"], "p20": row["p20_us"], "p80": row["p80_us"]}
        line |= {"thousand tokens/s": row["tokens_per_s"] / 1e3, "GB/s": row["gb_per_s"]}
        line |= {"% of roof": 100 * row["share_of_roof"], "TFLOP/s": row["tflops"], "L2": row["l2"]}
        lines.append(line | {"largest error": row["max_abs_error"]})
    return pandas.DataFrame(lines)


def ratios(rows, over: str) -> dict[str, list[float]]:
    """{label: its time over that of the variant `over` in place, for each workload that has both}."""
    rows = timed(rows)
    base = {_point(row): row["median_us"] for row in rows if label(row) == over}
    found: dict[str, list[float]] = {}
    for row in rows:
        if label(row) != over and _point(row) in base:
            found.setdefault(label(row), []).append(row["median_us"] / base[_point(row)])
    return found


def _point(row):
    return row["num_v_heads"], row["batch"], row["length"]


def detour_ratios(rows) -> dict[str, dict[tuple, float]]:
    """{variant on the pool in place: {(HV, sequences, length): time by the detour over its time}}."""
    rows = timed(rows)
    here = {(label(row), _point(row)): row["median_us"] for row in rows}
    found: dict[str, dict[tuple, float]] = {}
    for row in rows:
        native = NATIVE.get(name_of(row))
        if row["indexing"] == DETOUR and (native, _point(row)) in here:
            found.setdefault(native, {})[_point(row)] = row["median_us"] / here[native, _point(row)]
    return found


def answers(rows) -> list[str]:
    """Sentences that answer the notebook's question."""
    mine = timed(rows)
    if not mine:
        return ["Nothing was timed here.", *not_timed(rows)]
    own = "triton/vk" if any(label(row) == "triton/vk" for row in mine) else label(mine[0])
    best = max((row for row in mine if label(row) == own), key=lambda row: row["tokens_per_s"] * row["num_v_heads"])
    sentences = [
        f"{own} reaches {_many(best['tokens_per_s'])} tokens a second at {workload(best)} with "
        f"{best['num_v_heads']} value heads: {best['share_of_roof']:.0%} of the roof, {best['tflops']:,.3g} TFLOP/s."
    ]
    sentences.append(f"{fastest(rows)}.")
    for name, found in ratios(rows, own).items():
        if not name.endswith(DETOUR):
            sentences.append(f"{name} takes {_span(found)} times as long as {own} in place.")
    for name, found in detour_ratios(rows).items():
        ahead = "is ahead at every size" if min(found.values()) > 1 else "is not ahead at every size"
        sentences.append(
            f"The detour by way of KV takes {_span(found.values())} times as long as {name} on the pool in place: "
            f"the pool in place {ahead}."
        )
    return sentences + not_timed(rows)


def fastest(rows) -> str:
    """Who takes the least time, and at how many of the workloads: "triton/vk is fastest at 5 of 6 workloads"."""
    best = {}
    for row in timed(rows):
        at = best.setdefault(_point(row), row)
        best[_point(row)] = min(at, row, key=lambda row: row["median_us"])
    names = [label(row) for row in best.values()]
    name = max(names, key=names.count)
    return f"{name} is fastest at {names.count(name)} of {len(names)} workload{'s' * (len(names) > 1)}"


def _many(number: float) -> str:
    """ "15.1 million", "8,512"."""
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,.0f}"


def _span(values) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def beside_first(rows) -> pandas.DataFrame:
    """The workloads that were measured before this workbook could prefill, 64 value heads: median µs of each variant of
    `rows`, in place, then those figures. data/published/first_measurements/prefill.csv says how they were made."""
    rows = [row for row in timed(rows) if row["num_v_heads"] == 64]
    lines, names = [], [name for name in _order(rows) if not name.endswith(DETOUR)]
    here = {(row["batch"], row["length"], label(row)): row["median_us"] for row in rows}
    for before in published("prefill", "first_measurements").itertuples():
        line = {"sequences × tokens": f"{before.sequences} × {before.length:,}"}
        line |= {name: here.get((before.sequences, before.length, name)) for name in names}
        lines.append(line | {"flashinfer, before": before.flashinfer_us, "fla, before": before.fla_us})
    return pandas.DataFrame(lines).dropna(axis="columns", how="all")


# ---- figures --------------------------------------------------------------------------------------------------------


def conditions(rows) -> str:
    """What the times hold for, in one line."""
    rows = timed(rows)
    if not rows:
        return "nothing was timed"
    first, counts = rows[0], sorted({row["count"] for row in rows})
    held = f"{first['state_dtype']} state, {first['io_dtype']} inputs · {first['timer']}, median of "
    held += "…".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return held + f" · roof {first['roof_gb_per_s']:,.0f} GB/s measured (in-place read-modify-write)"


def _notes(rows, run) -> list[str]:
    return [f"{device_name(run)} · {conditions(rows)}", *not_timed(rows)]


def _panels(rows):
    """[(HV, [workload labels], rows)], most heads first; workloads by tokens, then sequences."""
    panels = []
    for heads in sorted({row["num_v_heads"] for row in rows}, reverse=True):
        of = [row for row in rows if row["num_v_heads"] == heads]
        names = {workload(row): (row["tokens"], row["batch"]) for row in of}
        panels.append((heads, sorted(names, key=names.get), of))
    return panels


@rc_context(STYLE)
def tokens_per_second(rows, run=None) -> Figure:
    """Tokens a second of each variant for each workload, a panel for each number of heads; hollow: by the detour."""
    mine = timed(rows)
    if not mine:
        return empty_figure("No prefill was timed", not_timed(rows))
    panels = _panels(mine)
    title = f"{clock_prefix(rows)}{answers(rows)[0].split(':')[0]}; {fastest(rows)}"
    unit, of_unit = (1e6, "million") if max(row["tokens_per_s"] for row in mine) >= 1e6 else (1e3, "thousand")
    fig, axes = new_figure(title, 10.5, 4.8, len(panels), _notes(rows, run))
    for ax, (heads, names, of) in zip(axes, panels, strict=True):
        for which in _order(of):
            line = sorted((row for row in of if label(row) == which), key=lambda row: names.index(workload(row)))
            ink, hollow = colour(name_of(line[0])), line[0]["indexing"] == DETOUR
            ax.plot(
                [names.index(workload(row)) for row in line], [row["tokens_per_s"] / unit for row in line],
                color=ink, marker=marker(name_of(line[0])), linewidth=0.8, alpha=0.95, label=which,
                linestyle=(0, (4, 2)) if hollow else "-", markerfacecolor="white" if hollow else ink,
                zorder=3 if which == "triton/vk" else 2,
            )  # fmt: skip
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
        ax.set_xlim(-0.5, len(names) - 0.5)
        ax.set_ylim(0, 1.08 * ax.dataLim.ymax)
        ax.set_title(f"{heads} value heads")
        ax.set_xlabel("sequences × tokens of each")
    axes[0].set_ylabel(f"{of_unit} tokens a second")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    return fig


@rc_context(STYLE)
def native_against_detour(rows, run=None) -> Figure:
    """Time by the detour over time on the pool in place, for each workload; above 1 the pool in place is ahead."""
    found = detour_ratios(rows)
    if not found:
        return empty_figure("The detour was not timed beside the pool in place", not_timed(rows))
    every = [ratio for of in found.values() for ratio in of.values()]
    title = f"{clock_prefix(rows)}The detour by way of KV takes {_span(every)} times as long as the pool in place"
    panels = _panels(timed(rows))
    fig, axes = new_figure(title, 10.5, 4.2, len(panels), _notes(rows, run), sharey=True)
    for ax, (heads, names, of) in zip(axes, panels, strict=True):
        places = {_point(row): names.index(workload(row)) for row in of}
        for number, (name, ratio) in enumerate(found.items()):
            at = {point: value for point, value in ratio.items() if point in places}
            width = 0.8 / len(found)
            left = [places[point] + (number - (len(found) - 1) / 2) * width for point in at]
            bars = ax.bar(left, [value - 1 for value in at.values()], width, bottom=1, color=colour(name), label=name)
            ax.bar_label(bars, [f"{value:.2f}" for value in at.values()], fontsize=8.5, padding=2)
        ax.axhline(1, color=GREY, linewidth=1)
        ax.margins(y=0.12)  # room for the labels
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
        ax.set_title(f"{heads} value heads")
        ax.set_xlabel("sequences × tokens of each")
    axes[0].set_ylabel("time by the detour / time in place")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    return fig
