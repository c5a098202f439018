"""The figures of notebooks 00, 01 and 02 that are drawn from rows of decode. Nothing here measures.

Each function returns a matplotlib Figure whose title states what its data say; a figure without data says so instead.
drawing.py is how they look.
"""

from matplotlib import rc_context
from matplotlib.figure import Figure

from ...bench.roof import datasheet_gb_per_s
from ...report.recorded import published_ratios
from ...report.style import (
    GREY,
    STYLE,
    batch_axis,
    colour,
    empty_figure,
    label_ends,
    line_style,
    new_figure,
    plain_log_axis,
)
from ...report.text import device_name, micro, number_range, percent
from ...report.timed import clock_prefix, name_of, not_timed, series, timed, times, with_copies
from .analysis import (
    GATHER_SCATTER_TRAFFIC,
    INDEXING,
    conditions,
    indexing_ratios,
    layout_ratios,
    ratios_to,
    reproduction,
)

# ---- 01 and 02: in place against gather and scatter -----------------------------------------------------------------


@rc_context(STYLE)
def gather_scatter(rows, run=None, timer=None) -> Figure:
    """Time with gather and scatter over time in place, by batch: what indexing the pool in place is worth alone."""
    ratios = indexing_ratios(rows, timer)
    notes = [conditions(timed(rows, timer=timer), run), *not_timed(rows)]
    if not ratios:
        return empty_figure("In place against gather and scatter: nothing timed both ways", notes)
    batches = sorted({batch for of in ratios.values() for batch in of})
    kernels = {name: of for name, of in ratios.items() if not name.startswith("torch/")}  # eager PyTorch always gathers
    last = [of[batches[-1]] for of in (kernels or ratios).values() if batches[-1] in of]
    title = (
        f"{clock_prefix(rows)}At B = {batches[-1]} gather and scatter make a step {number_range(last)} times as long"
    )
    fig, (ax,) = new_figure(title, 9.0, 4.6, 1, notes)
    ends = []
    for name, of in ratios.items():
        xs = sorted(of)
        ax.plot(xs, [of[x] for x in xs], **line_style(name, "gather_scatter"))
        ends.append((of[xs[-1]], f"{name}  {of[xs[-1]]:.2f}", colour(name)))
    ax.axhline(1.0, color=GREY, linewidth=1)
    ends.append((1.0, "in place  1", GREY))
    top = max(1.0, *(value for of in ratios.values() for value in of.values()))
    if kernels:
        top = max(top, GATHER_SCATTER_TRAFFIC)
        ax.axhline(GATHER_SCATTER_TRAFFIC, color=GREY, linewidth=1, linestyle=":")
        ends.append((GATHER_SCATTER_TRAFFIC, f"the state's traffic  {GATHER_SCATTER_TRAFFIC}", GREY))
    ax.set_ylim(0, top * 1.12)
    batch_axis(ax, batches)
    ax.set_ylabel("time over in-place time")
    label_ends(ax, ends)
    return fig


@rc_context(STYLE)
def layout_cost(rows, run=None, timer=None) -> Figure:
    """KV over VK within one backend, both in place, by batch: what the memory order is worth alone."""
    base, ratios = layout_ratios(rows, timer)
    notes = [conditions(timed(rows, timer=timer), run), *not_timed(rows)]
    if not ratios:
        return empty_figure("KV against VK: nothing timed on both", notes)
    batches = sorted({batch for of in ratios.values() for batch in of})
    each = " and ".join(f"{of[batches[-1]]:.2f} ({name})" for name, of in ratios.items() if batches[-1] in of)
    title = f"{clock_prefix(rows)}At B = {batches[-1]} a step on a KV pool takes {each} times as long as {base}"
    fig, (ax,) = new_figure(title, 9.0, 4.4, 1, notes)
    ends = [(1.0, f"{base}  1", colour(base))]
    for name, of in ratios.items():
        xs = sorted(of)
        ax.plot(xs, [of[x] for x in xs], **line_style(name))
        ends.append((of[xs[-1]], f"{name}  {of[xs[-1]]:.2f}", colour(name)))
    ax.axhline(1.0, color=colour(base), linewidth=1.7)
    ax.set_ylim(0, max(1.2, *(value for of in ratios.values() for value in of.values())) * 1.1)
    batch_axis(ax, batches)
    ax.set_ylabel("time over the VK kernel's")
    label_ends(ax, ends)
    return fig


# ---- 02: time, share of roof, ratios --------------------------------------------------------------------------------


