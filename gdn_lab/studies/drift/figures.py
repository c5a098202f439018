"""The figures of notebook 10: errors over steps by precision and backend, what shortcuts cost, how large states get."""

import itertools

from matplotlib import rc_context
from matplotlib.figure import Figure

from ...arguments import FLOAT16_MARGIN as MARGIN
from ...report.style import (
    GREY,
    STYLE,
    dtype_colours,
    empty_figure,
    label_ends,
    line_style,
    new_figure,
    other_colours,
)
from . import analysis
from .analysis import OUTPUT, STATE, final
from .sentences import error

MOST_PANELS = 6
FP16_LIMIT = 65504.0


def _where(rows, run) -> str:
    """ "recorded: H100" or, on a CPU, "this CPU, toy size"; "" for a GPU here."""
    if (run or {}).get("recorded_on"):
        return f" (recorded: {run['recorded_on'].upper()})"
    return " (CPU, toy size)" if analysis.main_backend(rows) == "torch/vk" else ""


def _chosen(rows) -> list[str]:
    """At most MOST_PANELS regimes; strong decay, which forgets everything, and parallel keys last."""
    names = analysis.regimes(rows)
    return sorted(names, key=lambda name: "strong" in name or "parallel" in name)[:MOST_PANELS]


def _panels(title, rows, names, height=3.9):
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    notes = [analysis.conditions(rows)]
    fig, axes = new_figure(title, 5.2 * columns, height * lines, columns, notes, rows=lines, sharey=True, sharex=True)
    for extra in axes[len(names) :]:
        extra.set_axis_off()
    for ax, name in zip(axes, names, strict=False):
        ax.set(title=name, xscale="log", yscale="log")
        if ax.get_subplotspec().is_last_row():
            ax.set_xlabel("decode step")
    return fig, axes


def _line(ax, row, name=STATE, **look):
    points = [(step, value) for step, value in zip(row["steps"], row[name], strict=True) if value]
    if points:
        ax.plot(*zip(*points, strict=True), **look)


@rc_context(STYLE)
def over_steps(rows: list[dict], run: dict | None = None) -> Figure:
    """Error of the state over steps by precision, a panel for each regime; dotted: of the output of that state."""
    names = _chosen(rows)
    if not names:
        return empty_figure("No drift was run", [])
    fig, axes = _panels(over_steps_title(rows) + _where(rows, run), rows, names)
    labels, colours = {}, dtype_colours([dtype for dtype, _ in analysis.PRECISIONS])
    for ax, name in zip(axes, names, strict=False):
        found = analysis.precisions(rows, name)
        ends = labels[ax] = []
        for kind, row in found.items():
            ink, dashed = colours[row["state_dtype"]], row["rounding"] == "stochastic"
            look = {"color": ink, "linestyle": (0, (4, 2)) if dashed else "-", "marker": "o", "markersize": 3.5}
            _line(ax, row, **look, markerfacecolor="white" if dashed else ink)
            if not dashed:
                _line(ax, row, OUTPUT, color=ink, linestyle=":", linewidth=1.2)
            if final(row) < float("inf"):
                short = (
                    kind.replace("float8_e4m3fn", "fp8")
                    .replace("bfloat", "bf")
                    .replace("float", "fp")
                    .replace(", stochastic", " SR")
                )
                ends.append((final(row), f"{short} {error(final(row))}", ink))
    bottom, top = axes[0].get_ylim()
    axes[0].set_ylim(bottom / 30, top)  # room for the legend
    for ax, ends in labels.items():
        label_ends(ax, ends)
    for ax in axes[:: min(3, len(names))]:
        ax.set_ylabel("relative error")
    axes[0].plot([], [], color=GREY, label="state")
    axes[0].plot([], [], color=GREY, linestyle="--", label="state, stochastic rounding (SR)")
    axes[0].plot([], [], color=GREY, linestyle=":", label="output of the stored state")
    axes[0].legend(loc="lower left", fontsize=8, frameon=False)
    return fig


def over_steps_title(rows) -> str:
    """The finding: how bfloat16's largest final error compares with float16's in the same regime."""
    ends = {}
    for name in analysis.regimes(rows):
        found = analysis.precisions(rows, name)
        if "bfloat16" in found and "float16" in found:
            ends[name] = final(found["bfloat16"]), final(found["float16"])
    if not ends:
        return "Error of the state over steps"
    worst = max(ends, key=lambda name: ends[name][0])
    bf16, fp16 = ends[worst]
    steps = analysis.of_ways(rows)[0]["steps"][-1]
    return f"bfloat16 drifts most with {worst}: {error(bf16)} after {steps:,} steps, float16 {error(fp16)}"


