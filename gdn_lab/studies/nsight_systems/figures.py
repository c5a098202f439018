"""Draw the figures of notebook 04 from a StepTrace."""

import numpy
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...report.style import GREY, OTHER_COLOURS, PART_COLOURS, STYLE, empty_figure, ink_on, new_figure
from ...report.text import cut, micro, percent
from ...trace.steps import MODES, REST, StepTrace
from .analysis import eager_over_replayed, gap_share, gap_table, gaps, kernels_of_step, median_step, parts_of_step
from .sentences import MODE_NOUNS, conditions

GAP = "#000000"  # gaps have a lane of their own, below the kernels
STREAMS = 16  # lanes of one step; further streams are drawn in the last
DRAWN = 5000  # kernels of one step; further ones would make a file of many MB and nothing that can be seen
OTHERS = "other parts"  # parts for which no colour is left
PLACES = 10  # that are drawn
_MODE_COLOURS = {"graph": OTHER_COLOURS[2], "eager": OTHER_COLOURS[3]}
_MODE_LINES = {"graph": "-", "eager": (0, (4, 2))}
_GAP_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_MODE_WORDS = {"graph": "replayed", "eager": "launched one by one"}


@rc_context(STYLE)
def timeline(trace: StepTrace, origin: str = "") -> Figure:
    """Draw the step of median length of each mode: parts on top, kernels by stream below, gaps at the bottom."""
    if not trace.modes:
        return empty_figure("Nothing to draw", trace.notes)
    shown = {mode: kernels_of_step(trace, mode) for mode in trace.modes}
    title = "; ".join(
        f"{MODE_NOUNS[mode]}: {micro(kernels['gap_us'].sum())} of {micro(_length(kernels))} are gaps"
        for mode, kernels in shown.items()
    )
    lanes = [2.4 + min(kernels["stream"].head(DRAWN).nunique(), STREAMS) for kernels in shown.values()]
    fig, axes = new_figure(
        _titled(title[0].upper() + title[1:], origin),
        12.5,
        1.7 + 0.55 * sum(lanes),
        notes=[conditions(trace), *trace.notes],
        rows=len(shown),
        height_ratios=lanes,
    )
    drawn, colours = _drawn_parts(trace)
    for ax, (mode, kernels) in zip(axes, shown.items(), strict=True):
        first = f", the first {DRAWN:,} of its {len(kernels):,} kernels" if len(kernels) > DRAWN else ""
        kernels = kernels.head(DRAWN)
        _draw_step(ax, kernels.assign(part=kernels["part"].map(drawn)), colours)
        ax.set_title(f"one step {MODES[mode]}{first}")
        ax.set_xlabel("µs since the step's first kernel began")
    handles = [Patch(color=ink, label=cut(part, 40)) for part, ink in colours.items()]
    fig.legend(handles=handles, loc="outside center right", fontsize=9, frameon=False)
    return fig


def _length(kernels) -> float:
    return (kernels["end_ns"].max() - kernels["start_ns"].min()) / 1e3


def _drawn_parts(trace: StepTrace) -> tuple[dict[str, str], dict[str, str]]:
    """Return ({part: what it is drawn as}, {that: colour}) in order of the step; short parts are drawn as OTHERS.

    No colour stands for two parts: the longest parts get those that are left.
    """
    times = parts_of_step(trace, trace.modes[0]).drop("gaps")
    parts = list(dict.fromkeys([*times.index, *trace.kernels["part"]]))
    colours = {part: PART_COLOURS[part] for part in parts if part in PART_COLOURS}
    unknown = [part for part in parts if part not in colours and part != REST]
    unknown.sort(key=lambda part: -times.get(part, 0.0))
    free = [colour for colour in OTHER_COLOURS if colour not in colours.values()]
    colours |= dict(zip(unknown, free, strict=False))
    drawn = {part: part if part in colours or part == REST else OTHERS for part in parts}
    return drawn, {name: colours.get(name, GREY) for name in dict.fromkeys(drawn.values())}


