"""The figures drawn from timed rows of decode, in notebooks 01 and 02. Nothing here measures.

Each function takes a Timed and returns a matplotlib Figure whose title is what its rows say; without rows it says so.
"""

from matplotlib import rc_context
from matplotlib.figure import Figure

from ...report.recorded import PUBLISHED_BASELINE, published_ratios
from ...report.style import (
    GREY,
    STYLE,
    batch_axis,
    colour,
    empty_figure,
    label,
    label_ends,
    new_figure,
    plain_log_axis,
    plot_lines,
)
from ...report.text import listed, micro, number, number_range, percent, signed_micro
from ...report.timed import Timed, largest_batch, name_of
from .analysis import (
    GATHER_SCATTER_TRAFFIC,
    INDEXING,
    LARGE,
    PUBLISHED_OVER,
    conditions,
    how_indexed,
    indexing_ratios,
    launch_gaps,
    reproduction,
)

MOST_LINEAR = 4.0  # times over FlashInfer's up to here are drawn on a linear axis, beyond on a logarithmic one
PUBLISHED_MARKERS = (".", "x", "+", "1", "2")  # of the published kernels, in the order of their table


# ---- time and share of the measured bandwidth -----------------------------------------------------------------------


@rc_context(STYLE)
def decode_time(timed: Timed) -> Figure:
    """Time above the bandwidth floor, and share of the measured bandwidth, by batch, of every kernel.

    The floor is the bytes a call must move over the measured bandwidth. Eager PyTorch is drawn only where nothing else
    was timed.
    """
    timed = timed.kernels()
    notes = [conditions(timed), *timed.notes_on_copies(), *timed.not_timed(), *timed.outside_tolerance()]
    if not timed:
        return empty_figure("Decode time: nothing was timed", notes)
    fig, (left, right) = new_figure(timed.titled(time_title(timed)), 11.5, 5.0, 2, notes)
    above = timed.values(lambda row: row["median_us"] - floor_us(row))
    shares = timed.values(lambda row: row["share_of_roof"] * 100)
    for name, rows in timed.by_variant().items():
        batches = [row["batch"] for row in rows]
        low, high = ([row[field] - floor_us(row) for row in rows] for field in ("p20_us", "p80_us"))
        left.fill_between(batches, low, high, color=colour(name), alpha=0.22, linewidth=0)
    ends_left = plot_lines(left, above, signed_micro, timed.indexing)
    ends_right = plot_lines(right, shares, lambda share: percent(share / 100), timed.indexing)
    _excess_axis(left, [row["p20_us"] - floor_us(row) for row in timed.rows])
    left.set(ylabel="µs above the floor (band: p20 to p80)", title="time above bytes ÷ measured bandwidth (the floor)")
    right.axhline(100, color=GREY, linewidth=1, linestyle=":")
    right.set_ylim(0, max(108.0, max(row["share_of_roof"] for row in timed.rows) * 108))
    right.set(ylabel="% of the measured bandwidth", title="share of the measured bandwidth")
    for ax, ends in ((left, ends_left), (right, ends_right)):
        batch_axis(ax, timed.batches)
        label_ends(ax, ends)
    return fig


def _excess_axis(ax, least):
    """A log axis; one that is linear around zero where a time is below the floor, as on a busy CPU."""
    if min(least) > 0:
        ax.set_yscale("log")
        plain_log_axis(ax.yaxis)
        return
    ax.axhline(0, color=GREY, linewidth=1, linestyle=":")
    ax.set_yscale("symlog", linthresh=1.0, linscale=0.5)
    ax.yaxis.set_major_formatter(lambda us, _: number(us, ",.0f"))


def floor_us(row: dict) -> float:
    """Time that the bytes of a call take at the measured bandwidth, µs."""
    return row["bytes"] / row["roof_gb_per_s"] / 1e3


def time_title(timed: Timed) -> str:
    """The fastest and the slowest at the largest batch."""
    batch = timed.batches[-1]
    rows = sorted(timed.at(batch).items(), key=lambda item: item[1]["median_us"])
    (fastest, best), (slowest, worst) = rows[0], rows[-1]
    title = (
        f"At B = {batch} {label(fastest)} is fastest: {micro(best['median_us'])}, "
        f"{percent(best['share_of_roof'])} of measured bandwidth"
    )
    if slowest != fastest:
        title += f"; {label(slowest)} takes {worst['median_us'] / best['median_us']:.2f}× that"
    return title


