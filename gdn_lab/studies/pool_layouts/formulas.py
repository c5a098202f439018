"""What the pool's two layouts mean in bytes: the loads of a warp, and what a request keeps. Computed."""

from typing import NamedTuple

import pandas
import torch

from ...models import MODELS, GDNShape
from ...pool import LAYOUTS, StatePool

SECTOR, LINE = 32, 128  # bytes: the least that the memory system fetches, and a cache line
LANES, LANE_BYTES = 32, 16  # a warp, and the widest load of one lane


class WarpLoad(NamedTuple):
    """What the first warp-wide load instruction of a program touches of one head's state, in bytes from its start."""

    layout: str
    tile: int
    row_bytes: int  # of one run of memory along the last dimension
    pieces: list[tuple[int, int]]  # (offset, bytes) each lane loads
    program: list[tuple[int, int]]  # (offset, bytes) of every run of memory the program's whole tile consists of

    @property
    def used(self) -> int:
        return sum(size for _, size in self.pieces)

    @property
    def sectors(self) -> set[int]:
        return {byte // SECTOR for start, size in self.pieces for byte in range(start, start + size)}

    @property
    def lines(self) -> set[int]:
        return {sector * SECTOR // LINE for sector in self.sectors}

    @property
    def fetched(self) -> int:
        return len(self.sectors) * SECTOR


def warp_load(layout: str, tile: int, *, head_dim=128, dtype=torch.bfloat16) -> WarpLoad:
    """Return the first load of a program that works on `tile` values of V and all of K; V = K = head_dim.

    A lane loads 16 bytes, or a whole run where that is shorter; lanes follow the tile in memory order.
    KV: K runs of `tile` elements, one row of V elements apart. VK: one run of tile · K elements.
    """
    row_bytes = head_dim * dtype.itemsize
    if layout == "KV":
        program = [(k * row_bytes, tile * dtype.itemsize) for k in range(head_dim)]
    else:
        program = [(0, tile * row_bytes)]
    lane = min(LANE_BYTES, program[0][1])
    pieces = [(start + offset, lane) for start, size in program for offset in range(0, size, lane)]
    return WarpLoad(layout, tile, row_bytes, pieces[:LANES], program)


def stride_table(shape: GDNShape, dtype=torch.bfloat16) -> pandas.DataFrame:
    """Distances in bytes between neighbours in k, v, head and slot, for a pool of each layout."""
    lines = []
    for layout in LAYOUTS:
        state = StatePool(shape, 2, layout=layout, dtype=dtype, device="meta").state
        slot, head, outer, inner = (step * dtype.itemsize for step in state.stride())
        v, k = (outer, inner) if layout == "VK" else (inner, outer)
        order = "[slots, HV, V, K]" if layout == "VK" else "[slots, HV, K, V]"
        line = {"pool": layout, "in memory": order, "next k": k, "next v": v, "next head": head, "next slot": slot}
        lines.append(line)
    return pandas.DataFrame(lines)


def slot_table(tp: int = 1, dtypes=(torch.float32, torch.bfloat16)) -> list[dict]:
    """Return what one request keeps in all GDN layers of each model on one of `tp` GPUs: one dict a model and dtype.

    Fields: model, state_dtype, gdn_layers, state_bytes, conv_bytes; or model, state_dtype and reason where the heads
    cannot be split by tp.
    """
    table = []
    for model, entry in MODELS.items():
        for dtype in dtypes:
            row = {"model": model, "state_dtype": str(dtype).removeprefix("torch."), "gdn_layers": entry.gdn_layers}
            try:
                one = StatePool.slot_nbytes(GDNShape.from_model(model, tp), dtype)
            except ValueError as error:
                table.append(row | {"reason": str(error)})
                continue
            layers = entry.gdn_layers
            table.append(row | {"state_bytes": layers * one["state"], "conv_bytes": layers * one["conv"]})
    return table