def _draw_step(ax, kernels, colours) -> None:
    zero, width = kernels["start_ns"].min(), _length(kernels)
    start, end = ((kernels[side] - zero).to_numpy() / 1e3 for side in ("start_ns", "end_ns"))
    inks = [colours[part] for part in kernels["part"]]
    streams = list(dict.fromkeys(kernels["stream"]))
    streams, others = streams[:STREAMS], streams[STREAMS:]
    for number, stream in enumerate(streams):  # the first stream on top
        last = number == STREAMS - 1
        rows = numpy.flatnonzero(kernels["stream"].isin([stream, *(others if last else [])]))
        bars = [(start[row], end[row] - start[row]) for row in rows]
        faces = [inks[row] for row in rows]
        ax.broken_barh(bars, (-number - 0.8, 0.75), facecolors=faces, edgecolor="white", linewidth=0.4)
    for first, last, part in _stretches(kernels["part"].tolist()):
        begins, ends = start[first], end[first : last + 1].max()
        ax.broken_barh([(begins, ends - begins)], (0.25, 0.75), facecolors=colours[part], edgecolor="white")
        if (ends - begins) / width > 0.011 * len(part) + 0.01:
            ink = ink_on(colours[part])
            ax.text((begins + ends) / 2, 0.62, part, ha="center", va="center", fontsize=8.5, color=ink)
    bottom = -len(streams)
    gap = kernels["gap_us"].to_numpy()
    pauses = [(start[row] - gap[row], gap[row]) for row in numpy.flatnonzero(gap > 0)]
    ax.broken_barh(pauses, (bottom - 0.45, 0.4), facecolors=GAP)
    names = ["stream" if len(streams) == 1 else f"stream {stream}" for stream in streams]
    names[-1] += f" and {len(others):,} more" if others else ""
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
def gap_sizes(trace: StepTrace, origin: str = "") -> Figure:
    """Draw how long the gaps between two kernels of a step are, and between which parts those lie that cost most."""
    if not trace.modes:
        return empty_figure("Nothing to draw", trace.notes)
    sizes = {mode: numpy.sort(gaps(trace, mode)["gap_us"].to_numpy()) for mode in trace.modes}
    sizes = {mode: gap for mode, gap in sizes.items() if len(gap)}
    if not sizes:
        return empty_figure("A step of one kernel has no gaps", [conditions(trace)])
    found = [f"{MODE_NOUNS[mode]}: {_gap_words(gap)}" for mode, gap in sizes.items()]
    title = "; ".join(found)
    title = _titled(title[0].upper() + title[1:], origin)
    fig, (left, right) = new_figure(title, 12.5, 4.8, 2, [conditions(trace), *trace.notes])
    _draw_sizes(left, sizes)
    _draw_places(right, trace)
    return fig


def _titled(finding: str, origin: str) -> str:
    return f"{finding} ({origin})" if origin else finding


def _gap_words(sizes: numpy.ndarray) -> str:
    """Say how many gaps there are, their sum and the longest. sizes: µs, 0 where the next kernel did not wait."""
    count = int((sizes > 0).sum())
    if count < 2:
        return f"one gap of {micro(sizes.max())}" if count else "no gap"
    return f"{count:,} gaps, {micro(sizes.sum())} together, the longest {micro(sizes.max())}"


def _draw_sizes(ax, sizes: dict[str, numpy.ndarray]) -> None:
    for mode, gap in sizes.items():
        share = 100 * numpy.arange(1, len(gap) + 1) / len(gap)
        style = {"color": _MODE_COLOURS[mode], "linestyle": _MODE_LINES[mode]}
        ax.step(gap, share, where="post", label=MODES[mode], linewidth=2, **style)
    ax.set_xscale("symlog", linthresh=0.5)
    ax.set_xticks(_GAP_TICKS, [f"{us:g}" for us in _GAP_TICKS])
    ax.set_xlim(0, max(1.0, 1.2 * max(gap[-1] for gap in sizes.values())))
    ax.minorticks_off()
    ax.set(
        xlabel="gap between two kernels of the step, µs",
        ylabel="% of pairs of kernels with no longer gap",
        ylim=(0, 102),
        title="how long",
    )
    ax.legend(frameon=False, loc="lower right", fontsize=9)


