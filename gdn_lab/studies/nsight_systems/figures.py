"""The figures of notebook 04, drawn from an Analysis (findings/profile.py). Nothing here reads a capture."""

import numpy
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...report.style import (
    GREY,
    OTHER_COLOURS,
    PART_COLOURS,
    STYLE,
    empty_figure,
    ink_on,
    new_figure,
    part_colours,
)
from . import analysis as findings
from .analysis import MODES, REST, Analysis, mode_noun

GAP = "#000000"  # drawn as a mark of its own, below the kernels
OTHERS = "other parts"  # those for which no colour is left
_STREAM = 1.0  # height of a lane
_MODE_COLOURS = {"graph": "#0072B2", "eager": "#E69F00"}
_MODE_LINES = {"graph": "-", "eager": (0, (4, 2))}


@rc_context(STYLE)
def timeline(of: Analysis) -> Figure:
    """One step of each mode, that of median length: its parts above, its kernels by stream below, gaps under them."""
    if not of.modes:
        return empty_figure("Nothing to draw", of.notes)
    shown = {mode: _median_step(of, mode) for mode in of.modes}
    said = [
        f"{mode_noun(mode)} of {_length(kernels):,.0f} µs: {(kernels['gap_us'] > 0).sum()} gaps, "
        f"{kernels['gap_us'].sum():,.0f} µs together"
        for mode, kernels in shown.items()
    ]
    title = "; ".join(said)
    lanes = [2.4 + kernels["stream"].nunique() for kernels in shown.values()]
    fig, axes = new_figure(
        title[0].upper() + title[1:], 12.5, 1.7 + 0.55 * sum(lanes), 1, [findings.conditions(of), *of.notes],
        rows=len(shown), height_ratios=lanes,
    )  # fmt: skip
    drawn, colours = _drawn_parts(of)
    for ax, (mode, kernels) in zip(axes, shown.items(), strict=True):
        _draw_step(ax, kernels.assign(part=kernels["part"].map(drawn)), colours)
        ax.set_title(f"one step {MODES[mode]}")
        ax.set_xlabel("µs since the step's first kernel began")
    handles = [Patch(color=ink, label=part) for part, ink in colours.items()]
    fig.legend(handles=handles, loc="outside center right", fontsize=9, frameon=False)
    return fig