@rc_context(STYLE)
def decode_time(rows, run=None, *, indexing="in_place", timer=None) -> Figure:
    """Median time with its p20 to p80 band, and share of the measured roof, both against batch, for every variant."""
    drawn = timed(rows, indexing=indexing, timer=timer)
    notes = [conditions(drawn, run), *with_copies(drawn), *not_timed(rows)]
    if not drawn:
        return empty_figure("Decode time: nothing was timed", notes)
    groups = series(drawn)
    batches = sorted({row["batch"] for row in drawn})
    fig, (left, right) = new_figure(clock_prefix(drawn) + _time_title(groups, batches[-1]), 11.5, 5.0, 2, notes)
    ends_left, ends_right = [], []
    for name, of in groups.items():
        xs, style = [row["batch"] for row in of], line_style(name, indexing)
        low, high = ([row[field] for row in of] for field in ("p20_us", "p80_us"))
        left.fill_between(xs, low, high, color=colour(name), alpha=0.22, linewidth=0)
        left.plot(xs, [row["median_us"] for row in of], **style)
        shares = [row["share_of_roof"] * 100 for row in of]
        right.plot(xs, shares, **style)
        ends_left.append((of[-1]["median_us"], f"{name}  {micro(of[-1]['median_us'])}", colour(name)))
        ends_right.append((shares[-1], f"{name}  {percent(shares[-1] / 100)}", colour(name)))
    left.set_yscale("log")
    plain_log_axis(left.yaxis)
    left.set(ylabel="median time of a call, µs (band: p20 to p80)", title=f"time, {INDEXING[indexing]}")
    right.axhline(100, color=GREY, linewidth=1, linestyle=":")
    right.set_ylim(0, max(108.0, max(row["share_of_roof"] for row in drawn) * 108))
    right.set(ylabel="% of the measured roof", title="share of the roof")
    for ax, ends in ((left, ends_left), (right, ends_right)):
        batch_axis(ax, batches)
        label_ends(ax, ends)
    return fig


def _time_title(groups, batch) -> str:
    """Fastest and slowest at one batch, in words; eager PyTorch only where nothing else was timed."""
    at = {name: row for name, of in groups.items() for row in of if row["batch"] == batch}
    at = {name: row for name, row in at.items() if not name.startswith("torch/")} or at
    fastest, slowest = (choose(at, key=lambda name: at[name]["median_us"]) for choose in (min, max))
    title = (
        f"At B = {batch} {fastest} is fastest: {micro(at[fastest]['median_us'])}, "
        f"{percent(at[fastest]['share_of_roof'])} of the roof"
    )
    if slowest != fastest:
        ratio = at[slowest]["median_us"] / at[fastest]["median_us"]
        title += f"; {slowest} takes {ratio:.2f} times as long"
    return title


@rc_context(STYLE)
def against_published(rows, run=None, timer=None) -> Figure:
    """Times over FlashInfer's by batch: the published B200 columns, and ours with each baseline."""
    table, found = published_ratios(), reproduction(rows, timer)
    low, high = found.band
    notes = [
        "Published: B200, SGLang pull request 19150; its heads, timer, L2 policy and Triton tile are not published.",
        f"Here: {conditions(timed(rows, timer=timer), run)}" if found.nearest else "",
        *not_timed(rows),
    ]
    title = f"Published: Triton takes {low:.1f} to {high:.1f} times as long as FlashInfer from B = 32 up"
    if found.nearest:
        each = sorted(found.ranges.items(), reverse=True)
        ranges = " and ".join(f"{name.split('/')[1]} {number_range(at)}" for name, at in each)
        title += f"; here {ranges}"
        title += f": {found.nearest.split('/')[1]} is the nearer baseline" if len(each) > 1 else ""
    else:
        title += "; nothing is measured here to hold beside it"
    fig, (ax,) = new_figure(title, 10.5, 5.2, 1, notes)
    ax.axhspan(low, high, color=GREY, alpha=0.12, linewidth=0)
    ends = []
    for column, label, dash in (("tri_over_fi", "Triton", "-"), ("sg_over_fi", "CuTe DSL", ":")):
        ax.plot(table.batch, table[column], color=GREY, linestyle=dash, linewidth=1.7, marker=".", markersize=8)
        ends.append((float(table[column].iloc[-1]), f"published {label}  {table[column].iloc[-1]:.2f}", GREY))
    for name, at in ratios_to(rows, "flashinfer/vk", timer).items():
        if name.startswith("torch/"):
            continue
        xs = sorted(at)
        ax.plot(xs, [at[x] for x in xs], **line_style(name))
        ends.append((at[xs[-1]], f"{name}  {at[xs[-1]]:.2f}", colour(name)))
    ax.axhline(1.0, color=colour("flashinfer/vk"), linewidth=1.2)
    ends.append((1.0, "flashinfer/vk  1", colour("flashinfer/vk")))
    batches = {*map(int, table.batch), *(row["batch"] for row in timed(rows, timer=timer) if found.nearest)}
    batch_axis(ax, batches)
    ax.set_ylim(0, max(3.1, ax.get_ylim()[1]))
    ax.set_ylabel("time over FlashInfer's")
    ax.text(ax.get_xlim()[0] * 1.03, high, f"published, B ≥ 32: {low:.2f} to {high:.2f}", va="bottom", color=GREY)
    label_ends(ax, ends)
    return fig