@rc_context(STYLE)
def one_batch(timed: Timed) -> Figure:
    """Time of every variant at the largest batch of the rows: bars with p20 to p80, hollow for gather and scatter."""
    timed = timed.selected(indexing=None)
    notes = [conditions(timed), *timed.not_timed(), *timed.outside_tolerance()]
    if not timed:
        return empty_figure("Nothing was timed", notes)
    batch = timed.batches[-1]
    rows = sorted((row for row in timed.rows if row["batch"] == batch), key=lambda row: row["median_us"])
    best = rows[0]
    title = (
        f"At B = {batch} {label(name_of(best))} is fastest: {micro(best['median_us'])}, "
        f"{percent(best['share_of_roof'])} of measured bandwidth"
    )
    fig, (ax,) = new_figure(timed.titled(title), 9.5, 1.8 + 0.36 * len(rows), 1, notes)
    for y, row in enumerate(rows):
        ink, us = colour(name_of(row)), row["median_us"]
        fill, hatch = (ink, None) if how_indexed(row) == INDEXING["in_place"] else ("white", "////")
        ax.barh(y, us, color=fill, edgecolor=ink, hatch=hatch, height=0.7)
        ax.plot([row["p20_us"], row["p80_us"]], [y, y], color=GREY, linewidth=2.5, solid_capstyle="butt")
        ax.annotate(
            f"{micro(us)}, {percent(row['share_of_roof'])}",
            (max(us, row["p80_us"]), y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            bbox={"facecolor": "white", "linewidth": 0, "pad": 1},
        )
    ax.set_yticks(range(len(rows)), [f"{label(name_of(row))}, {how_indexed(row)}" for row in rows])
    ax.set(xlim=(0, max(row["p80_us"] for row in rows) * 1.2), ylim=(len(rows) - 0.4, -0.6))
    ax.set_xlabel("median time of a call, µs (dark: p20 to p80; after the bar: time, share of measured bandwidth)")
    ax.grid(axis="y", visible=False)
    return fig


@rc_context(STYLE)
def launch_gap(timed: Timed) -> Figure:
    """Replay time less kernel-only time for small batches: what a call costs besides its kernel. Needs both timers."""
    timed = timed.selected(timer="cuda_graph_replay")
    gaps = launch_gaps(timed)
    if not gaps:
        return empty_figure(
            f"Replay and kernel-only time: not both were measured up to B = {LARGE}",
            ["The gap between a call's replay time and its kernels' own needs cuda_graph_replay and cupti_kernel."],
        )
    notes = [
        conditions(timed),
        "A kernel that starts before the previous one has ended (PDL) counts its wait as its own time. Left out: eager "
        f"PyTorch, whose calls are many kernels, and batches beyond {LARGE}, whose time dwarfs the gap.",
    ]
    batches = sorted({batch for by_batch in gaps.values() for batch in by_batch})
    first = sorted((by_batch[batches[0]], name) for name, by_batch in gaps.items() if batches[0] in by_batch)
    each = dict.fromkeys(f"{number(us, '.2f')} µs ({label(name)})" for us, name in (first[0], first[-1]))
    title = f"At B = {batches[0]} replay less kernel-only time is {' to '.join(each)}"
    fig, (ax,) = new_figure(timed.titled(title), 9.0, 4.4, 1, notes)
    ends = plot_lines(ax, gaps, lambda us: f"{number(us, '.2f')} µs")
    ax.axhline(0, color=GREY, linewidth=1)
    batch_axis(ax, batches)
    ax.set_ylabel("replay less kernel-only time, µs")
    label_ends(ax, ends)
    return fig


# ---- in place against gather and scatter ----------------------------------------------------------------------------


@rc_context(STYLE)
def gather_scatter(timed: Timed) -> Figure:
    """Time with gather and scatter over time in place, by batch: what indexing the pool in place is worth alone.

    Eager PyTorch, which always gathers, is drawn only where nothing else was timed.
    """
    timed = timed.kernels()
    found = indexing_ratios(timed)
    notes = [conditions(timed), *timed.not_timed()]
    if not found:
        return empty_figure("In place against gather and scatter: nothing timed both ways", notes)
    last = largest_batch(found)
    at_last = [by_batch[last] for by_batch in found.values() if last in by_batch]
    title = f"At B = {last} gather and scatter take {number_range(at_last)}× the in-place time"
    fig, (ax,) = new_figure(timed.titled(title), 9.0, 4.6, 1, notes)
    ends = plot_lines(ax, found, lambda ratio: f"{ratio:.2f}", "gather_scatter")
    ends.append((1.0, "in place  1", GREY))
    ax.axhline(1.0, color=GREY, linewidth=1)
    top = max(1.0, *(ratio for by_batch in found.values() for ratio in by_batch.values()))
    if not timed.on_cpu:
        top = max(top, GATHER_SCATTER_TRAFFIC)
        ax.axhline(GATHER_SCATTER_TRAFFIC, color=GREY, linewidth=1, linestyle=":")
        ends.append((GATHER_SCATTER_TRAFFIC, f"traffic of the states  {GATHER_SCATTER_TRAFFIC}", GREY))
    ax.set_ylim(0, top * 1.12)
    batch_axis(ax, {batch for by_batch in found.values() for batch in by_batch})
    ax.set_ylabel("time over in-place time")
    label_ends(ax, ends)
    return fig


# ---- next to the published ratios -----------------------------------------------------------------------------------


@rc_context(STYLE)
def against_published(timed: Timed) -> Figure:
    """Times over FlashInfer's by batch: the published columns in grey, and this run's variants."""
    timed = timed.kernels()
    found = reproduction(timed)
    ours = timed.ratios_to(PUBLISHED_OVER)
    notes = [
        "Published: SGLang pull request 19150, dashed between batches far apart. Its heads, timer, L2 policy and value "
        "tile of Triton are not published.",
        f"Here: {conditions(timed)}" if ours else "",
        *timed.not_timed(),
    ]
    fig, (ax,) = new_figure(timed.titled(_published_title(found)), 10.5, 5.2, 1, notes)
    table, ends = published_ratios(), []
    for column, ((gpu, kernel), rows) in enumerate(table.groupby(["gpu", "kernel"], sort=False)):
        _draw_published(ax, rows, PUBLISHED_MARKERS[column % len(PUBLISHED_MARKERS)])
        ends.append((rows.ratio.iloc[-1], f"published, {gpu}: {kernel}  {rows.ratio.iloc[-1]:.2f}", GREY))
    ends += plot_lines(ax, ours, lambda ratio: f"{ratio:.2f}")
    ax.axhline(1.0, color=colour(PUBLISHED_OVER), linewidth=1.2)
    ends.append((1.0, f"{label(PUBLISHED_OVER)}  1", colour(PUBLISHED_OVER)))
    batch_axis(ax, {*map(int, table.batch), *(timed.batches if ours else ())})
    low, high = found.band
    ax.fill_between([LARGE, ax.get_xlim()[1]], low, high, color=GREY, alpha=0.12, linewidth=0)
    top = max(table.ratio.max(), *(ratio for by_batch in ours.values() for ratio in by_batch.values()), 2.8) * 1.1
    if top > MOST_LINEAR:
        ax.set_yscale("log")
        plain_log_axis(ax.yaxis)
        ax.set_ylim(0.5, top)
    else:
        ax.set_ylim(0, top)
    ax.set_ylabel("time over FlashInfer's")
    ax.text(LARGE * 1.06, high + 0.04, f"published, B ≥ {LARGE}: {low:.2f} to {high:.2f}", va="bottom", color=GREY)
    label_ends(ax, ends)
    return fig


def _published_title(found) -> str:
    """The published range and that of each baseline."""
    title = f"Published from B = {LARGE}: {PUBLISHED_BASELINE} {found.band[0]:.1f} to {found.band[1]:.1f}× FlashInfer"
    if not found.nearest:
        return f"{title}; nothing was timed here to compare"
    each = [f"{label(name)} {number_range(ends)}" for name, ends in sorted(found.ranges.items(), reverse=True)]
    return f"{title}; here {listed(each)}"


def _draw_published(ax, rows, marker: str) -> None:
    """One published column: solid between batches a factor of 2 apart, dashed where nothing was published between."""
    points = sorted(zip(rows.batch, rows.ratio, strict=True))
    for (b0, r0), (b1, r1) in zip(points, points[1:], strict=False):
        ax.plot([b0, b1], [r0, r1], color=GREY, linewidth=1.5, linestyle="-" if b1 <= 2 * b0 else (0, (3, 3)))
    ax.plot(*zip(*points, strict=True), color=GREY, linestyle="", marker=marker, markersize=8)