def _draw_places(ax, trace: StepTrace) -> None:
    mode = trace.modes[0]
    found = gap_table(trace, most=10**6)
    rows, shown = found.head(PLACES)[::-1], f": the {PLACES} largest of {len(found)}" * (len(found) > PLACES)
    bars = ax.barh(range(len(rows)), rows["µs in the step"], color=_MODE_COLOURS[mode])
    ax.bar_label(bars, [f" {us:.2f}" for us in rows["µs in the step"]], fontsize=9)
    places = [
        f"{cut(after, 26)} → {cut(before, 26)}" for after, before in zip(rows["after"], rows["before"], strict=True)
    ]
    ax.set_yticks(range(len(rows)), places, fontsize=9)
    ax.set(xlabel="µs of gaps in the step", title=f"between which parts, {_MODE_WORDS[mode]}{shown}")
    ax.set_xlim(0, max(0.1, 1.15 * rows["µs in the step"].max() if len(rows) else 0.1))
    ax.grid(axis="y", visible=False)


@rc_context(STYLE)
def where_time_goes(trace: StepTrace, origin: str = "") -> Figure:
    """Draw a step of each mode as one bar: the kernels of its parts, then the gaps."""
    if not trace.modes:
        return empty_figure("Nothing to draw", trace.notes)
    times = {mode: parts_of_step(trace, mode) for mode in trace.modes}
    drawn, colours = _drawn_parts(trace)
    height = max(1.9 + 0.9 * len(times), 1.4 + 0.23 * len(colours))
    fig, (ax,) = new_figure(_titled(_where_title(trace), origin), 12.5, height, notes=[conditions(trace), *trace.notes])
    longest = max(each.sum() for each in times.values())
    for number, (mode, each) in enumerate(times.items()):
        _draw_bar(ax, number, each.rename(index=drawn), colours, longest)
        step = micro(median_step(trace, mode)["step_us"])
        ax.text(each.sum(), number, f"  {step}", va="center", fontsize=10)
    ax.set_yticks(range(len(times)), [MODES[mode] for mode in times])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12 * longest)
    ax.set_xlabel("µs in the step of median length")
    ax.grid(axis="y", visible=False)
    handles = [Patch(facecolor=ink, label=cut(part, 40)) for part, ink in colours.items()]
    handles.append(Patch(facecolor="white", edgecolor="black", hatch="////", label="gaps"))
    fig.legend(handles=handles, loc="outside center right", fontsize=9, frameon=False)
    return fig


def _draw_bar(ax, y: int, times, colours, longest: float) -> None:
    """Draw one step: times are µs by what a part is drawn as, and "gaps" last."""
    left = 0.0
    for part, us in times.drop("gaps").groupby(level=0, sort=False).sum().items():
        ax.barh(y, us, 0.62, left, color=colours[part], edgecolor="white", linewidth=0.5)
        text = f"{us:,.0f}" if us >= 10 else f"{us:.1f}"
        if us / longest > 0.011 * len(text):
            ink = ink_on(colours[part])
            ax.text(left + us / 2, y, text, ha="center", va="center", fontsize=9, color=ink)
        left += us
    ax.barh(y, times["gaps"], 0.62, left, color="white", edgecolor="black", linewidth=0.6, hatch="////")


def _where_title(trace: StepTrace) -> str:
    """State the first mode's step, its gaps and its longest part."""
    mode = trace.modes[0]
    step, parts = median_step(trace, mode)["step_us"], parts_of_step(trace, mode).drop("gaps")
    title = f"{MODE_NOUNS[mode].capitalize()}: {micro(step)}"
    if ratio := eager_over_replayed(trace):
        title += f", {ratio:.2f}× if launched kernel by kernel"
    return (
        f"{title}; {percent(gap_share(trace, mode))} is gaps, {percent(parts.max() / step)} {cut(parts.idxmax(), 40)}"
    )
