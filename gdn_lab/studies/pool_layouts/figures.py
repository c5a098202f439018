"""The figures of notebook 01: those computed from formulas.py, and the memory order's cost from timed rows."""

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...models import MODELS
from ...report.style import (
    GREY,
    STYLE,
    batch_axis,
    colour,
    dtype_colours,
    empty_figure,
    label,
    label_ends,
    new_figure,
    plot_lines,
)
from ...report.text import byte_size, listed, percent
from ...report.timed import Timed, largest_batch
from ..decode_kernels.analysis import conditions, layout_ratios, twin_of
from .formulas import LANE_BYTES, LINE, SECTOR, slot_table, warp_load

KV_INKS = {8: "triton/kv8", 32: "triton/kv32"}  # value tile -> the variant that has it, for its colour
VK_INK = "triton/vk"

# ---- computed -------------------------------------------------------------------------------------------------------


@rc_context(STYLE)
def warp_loads(dtype=torch.bfloat16, rows_drawn=36) -> Figure:
    """What one warp-wide load touches under KV with tiles of 8 and 32 and under VK, in memory order. Computed."""
    loads = [(warp_load("KV", tile, dtype=dtype), colour(name)) for tile, name in KV_INKS.items()]
    loads.append((warp_load("VK", 32, dtype=dtype), colour(VK_INK)))
    kv8, kv32, vk = (load for load, _ in loads)
    title = (
        f"{vk.used} bytes touch {len(kv8.lines)} cache lines in KV tiles of 8, {len(kv32.lines)} in tiles of 32, "
        f"{len(vk.lines)} under VK"
    )
    note = (
        f"One head's state, 128 × 128 in {str(dtype).removeprefix('torch.')}, as it is in memory; {rows_drawn} of 128 "
        f"rows of {vk.row_bytes} B. A cell is one {SECTOR} B sector, a heavy rule ends one {LINE} B cache line. "
        f"32 lanes load up to {LANE_BYTES} B each. KV: K rows of V values. VK (K-last): V rows of K values."
    )
    fig, axes = new_figure(title, 10.5, 5.6, 3, [note])
    for ax, (load, ink) in zip(axes, loads, strict=True):
        _draw_load(ax, load, ink, rows_drawn)
    axes[0].set_ylabel("row of the stored matrix")
    axes[0].legend(  # where a tile of 8 leaves the panel empty
        handles=[
            Rectangle((0, 0), 1, 1, facecolor=GREY, label="this load instruction"),
            Rectangle((0, 0), 1, 1, facecolor="white", edgecolor=GREY, hatch="/////", label="fetched, not used"),
            Rectangle((0, 0), 1, 1, facecolor=GREY, alpha=0.16, label="the program's other loads"),
        ],
        loc="center right",
        framealpha=1.0,
        edgecolor="white",
        fontsize=8.5,
        handlelength=1.4,
    )
    return fig