@rc_context(STYLE)
def cost_of_bytes(rows, run=None, timer=None) -> Figure:
    """Time against the bytes a call must move, with the roof as a line: what a byte costs, and what a launch costs."""
    drawn = timed(rows, timer=timer)
    notes = [conditions(drawn, run), *not_timed(rows)]
    if not drawn:
        return empty_figure("What a byte costs: nothing was timed", notes)
    groups, roof = series(drawn), drawn[0]["roof_gb_per_s"]
    best = max(drawn, key=lambda row: row["share_of_roof"])
    small = min(drawn, key=lambda row: (row["batch"], row["median_us"]))
    title = (
        f"{clock_prefix(drawn)}At B = {small['batch']} the bytes take {micro(small['bytes'] / roof / 1e3)} "
        f"of {name_of(small)}'s {micro(small['median_us'])}; at B = {best['batch']} {name_of(best)} runs at "
        f"{percent(best['share_of_roof'])} of the roof"
    )
    fig, (ax,) = new_figure(title, 9.5, 5.0, 1, notes)
    sizes = sorted({row["bytes"] for row in drawn})
    ends_of_roof = [sizes[0] / 1.3 / 1e6, sizes[-1] * 1.3 / 1e6]
    ax.plot(ends_of_roof, [mb * 1e3 / roof for mb in ends_of_roof], color=GREY, linewidth=1.4)
    ends = []
    for name, of in groups.items():
        ax.plot([row["bytes"] / 1e6 for row in of], [row["median_us"] for row in of], **line_style(name))
        ends.append((of[-1]["median_us"], name, colour(name)))
    ends.append((ends_of_roof[1] * 1e3 / roof, f"roof {roof:,.0f} GB/s", GREY))
    sheet = datasheet_gb_per_s(device_name(run)) if run else None
    if sheet:
        ax.plot(ends_of_roof, [mb * 1e3 / sheet for mb in ends_of_roof], color=GREY, linewidth=1.0, linestyle=":")
        ends.append((ends_of_roof[1] * 1e3 / sheet, f"datasheet {sheet:,.0f} GB/s", GREY))
    ax.set(
        xscale="log",
        yscale="log",
        xlim=ends_of_roof,
        xlabel="MB that a call must move",
        ylabel="median time of a call, µs",
    )
    plain_log_axis(ax.xaxis)
    plain_log_axis(ax.yaxis)
    label_ends(ax, ends)
    return fig


@rc_context(STYLE)
def one_batch(rows, run=None, timer=None) -> Figure:
    """Time of every variant at the largest batch of the rows: bars with p20 to p80, hollow for gather and scatter."""
    drawn = timed(rows, indexing=None, timer=timer)
    notes = [conditions(drawn, run), *not_timed(rows)]
    if not drawn:
        return empty_figure("Nothing was timed", notes)
    batch = max(row["batch"] for row in drawn)
    drawn = sorted((row for row in drawn if row["batch"] == batch), key=lambda row: row["median_us"])
    title = f"{clock_prefix(rows)}At B = {batch} {name_of(drawn[0])} is fastest: {micro(drawn[0]['median_us'])}"
    title += f", {percent(drawn[0]['share_of_roof'])} of the roof"
    fig, (ax,) = new_figure(title, 9.5, 1.8 + 0.36 * len(drawn), 1, notes)
    for y, row in enumerate(drawn):
        ink, us, in_place = colour(name_of(row)), row["median_us"], row["indexing"] == "in_place"
        ax.barh(
            y, us, color=ink if in_place else "white", edgecolor=ink, hatch=None if in_place else "////", height=0.7
        )
        ax.plot([row["p20_us"], row["p80_us"]], [y, y], color=GREY, linewidth=2.5, solid_capstyle="butt")
        ax.annotate(
            f"{micro(us)}, {percent(row['share_of_roof'])}", (max(us, row["p80_us"]), y), xytext=(5, 0), fontsize=9.5,
            textcoords="offset points", va="center", bbox={"facecolor": "white", "linewidth": 0, "pad": 1},
        )  # fmt: skip
    ax.set_yticks(range(len(drawn)), [f"{name_of(row)}, {INDEXING[row['indexing']]}" for row in drawn])
    ax.set(xlim=(0, max(row["p80_us"] for row in drawn) * 1.2), ylim=(len(drawn) - 0.4, -0.6))
    ax.set_xlabel("median time of a call, µs (dark: p20 to p80; after the bar: time, share of the roof)")
    ax.grid(axis="y", visible=False)
    return fig