def _median_step(of: Analysis, mode: str):
    """The kernels of the step of median length."""
    steps = of.steps[of.steps["mode"] == mode].sort_values("step_us")
    return of.kernels[of.kernels["step"] == steps.index[(len(steps) - 1) // 2]]


def _length(kernels) -> float:
    return (kernels["end_ns"].max() - kernels["start_ns"].min()) / 1e3


def _drawn_parts(of: Analysis) -> tuple[dict[str, str], dict[str, str]]:
    """({part: as which it is drawn}, {those: colour}), in order of the step; short parts are drawn as OTHERS."""
    times = findings.part_times(of, of.modes[0]).drop("gaps")
    every = list(dict.fromkeys([*times.index, *of.kernels["part"]]))
    longest = [*times.sort_values(ascending=False).index, *every]
    unknown = list(dict.fromkeys(part for part in longest if part not in PART_COLOURS and part != REST))
    other = set(unknown[len(OTHER_COLOURS) :])  # no colour stands for two parts
    drawn = {part: OTHERS if part in other else part for part in every}
    colours = part_colours(part for part in drawn.values() if part not in (OTHERS, REST))
    if set(drawn.values()) & {OTHERS, REST}:
        colours |= {part: GREY for part in drawn.values() if part in (OTHERS, REST)}
    return drawn, colours


def _draw_step(ax, kernels, colours) -> None:
    zero, width = kernels["start_ns"].min(), _length(kernels)
    start, end = ((kernels[side] - zero).to_numpy() / 1e3 for side in ("start_ns", "end_ns"))
    inks = [colours[part] for part in kernels["part"]]
    streams = list(dict.fromkeys(kernels["stream"]))
    for number, stream in enumerate(streams):  # below each other, the first on top
        rows = numpy.flatnonzero(kernels["stream"] == stream)
        ax.broken_barh(
            [(start[row], end[row] - start[row]) for row in rows], (-number * _STREAM - 0.8, 0.75),
            facecolors=[inks[row] for row in rows], edgecolor="white", linewidth=0.4,
        )  # fmt: skip
    for first, last, part in _stretches(kernels["part"].tolist()):
        begins, ends = start[first], end[first : last + 1].max()
        ax.broken_barh([(begins, ends - begins)], (0.25, 0.75), facecolors=colours[part], edgecolor="white")
        if (ends - begins) / width > 0.011 * len(part) + 0.01:
            ink = ink_on(colours[part])
            ax.text((begins + ends) / 2, 0.62, part, ha="center", va="center", fontsize=8.5, color=ink)
    bottom = -len(streams) * _STREAM
    gap = kernels["gap_us"].to_numpy()
    pauses = numpy.flatnonzero(gap > 0)
    ax.broken_barh([(start[row] - gap[row], gap[row]) for row in pauses], (bottom - 0.45, 0.4), facecolors=GAP)
    names = ["stream" if len(streams) == 1 else f"stream {stream}" for stream in streams]
    ax.set_yticks([0.62, *(-0.42 - number for number in range(len(streams))), bottom - 0.25], ["parts", *names, "gaps"])
    ax.set_ylim(bottom - 0.6, 1.1)
    ax.set_xlim(-0.01 * width, 1.01 * width)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)


def _stretches(parts: list[str]) -> list[tuple[int, int, str]]:
    """(first, last, part) of kernels of one part that follow each other."""
    found = []
    for place, part in enumerate(parts):
        if found and found[-1][2] == part:
            found[-1] = (found[-1][0], place, part)
        else:
            found.append((place, place, part))
    return found


@rc_context(STYLE)
def gap_sizes(of: Analysis) -> Figure:
    """The gaps between two kernels of a step: how long they are, and between which parts those lie that cost most."""
    if not of.modes:
        return empty_figure("Nothing to draw", of.notes)
    mode = of.modes[0]
    found = {mode: findings.gaps(of, mode)["gap_us"].to_numpy() for mode in of.modes}
    found = {mode: gap for mode, gap in found.items() if len(gap)}
    if not found:
        return empty_figure("A step of one kernel has no gaps", [findings.conditions(of)])
    said = [f"{mode_noun(mode)}: {numpy.median(gap):.2f} µs" for mode, gap in found.items()]
    title = f"From one kernel's end to the next one's start, median: {', '.join(said)}"
    rows = findings.gap_table(of, 10)
    rows = rows[rows["µs in a step"] > 0][::-1]
    fig, (left, right) = new_figure(title, 12.5, 4.8, 2, [findings.conditions(of), *of.notes])
    for one, gap in found.items():
        sizes = numpy.sort(gap)
        share = 100 * numpy.arange(1, len(sizes) + 1) / len(sizes)
        left.step(sizes, share, where="post", color=_MODE_COLOURS[one], linestyle=_MODE_LINES[one], label=MODES[one])
    left.set_xscale("symlog", linthresh=0.5)
    left.set_xticks([0, 0.5, 1, 2, 5, 10, 20, 50, 100], ["0", "0.5", "1", "2", "5", "10", "20", "50", "100"])
    left.set_xlim(0, max(1.0, 1.2 * max(gap.max() for gap in found.values())))
    left.minorticks_off()
    left.set(xlabel="gap, µs", ylabel="% of gaps not longer", ylim=(0, 102), title="how long")
    left.legend(frameon=False, loc="lower right", fontsize=9)
    bars = right.barh(range(len(rows)), rows["µs in a step"], color=_MODE_COLOURS[mode])
    right.bar_label(bars, [f" {us:.1f}" for us in rows["µs in a step"]], fontsize=9)
    right.set_yticks(
        range(len(rows)),
        [f"{_cut(a)} → {_cut(b)}" for a, b in zip(rows["after"], rows["before"], strict=True)], fontsize=9,
    )  # fmt: skip
    right.set(xlabel="µs of gaps in a step", title=f"where, in a {mode_noun(mode)}")
    right.set_xlim(0, max(0.1, 1.15 * rows["µs in a step"].max() if len(rows) else 0.1))
    right.grid(axis="y", visible=False)
    return fig


def _cut(name: str, width: int = 26) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"


@rc_context(STYLE)
def where_time_goes(of: Analysis) -> Figure:
    """A step of each mode as one bar: the parts' kernels, then the gaps."""
    if not of.modes:
        return empty_figure("Nothing to draw", of.notes)
    title = _where_title(of)
    drawn, colours = _drawn_parts(of)
    fig, (ax,) = new_figure(
        title, 12.5, max(1.9 + 0.9 * len(of.modes), 1.4 + 0.23 * len(colours)), 1,
        [findings.conditions(of), *of.notes],
    )  # fmt: skip
    most = max(findings.part_times(of, mode).sum() for mode in of.modes)
    for number, mode in enumerate(of.modes):
        times, left = findings.part_times(of, mode), 0.0
        stacked = times.drop("gaps").groupby(lambda part: drawn[part], sort=False).sum()
        for part, us in stacked.items():
            ax.barh(number, us, 0.62, left, color=colours[part], edgecolor="white", linewidth=0.5)
            ink = ink_on(colours[part])
            if us / most > 0.011 * len(f"{us:,.0f}"):
                ax.text(left + us / 2, number, f"{us:,.0f}", ha="center", va="center", fontsize=9, color=ink)
            left += us
        ax.barh(number, times["gaps"], 0.62, left, color="white", edgecolor="black", linewidth=0.6, hatch="////")
        ax.text(left + times["gaps"], number, f"  {left + times['gaps']:,.1f} µs", va="center", fontsize=10)
    ax.set_yticks(range(len(of.modes)), [MODES[mode] for mode in of.modes])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12 * most)
    ax.set_xlabel("µs in one step (sum of medians)")
    ax.grid(axis="y", visible=False)
    handles = [Patch(facecolor=ink, label=part) for part, ink in colours.items()]
    handles.append(Patch(facecolor="white", edgecolor="black", hatch="////", label="gaps"))
    fig.legend(handles=handles, loc="outside center right", fontsize=9, frameon=False)
    return fig


def _where_title(of: Analysis) -> str:
    mode = of.modes[0]
    steps = of.steps[of.steps["mode"] == mode]
    times = findings.part_times(of, mode).drop("gaps")
    gap = 100 * steps["gap_us"].median() / steps["step_us"].median()
    text = f"A {mode_noun(mode)} takes {steps['step_us'].median():,.1f} µs, {gap:.0f} % of it gaps"
    if ratio := findings.overhead(of):
        text += f"; launched kernel by kernel {ratio:.2f} times as long"
    return f"{text}; the longest part is {times.idxmax()}, {100 * times.max() / times.sum():.0f} % of the kernels' time"