def _draw_load(ax, load, ink, rows_drawn):
    """One panel of warp_loads: cells of sectors, drawn without antialiasing, so that neighbours meet without a seam."""
    ax.grid(False)
    plain = {"linewidth": 0, "antialiased": False}
    for row, column, size in _cut(load.program, load.row_bytes):
        if row < rows_drawn:
            ax.add_patch(Rectangle((column, row), size, 1, facecolor=ink, alpha=0.16, **plain))
    if load.used < load.fetched:
        for sector in load.sectors:
            row, column = divmod(sector * SECTOR, load.row_bytes)
            ax.add_patch(Rectangle((column, row), SECTOR, 1, facecolor="white", edgecolor=ink, hatch="/////", **plain))
    for row, column, size in _cut(_joined(load.pieces), load.row_bytes):
        ax.add_patch(Rectangle((column, row), size, 1, facecolor=ink, **plain))
    for byte in range(SECTOR, load.row_bytes, SECTOR):
        heavy = byte % LINE == 0
        ax.axvline(byte, color="#777777" if heavy else "#C8C8C8", linewidth=1.1 if heavy else 0.5, zorder=3)
    for row in range(1, rows_drawn):  # below the rules, which they would cut into dots
        ax.axhline(row, color="white", linewidth=0.6, zorder=2)
    ax.set(xlim=(0, load.row_bytes), ylim=(rows_drawn, 0))
    ax.set_xticks(range(0, load.row_bytes + 1, load.row_bytes // 4))
    ax.set_yticks(range(0, rows_drawn + 1, 8))
    ax.set_xlabel("byte within the row")
    kind = "row k, v along it" if load.layout == "KV" else "row v, k along it"
    ax.set_title(
        f"{load.layout}, value tile {load.tile} ({kind})\n"
        f"loads {load.used} B in {len(load.sectors)} sectors, {len(load.lines)} lines;\n"
        f"fetches {load.fetched:,} B, uses {percent(load.used / load.fetched)}",
        fontsize=10,
    )


def _joined(pieces):
    """Runs of bytes with those that touch made one."""
    runs = []
    for start, size in sorted(pieces):
        if runs and sum(runs[-1]) == start:
            runs[-1] = (runs[-1][0], runs[-1][1] + size)
        else:
            runs.append((start, size))
    return runs


def _cut(runs, row_bytes):
    """Runs of bytes as (row, first byte in the row, bytes) for a drawing with one memory row a line."""
    for start, size in runs:
        while size > 0:
            row, column = divmod(start, row_bytes)
            here = min(size, row_bytes - column)
            yield row, column, here
            start, size = start + here, size - here


@rc_context(STYLE)
def slot_bytes(tp: int = 1, gigabytes: float = 40.0) -> Figure:
    """What a request keeps, for each model and state dtype, and how many requests fit. Computed."""
    table = slot_table(tp)
    whole = [row for row in table if "reason" not in row]
    if not whole:
        reasons = list(dict.fromkeys(row["reason"] for row in table))
        return empty_figure(f"No model of the table can be split over {tp} GPUs", reasons)
    share = f"on each of {tp} tensor-parallel GPUs" if tp > 1 else "on one GPU"
    notes = [
        f"All GDN layers of a model {share}: recurrent state and bf16 convolution window, whatever the request's "
        "length. Attention's KV cache is not counted."
    ]
    first = [row for row in whole if row["model"] == whole[0]["model"]]
    each = [f"{byte_size(_kept(row))} in {row['state_dtype']}" for row in first]
    fig, (left, right) = new_figure(
        f"A request of {first[0]['model']} keeps {listed(each)}", 11.5, 5.2, 2, notes, sharey=True
    )
    inks, ticks, labels, y = dtype_colours(row["state_dtype"] for row in table), [], [], 0.0
    for model in MODELS:
        for turn, row in enumerate(row for row in table if row["model"] == model):
            ticks.append(y)
            labels.append(f"{model}  {row['state_dtype']}" if turn == 0 else row["state_dtype"])
            if "reason" in row:
                left.text(0, y, f" tp = {tp} does not divide its heads", va="center", color=GREY, fontsize=9)
            else:
                _draw_slot(left, right, y, row, inks[row["state_dtype"]], gigabytes)
            y += 1.0
        y += 0.6
    left.set_yticks(ticks, labels)
    left.invert_yaxis()
    left.set(xlabel="MB per request", title="solid: state; hatched: convolution window")
    right.set(xlabel=f"requests in {gigabytes:g} GB", title=f"requests that fit in {gigabytes:g} GB")
    for ax in (left, right):
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, ax.get_xlim()[1] * 1.12)
    return fig


def _kept(row: dict) -> int:
    """Bytes that a request keeps: recurrent state and convolution window."""
    return row["state_bytes"] + row["conv_bytes"]


def _draw_slot(left, right, y, row, ink, gigabytes):
    """One line of slot_bytes: MB per request to the left, requests that fit to the right."""
    state, conv, fits = row["state_bytes"] / 1e6, row["conv_bytes"] / 1e6, gigabytes * 1e9 // _kept(row)
    left.barh(y, state, color=ink, height=0.85)
    left.barh(y, conv, left=state, color="white", edgecolor=ink, hatch="////", linewidth=0.8, height=0.85)
    left.text(state + conv, y, f"  {state + conv:,.1f}", va="center", fontsize=9.5)
    right.barh(y, fits, color=ink, height=0.85)
    right.text(fits, y, f"  {fits:,.0f}", va="center", fontsize=9.5)


# ---- from timed rows ------------------------------------------------------------------------------------------------


@rc_context(STYLE)
def layout_cost(timed: Timed) -> Figure:
    """KV over its VK twin, both in place, by batch: what the memory order is worth alone."""
    timed = timed.kernels()
    found = layout_ratios(timed)
    notes = [conditions(timed), *timed.not_timed()]
    if not found:
        return empty_figure("KV against VK: nothing timed on both", notes)
    last = largest_batch(found)
    each = [f"{label(name)} takes {by_batch[last]:.2f}×" for name, by_batch in found.items() if last in by_batch]
    twins = list(dict.fromkeys(twin_of(name, timed.names) for name in found))
    title = f"At B = {last} {listed(each)} {listed(map(label, twins))}'s time"
    fig, (ax,) = new_figure(timed.titled(title), 9.0, 4.4, 1, notes)
    ends = plot_lines(ax, found, lambda ratio: f"{ratio:.2f}")
    ends += [(1.0, f"{label(twin)}  1", colour(twin)) for twin in twins]
    ax.axhline(1.0, color=colour(twins[0]), linewidth=1.7)
    ax.set_ylim(0, max(1.2, *(ratio for by_batch in found.values() for ratio in by_batch.values())) * 1.1)
    batch_axis(ax, {batch for by_batch in found.values() for batch in by_batch})
    ax.set_ylabel("time over the VK twin's")
    label_ends(ax, ends)
    return fig