@rc_context(STYLE)
def launch_gap(rows, run=None, largest_batch=32) -> Figure:
    """Replay time less kernel-only time for small batches: what a call costs beside its kernel. Needs both timers."""
    replay, kernel = (times(timed(rows, timer=timer)) for timer in ("cuda_graph_replay", "cupti_kernel"))
    gaps = {
        name: {b: us - kernel[name][b] for b, us in at.items() if b in kernel.get(name, {}) and b <= largest_batch}
        for name, at in replay.items()
    }
    gaps = {name: at for name, at in gaps.items() if at and not name.startswith("torch/")}
    notes = [
        conditions(timed(rows, timer="cuda_graph_replay"), run),
        "A kernel that begins before the last one has ended counts its waiting as its own time. Eager PyTorch's many "
        f"kernels are left out, and batches beyond {largest_batch}, whose time dwarfs the gap.",
    ]
    if not gaps:
        return empty_figure(
            "Replay time beside kernel-only time: not both were measured",
            ["The gap between a call's replay time and its kernels' own needs cuda_graph_replay and cupti_kernel."],
        )
    batches = sorted({batch for at in gaps.values() for batch in at})
    at = sorted((round(of[batches[0]], 1) + 0.0, name) for name, of in gaps.items() if batches[0] in of)
    each = " to ".join(dict.fromkeys(f"{us:.1f} µs ({name})" for us, name in (at[0], at[-1])))
    title = f"At B = {batches[0]} a call takes {each} longer than its kernel"
    fig, (ax,) = new_figure(title, 9.0, 4.4, 1, notes)
    ends = []
    for name, at in gaps.items():
        xs = sorted(at)
        ax.plot(xs, [at[x] for x in xs], **line_style(name))
        ends.append((at[xs[-1]], f"{name}  {at[xs[-1]]:.2f} µs", colour(name)))
    ax.axhline(0, color=GREY, linewidth=1)
    batch_axis(ax, batches)
    ax.set_ylabel("replay less kernel time, µs")
    label_ends(ax, ends)
    return fig


# ---- 00: right or wrong ---------------------------------------------------------------------------------------------


@rc_context(STYLE)
def errors(rows) -> Figure:
    """Largest error of each variant against the float64 oracle; wrong and refused ones are named."""
    latest = {name_of(row): row for row in rows}
    checked = {name: row for name, row in latest.items() if row["status"] != "refused"}
    wrong = [name for name, row in checked.items() if row["status"] == "wrong"]
    notes = not_timed(rows)
    if not checked:
        return empty_figure("No backend ran here", notes)
    title = f"{len(checked)} of {len(latest)} variants ran here, and each agrees with the float64 oracle"
    if wrong:
        title = f"{', '.join(wrong)} disagree{'s' if len(wrong) == 1 else ''} with the float64 oracle"
    fig, (ax,) = new_figure(title, 9.0, 1.9 + 0.4 * len(latest), 1, notes)
    for y, (name, row) in enumerate(latest.items()):
        if name not in checked:
            ax.text(0.01, y, "refused: see below", va="center", color=GREY, transform=ax.get_yaxis_transform())
            continue
        style = {"markeredgecolor": colour(name), "markersize": 8, "linestyle": ""}
        places = ((row["max_abs_error"], "o", colour(name)), (row.get("max_abs_error_state"), "s", "white"))
        for error, shape, fill in places:
            if error is not None:
                ax.plot([max(error, 1e-9)], [y], marker=shape, markerfacecolor=fill, **style)
        if name in wrong:
            ax.text(0.99, y, "wrong", va="center", ha="right", fontweight="bold", transform=ax.get_yaxis_transform())
    ax.set_yticks(range(len(latest)), list(latest))
    ax.set(xscale="log", ylim=(len(latest) - 0.4, -0.6))
    low, high = ax.get_xlim()
    ax.set_xlim(low / 2, high * 2)
    ax.set_xlabel("largest absolute error (disc: output, hollow square: new state)")
    return fig
