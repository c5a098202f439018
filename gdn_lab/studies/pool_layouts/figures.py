"""The figures of notebook 01 that are computed, by the formulas of gdn_lab/layouts.py."""

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...report.style import GREY, STYLE, colour, empty_figure, new_figure
from ...report.text import byte_size
from .formulas import LANE_BYTES, LINE, SECTOR, slot_table, warp_load


def _cut(runs, row_bytes):
    """Runs of bytes as (row, first byte in the row, bytes) for a drawing with one memory row a line."""
    for start, size in runs:
        while size > 0:
            row, column = divmod(start, row_bytes)
            here = min(size, row_bytes - column)
            yield row, column, here
            start, size = start + here, size - here


@rc_context(STYLE)
def warp_loads(dtype=torch.bfloat16, rows_drawn=36) -> Figure:
    """What one warp-wide load touches under KV with tiles of 8 and 32 and under VK, in memory order. Computed."""
    loads = [
        ("triton/kv8", warp_load("KV", 8, dtype=dtype)),
        ("triton/kv32", warp_load("KV", 32, dtype=dtype)),
        ("triton/vk", warp_load("VK", 32, dtype=dtype)),
    ]
    kv8, kv32, vk = (load for _, load in loads)
    title = (
        f"For the same {vk.used} bytes a warp opens {len(kv8.lines)} cache lines under KV with tiles of 8, "
        f"{len(kv32.lines)} with tiles of 32 and {len(vk.lines)} under VK"
    )
    if kv8.used < kv8.fetched:
        title += f"; tiles of 8 use {kv8.used / kv8.fetched:.0%} of what they fetch"
    note = (
        f"One head's state, 128 × 128 in {str(dtype).removeprefix('torch.')}, as it lies in memory: one line of the "
        f"drawing is one row of {vk.row_bytes} B, a cell one {SECTOR} B sector, a heavy rule one {LINE} B cache line. "
        f"The first {rows_drawn} of 128 rows. 32 lanes load up to {LANE_BYTES} B each."
    )
    fig, axes = new_figure(title, 10.5, 5.6, 3, [note])
    for ax, (name, load) in zip(axes, loads, strict=True):
        _draw_load(ax, load, colour(name), rows_drawn)
    axes[0].set_ylabel("row of the stored matrix")
    return fig


def _draw_load(ax, load, ink, rows_drawn):
    """One panel of warp_loads."""
    ax.grid(False)
    for row, column, size in _cut(load.program, load.row_bytes):
        if row < rows_drawn:
            ax.add_patch(Rectangle((column, row), size, 1, facecolor=ink, alpha=0.16, linewidth=0))
    for sector in load.sectors:
        row, column = divmod(sector * SECTOR, load.row_bytes)
        ax.add_patch(Rectangle((column, row), SECTOR, 1, facecolor="white", edgecolor=ink, hatch="/////", linewidth=0))
    for row, column, size in _cut(load.pieces, load.row_bytes):
        ax.add_patch(Rectangle((column, row + 0.06), size, 0.88, facecolor=ink, edgecolor="white", linewidth=0.5))
    for byte in range(0, load.row_bytes + 1, SECTOR):
        heavy = byte % LINE == 0
        ax.axvline(byte, color="#777777" if heavy else "#C8C8C8", linewidth=1.1 if heavy else 0.5, zorder=0.5)
    ax.set(xlim=(0, load.row_bytes), ylim=(rows_drawn, 0))
    ax.set_xticks(range(0, load.row_bytes + 1, load.row_bytes // 4))
    ax.set_yticks(range(0, rows_drawn + 1, 8))
    ax.set_xlabel("byte within the row")
    kind = "row k, v along it" if load.layout == "KV" else "row v, k along it"
    ax.set_title(
        f"{load.layout}, value tile {load.tile} ({kind})\n"
        f"loaded {load.used} B in {len(load.sectors)} sectors, {len(load.lines)} lines;\n"
        f"fetched {load.fetched:,} B, used {load.used / load.fetched:.0%}",
        fontsize=10,
    )
    handles = [
        Rectangle((0, 0), 1, 1, facecolor=ink, label="this load instruction"),
        Rectangle((0, 0), 1, 1, facecolor=ink, alpha=0.16, label="the program's other loads"),
    ]
    if load.used < load.fetched:
        fetched = Rectangle((0, 0), 1, 1, facecolor="white", edgecolor=ink, hatch="/////", label="fetched, not used")
        handles.insert(1, fetched)
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False, fontsize=8.5, ncols=1,
        handlelength=1.4, borderaxespad=0, labelspacing=0.3,
    )  # fmt: skip


@rc_context(STYLE)
def slot_bytes(tp: int = 1, gigabytes: float = 40.0) -> Figure:
    """What a request keeps, for each model and state dtype, and how many requests fit. Computed."""
    table = slot_table(tp)
    whole = [row for row in table if "reason" not in row]
    notes = [
        "All GDN layers of a model, recurrent state and the bf16 convolution window, on one of "
        f"{tp} tensor-parallel GPU{'s' if tp > 1 else ''}. Attention's KV cache is not counted."
    ]
    if not whole:
        return empty_figure(f"No model of the table can be split over {tp} GPUs", [row["reason"] for row in table[::2]])
    total = {(row["model"], row["state_dtype"]): row["state_bytes"] + row["conv_bytes"] for row in whole}
    first = whole[0]["model"]
    f32, bf16 = total[first, "float32"], total[first, "bfloat16"]
    title = (
        f"A request of {first} keeps {byte_size(f32)} in float32 and {byte_size(bf16)} in bfloat16, "
        f"however long it is: {gigabytes * 1e9 // f32:,.0f} or {gigabytes * 1e9 // bf16:,.0f} requests "
        f"in {gigabytes:g} GB"
    )
    fig, (left, right) = new_figure(title, 10.5, 5.2, 2, notes, sharey=True)
    inks = {"float32": "#D55E00", "bfloat16": "#0072B2"}
    labels, ticks = [], []
    for i, row in enumerate(table):
        y = i + (i // 2) * 0.6
        ticks.append(y)
        labels.append(f"{row['model']}  {row['state_dtype']}" if i % 2 == 0 else row["state_dtype"])
        if "reason" in row:
            left.text(0, y, f" tp = {tp} does not divide its heads", va="center", color=GREY, fontsize=9)
            continue
        ink, state, conv = inks[row["state_dtype"]], row["state_bytes"] / 1e6, row["conv_bytes"] / 1e6
        fits = gigabytes * 1e9 // (row["state_bytes"] + row["conv_bytes"])
        left.barh(y, state, color=ink, height=0.85)
        left.barh(y, conv, left=state, color="white", edgecolor=ink, hatch="////", linewidth=0.8, height=0.85)
        left.text(state + conv, y, f"  {state + conv:,.1f}", va="center", fontsize=9.5)
        right.barh(y, fits, color=ink, height=0.85)
        right.text(fits, y, f"  {fits:,.0f}", va="center", fontsize=9.5)
    left.set_yticks(ticks, labels)
    left.invert_yaxis()
    left.set(xlabel="MB a request", title="solid: recurrent state; hatched: convolution window")
    right.set(xlabel=f"requests in {gigabytes:g} GB", title="requests that fit")
    for ax in (left, right):
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, ax.get_xlim()[1] * 1.12)
    return fig
