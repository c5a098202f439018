"""The figures of notebook 03, drawn from StepRows. Nothing here measures; report/style.py says how figures look."""

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...layer.step_parts import GAPS
from ...report.recorded import published
from ...report.style import GREY, STYLE, empty_figure, ink_on, new_figure, part_colours
from ...report.text import device_name, listed, micro, number, percent, signed_micro, signed_percent
from . import analysis
from .analysis import GDN, OTHERS, StepRows, heatmap_points, published_saving, saving
from .sentences import not_timed

MIN_LABELLED = 0.035  # of the longest bar: narrower pieces carry no number
WHOLE_COLOUR = "#333333"
OTHERS_COLOUR = "#E4E4E4"
SPREAD_COLOUR = "#BBBBBB"


@rc_context(STYLE)
def waterfall(step: StepRows) -> Figure:
    """From the first configuration's recorded step to the last one's, part by part, on an axis cut to the changes."""
    bars = analysis.waterfall(step)
    notes = [step.conditions(step.traced or step.whole), *not_timed(step.all_rows, "step")]
    if len(step.traced) < 2:
        return empty_figure("No two configurations have times of their parts", notes)
    notes.insert(1, _recorded_note(step))
    fig, (ax,) = new_figure(step.titled(_waterfall_title(step)), 11.5, 1.9 + 0.3 * len(bars), 1, notes)
    left, right = _cut(bars, step.traced.values())
    colours = _colours(step)
    for y, bar in enumerate(bars):
        if bar.part is None:
            end = _whole_bar(ax, y, bar, step.traced[bar.label], left, right)
            text = micro(bar.end)
        else:
            low, end = sorted((bar.start, bar.end))
            ax.barh(y, end - low, left=low, color=colours[bar.part], height=0.74, edgecolor=GREY, linewidth=0.6)
            text = signed_micro(bar.end - bar.start)
        ax.annotate(text, (end, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
        if y + 1 < len(bars):
            ax.plot([bar.end, bar.end], [y, y + 1], color=GREY, linewidth=0.7)
    ax.set_yticks(range(len(bars)), [step.label(bar.label) if bar.part is None else bar.label for bar in bars])
    for tick, bar in zip(ax.get_yticklabels(), bars, strict=True):
        tick.set_fontweight("bold" if bar.part is None else "normal")
    ax.set(ylim=(len(bars) - 0.4, -0.6), xlim=(left, right))
    cut = f"; the axis starts at {left:,.0f}, not at 0" if left else ""
    _time_axis(ax, f"µs of one step{cut}")
    return fig


def _cut(bars, rows) -> tuple[float, float]:
    """Limits of an axis that the changes fill; it starts at 0 only where they reach that far. rows: whole steps."""
    ends = [position for bar in bars for position in ((bar.end,) if bar.part is None else (bar.start, bar.end))]
    low, high = min(ends), max(ends)
    width = max(high - low, 0.02 * high)
    return max(0.0, low - 0.12 * width), max([high, *(row["p80_us"] for row in rows)]) + 0.16 * width


def _whole_bar(ax, y: int, bar, row: dict, left: float, right: float) -> float:
    """Draw a whole step as a thin bar from beyond the cut, with a tick at its end; return where its label starts."""
    tick = 0.006 * (right - left)
    ax.barh(y, bar.end - left, left=left, color=WHOLE_COLOUR, height=0.12)
    ax.barh(y, tick, left=bar.end - tick, color=WHOLE_COLOUR, height=0.74)
    spread = [max(row["p20_us"], left), row["p80_us"]]
    ax.plot(spread, [y, y], color=SPREAD_COLOUR, linewidth=3, solid_capstyle="butt")
    if left:
        ax.text(
            left + 0.015 * (right - left),
            y,
            "//",
            ha="center",
            va="center",
            fontsize=11,
            fontweight="bold",
            color=GREY,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
    return max(bar.end, row["p80_us"])


def _time_axis(ax, text: str) -> None:
    ax.set_xlabel(text)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda us, _: f"{us:,.0f}"))
    ax.grid(axis="y", visible=False)


def _colours(step: StepRows) -> dict[str, str]:
    return part_colours(step.part_order) | {OTHERS: OTHERS_COLOUR}


def _waterfall_title(step: StepRows) -> str:
    """ "before 487 → best 406 µs (−17%): gdn −55, shared expert −17, gaps −8 µs"."""
    names = list(step.traced)
    first, last = (step.traced[name]["median_us"] for name in (names[0], names[-1]))
    changes = sorted(analysis.main_changes(step).items(), key=lambda change: -abs(change[1]))[:3]
    numbers = ", ".join(f"{part} {number(us, '+,.0f')}" for part, us in changes)
    title = f"{names[0]} {first:,.0f} → {names[-1]} {last:,.0f} µs ({number(last / first - 1, '+.0%')})"
    return f"{title}: {numbers} µs" if numbers else title


def _recorded_note(step: StepRows) -> str:
    if step.on_cpu:
        return ""
    differences = ", ".join(f"{name} {signed_percent(share)}" for name, share in step.tracing_differences.items())
    return (
        "Replays recorded by CUPTI; a kernel counts from when those before it have ended. Light line at a bar's end: "
        f"p20 to p80. Parts and gaps add up to the recorded step; recorded against untraced replays: {differences}."
    )


@rc_context(STYLE)
def parts(step: StepRows) -> Figure:
    """Each configuration's recorded step as a bar of its parts and gaps."""
    notes = [step.conditions(step.traced or step.whole), *not_timed(step.all_rows, "step")]
    if not step.parts:
        return empty_figure("No step has times of its parts", notes)
    notes.insert(1, _recorded_note(step))
    if step.all_reduce:
        notes.append(f"The {step.all_reduce['times_a_layer']} all-reduces of a layer cannot run on one GPU.")
    colours = _colours(step)
    fig, (ax,) = new_figure(step.titled(_parts_title(step)), 12.0, 2.6 + 0.62 * len(step.parts), 1, notes)
    longest = max(sum(row["median_us"] for row in rows.values()) for rows in step.parts.values())
    for y, name in enumerate(step.parts):
        end = _stacked_bar(ax, y, step, name, colours, longest)
        whole = step.traced[name]
        ax.plot([whole["p20_us"], whole["p80_us"]], [y, y], color=SPREAD_COLOUR, linewidth=3, solid_capstyle="butt")
        text = f"{micro(whole['median_us'])}, GDN {percent(step.gdn_share(name))}"
        end = max(end, whole["p80_us"])
        ax.annotate(text, (end, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9.5)
    ax.set_yticks(range(len(step.parts)), [step.label(name) for name in step.parts])
    ax.set(ylim=(len(step.parts) - 0.45, -0.75), xlim=(0, longest * 1.2))
    _time_axis(ax, "µs of one step")
    handles = [ax.barh(0, 0, color=colours[part], hatch="////" if part == GAPS else None) for part in step.part_order]
    fig.legend(handles, step.part_order, loc="outside right upper", frameon=False, fontsize=8.5, handlelength=1.2)
    return fig


def _stacked_bar(ax, y: int, step: StepRows, name: str, colours, longest: float) -> float:
    """Draw the parts of one configuration; return where they end."""
    left = 0.0
    for part in step.part_order:
        us = step.us(name, part)
        gap = part == GAPS
        ax.barh(
            y,
            us,
            left=left,
            color=colours[part],
            edgecolor=GREY if gap else "white",
            linewidth=0.7,
            height=0.62,
            hatch="////" if gap else None,
        )
        if us > MIN_LABELLED * longest:
            ink = ink_on(colours[part])
            ax.text(left + us / 2, y, f"{us:,.0f}", ha="center", va="center", fontsize=9, color=ink)
        left += us
    return left


def _parts_title(step: StepRows) -> str:
    name = list(step.parts)[-1]
    busy = {part: row["median_us"] for part, row in step.parts[name].items() if part != GAPS}
    largest = max(busy, key=busy.get)
    total = step.traced[name]["median_us"]
    shares = {largest: busy[largest], "GDN": step.us(name, GDN), "gaps": step.us(name, GAPS)}
    if largest == GDN:
        del shares[largest]
    takes = [f"{part} {percent(us / total)}" for part, us in shares.items()]
    return f"In a step of {name}: {listed(takes)}"


@rc_context(STYLE)
def against_published(step: StepRows) -> Figure:
    """The step and the GDN kernel: published before and after, and each configuration of this run."""
    theirs = published("step_profile").set_index("part")
    notes = [
        "Published: one of 8 B200, SGLang pull request 19150, which does not give the batch of its profile.",
        f"Measured: {step.conditions()}" if step.whole else "",
        *not_timed(step.all_rows, "step"),
    ]
    fig, axes = new_figure(step.titled(_published_title(step)), 11.5, 2.4 + 0.36 * (2 + len(step.whole)), 2, notes)
    for ax, part in zip(axes, theirs.index, strict=True):
        whole = part == "decode step"
        rows = step.whole if whole else {name: parts[GDN] for name, parts in step.parts.items()}
        bars = [("published before", theirs.triton[part], None), ("published after", theirs.flashinfer[part], None)]
        bars += [(step.label(name), row["median_us"], row) for name, row in rows.items()]
        colour = WHOLE_COLOUR if whole else part_colours([GDN])[GDN]
        for y, (_, us, row) in enumerate(bars):
            ax.barh(y, us, color=colour if row else "white", edgecolor=colour if row else GREY, height=0.7)
            end = us
            if row:
                ax.plot([row["p20_us"], row["p80_us"]], [y, y], color=SPREAD_COLOUR, linewidth=3, solid_capstyle="butt")
                end = max(us, row["p80_us"])
            ax.annotate(micro(us), (end, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5)
        ax.set_yticks(range(len(bars)), [name for name, _, _ in bars])
        longest = max(max(us, row["p80_us"] if row else 0.0) for _, us, row in bars)
        ax.set(ylim=(len(bars) - 0.4, -0.6), xlim=(0, longest * 1.22))
        ax.set_title(part)
        _time_axis(ax, "µs (light line: p20 to p80)")
    return fig


def _published_title(step: StepRows) -> str:
    theirs, ours = published_saving(), saving(step)
    title = f"Saved, published: {theirs.total:.0f} µs ({theirs.gdn:.0f} GDN, {theirs.rest:.0f} rest)"
    if ours is None:
        return f"{title}; before and after were not both measured here" if step.whole else title
    total, gdn, rest = (number(us, ".0f") for us in (*ours, ours.rest))
    return f"{title}; here: {total} µs ({gdn} GDN, {rest} rest)"


@rc_context(STYLE)
def heatmap(step: StepRows) -> Figure:
    """GDN's share of the step (upper number) and what the last configuration saves (lower): tp by batch, by model."""
    points = heatmap_points(step)
    if points.share.isna().all():
        return empty_figure("GDN's share by model, tp and batch: nothing was measured", not_timed(step.all_rows))
    models, tps, batches = (list(dict.fromkeys(points[column])) for column in ("model", "tp", "B"))
    first, last, both = points["first"].iloc[0], points["last"].iloc[0], not points.gain.isna().all()
    notes = [
        f"{device_name(step.run)}. " * bool(step.run)
        + f"Colour and upper number: GDN's share of the recorded step of {first}."
        + f" Lower number: what {last} saves of the untraced step of {first}." * both,
        *not_timed(step.all_rows, "share"),
    ]
    width, height = 1.8 + (0.9 + 0.72 * len(batches)) * len(models), 2.3 + 0.5 * len(tps)
    title = step.titled(_heatmap_title(step), step.heatmap)
    fig, axes = new_figure(title, max(width, 8.0), height, len(models), notes, sharey=True)
    cells = {(line.model, line.tp, line.B): line for line in points.itertuples()}
    darkest = max(points.share.max(), 0.01)
    for ax, model in zip(axes, models, strict=True):
        shares = [[_share(cells.get((model, tp, batch))) for batch in batches] for tp in tps]
        image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=darkest, aspect="auto")
        for y, tp in enumerate(tps):
            for x, batch in enumerate(batches):
                if (line := cells.get((model, tp, batch))) is not None:
                    _write_cell(ax, x, y, line, dark=line.share > 0.55 * darkest)
        ax.set_xticks(range(len(batches)), batches)
        ax.set_yticks(range(len(tps)), tps)
        ax.set(title=model, xlabel="batch B")
        ax.grid(False)
    axes[0].set_ylabel("tensor-parallel GPUs")
    fig.colorbar(image, ax=axes, format=lambda share, _: f"{share:.0%}", label="GDN's share", shrink=0.9, pad=0.01)
    return fig


def _share(line) -> float:
    return float("nan") if line is None else line.share


def _write_cell(ax, x, y, line, dark: bool) -> None:
    text = "" if line.share != line.share else percent(line.share)
    if line.gain == line.gain:
        text += f"\nsaves {percent(line.gain)}"
    ax.text(x, y, text, ha="center", va="center", color="white" if dark else "black", fontsize=8.5)


def _heatmap_title(step: StepRows) -> str:
    points = heatmap_points(step)
    title = f"GDN takes {_range(points.share)} of a step of {points['first'].iloc[0]}"
    if not points.gain.isna().all():
        title += f"; {points['last'].iloc[0]} saves {_range(points.gain)}"
    return title


def _range(shares) -> str:
    return f"{percent(shares.min())} to {percent(shares.max())}"