@rc_context(STYLE)
def backends(rows: list[dict], run: dict | None = None) -> Figure:
    """Error of a float32 state over steps on each backend, a panel for each regime."""
    names = [name for name in _chosen(rows) if len(analysis.backends(rows, name)) > 1][:3]
    if not names:
        return empty_figure("One backend alone ran here, so none is compared", [])
    spread = {name: analysis.backends(rows, name) for name in names}
    worst = max(((final(row), back, name) for name in names for back, row in spread[name].items()), key=lambda x: x[0])
    title = f"A float32 state drifts most in {worst[1]}: {error(worst[0])} ({worst[2]})"
    fig, axes = _panels(title + _where(rows, run), rows, names)
    for ax, name in zip(axes, names, strict=False):
        ends = []
        for back, row in spread[name].items():
            look = line_style(back)
            _line(ax, row, **look)
            ends.append((final(row), f"{back} {error(final(row))}", look["color"]))
        label_ends(ax, ends)
    axes[0].set_ylabel("relative error of the state")
    return fig


@rc_context(STYLE)
def shortcuts(rows: list[dict], run: dict | None = None) -> Figure:
    """The last error of the state by what is rounded, a panel for each regime."""
    names = _chosen(rows)[:3]
    bars = {name: _bars(rows, name) for name in names}
    if not any(bars.values()):
        return empty_figure("No shortcut was run", [])
    title = shortcuts_title(bars) + _where(rows, run)
    notes = [analysis.conditions(rows), "Grey: a float32 state. Hatched: stochastic rounding."]
    fig, axes = new_figure(title, 14, 4.4, len(names), notes, sharey=True, sharex=True)
    colours = dtype_colours([dtype for dtype, _ in analysis.PRECISIONS])
    for ax, name in zip(axes, names, strict=True):
        values = bars[name]
        inks = [colours.get(label.removesuffix(" state").partition(",")[0], GREY) for label in values]
        hatches = ["//" if "stochastic" in label else "" for label in values]
        ax.barh(list(values), list(values.values()), color=inks, hatch=hatches, edgecolor="white", linewidth=0)
        for label, value in values.items():
            ax.text(value, label, f" {error(value)}", va="center", fontsize=9)
        ax.set(xscale="log", title=name, xlabel="relative error of the state")
        ax.margins(x=0.35)
    axes[0].invert_yaxis()
    return fig


def _bars(rows, name: str) -> dict[str, float]:
    """{what is rounded: last error of the state} in a regime."""
    found = {f"{kind} state": row for kind, row in analysis.precisions(rows, name).items()}
    found |= {f"{key} in bfloat16": row for key, row in analysis.shortcuts(rows, name).items() if key != "none"}
    if name in (both := analysis.fast_exponentials(rows)):
        found[analysis.FAST] = both[name][0]
    return {label: final(row) for label, row in found.items() if 0 < final(row) < float("inf")}


def shortcuts_title(bars: dict[str, dict[str, float]]) -> str:
    """The finding: the largest error of a bfloat16 state against that of bfloat16 gates with a float32 state."""
    state = max((each.get("bfloat16 state", 0.0) for each in bars.values()), default=0.0)
    gates = max((each.get("dt_bias, A_log and beta in bfloat16", 0.0) for each in bars.values()), default=0.0)
    return f"A bfloat16 state costs up to {error(state)}, gates in bfloat16 up to {error(gates)}"


@rc_context(STYLE)
def magnitudes(rows: list[dict], run: dict | None = None) -> Figure:
    """The largest |S| over steps of each regime, and float16's limit: a colour for gates, a line style for keys."""
    found = analysis.of_regimes(rows)
    if not found:
        return empty_figure("No drift was run", [])
    largest = max(max(row["largest_state"]) for row in found)
    title = f"No element of a state exceeds {largest:.3g}, {FP16_LIMIT / largest:,.0f} times below float16's limit"
    fig, (ax,) = new_figure(title + _where(rows, run), 10, 4.4, 1, [analysis.conditions(rows)])
    colours = other_colours(row["gates"] for row in found)
    lines = dict(
        zip(dict.fromkeys(row["keys"] for row in found), itertools.cycle(("-", "--", ":", "-.")), strict=False)
    )
    ends = []
    for row in found:
        name = analysis.regime(row)
        look = {"color": colours[row["gates"]], "linestyle": lines[row["keys"]]}
        ax.plot(row["steps"], row["largest_state"], **look, marker="o", markersize=3.5)
        ends.append((row["largest_state"][-1], name, look["color"]))
    ax.axhline(FP16_LIMIT, color=GREY, linewidth=1)
    ax.axhline(FP16_LIMIT / MARGIN, color=GREY, linewidth=1, linestyle="--")
    ax.set(xscale="log", yscale="log", xlabel="decode step", ylabel="largest |S|")
    ax.text(1, FP16_LIMIT * 1.15, "float16's limit", color=GREY, fontsize=9)
    ax.text(1, FP16_LIMIT / MARGIN / 1.2, "checks(True) warns above", color=GREY, fontsize=9, va="top")
    label_ends(ax, ends)
    return fig
