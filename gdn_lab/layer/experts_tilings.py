"""How the products of experts_kernels.py are launched: tiles, splits and warps, by how many tokens an expert has.

inner: an expert's intermediate size on this rank.
"""

from typing import NamedTuple

import torch

from ..backends.base import capability


class GateUp(NamedTuple):
    """How gate_up_kernel is launched: its constants, warps and pipeline stages."""

    block_m: int  # tokens in a product
    tile: int  # of inner
    block_k: int  # of H
    sub: int = 1  # blocks of H in an iteration
    split: int = 1  # programs that share the sum over H
    warps: int = 4
    stages: int = 4


class Down(NamedTuple):
    """How down_kernel is launched; block_m and split are those of GateUp."""

    tile: int  # of H
    tiles: int  # tiles in a program: one where inner is more than one block
    block_k: int  # of inner
    warps: int = 4
    stages: int = 4


PROGRAMS = 264  # twice an H100's 132 SMs: with fewer programs, weights are split further


def tilings(slots: int, tokens: float, hidden: int, inner: int, fp8: bool, roomy: bool = True) -> tuple[GateUp, Down]:
    """Return how the two products are launched.

    slots: upper bound on the slots of BLOCK_M tokens. tokens: of an expert, on average. roomy: a block may have 110 KB
    of shared memory, as on compute capability 9.0 and 10.0 but not on 12.0. ValueError for sizes the kernels lack.

    A pipeline stage is 16 KB of weights, so that three programs fit on an SM with 48 KB in flight each; gate_up for few
    tokens in FP8 takes 32 KB, two blocks of H, and two programs with 64 KB. Chosen by times on an H100.
    """
    if inner not in (32, 64) and inner % 128:
        raise ValueError(f"inner: an expert's intermediate size must be 32, 64 or a multiple of 128, got {inner}")
    if hidden % 128:
        raise ValueError(f"hidden: expected a multiple of 128, got {hidden}")
    block_m = 16 if tokens <= 6 else 32
    block_k = 128 if fp8 else 64
    tile = min(64, inner)
    split = 4 if inner <= 128 and slots * (inner // tile) < PROGRAMS and hidden // block_k % 8 == 0 else 1
    sub = 2 if fp8 and block_m == 16 and hidden // block_k % (2 * split) == 0 else 1
    gate_up = GateUp(block_m, tile, block_k, sub, split, stages=4 if sub == 1 else 3 if roomy else 2)
    if inner > 128:
        return gate_up, Down(128 if block_m == 16 else 64, 1, block_k)
    tile = 128 if fp8 else 64
    tiles = 8 * 128 // tile
    while tiles > 1 and slots * (hidden // tile) < PROGRAMS * tiles:
        tiles //= 2
    return gate_up, Down(tile, tiles, inner)


def hidden_buffer(gate_up: GateUp, rows: int, inner: int, take, name: str = "h") -> torch.Tensor:
    """Take h, which gate_up_kernel writes and down_kernel reads, from a workspace."""
    if gate_up.split == 1:
        return take(name, rows, inner)
    return take(name, gate_up.split, rows, 2, inner, dtype=torch.float32)


def has_room(device: torch.device) -> bool:
    """Whether a block on `device` may have as much shared memory as roomy tilings need, as any may before 12.0."""
    return device.type == "cpu" or capability(device) < (12, 0)


def cdiv(size: int, block: int) -> int:
    return -(-size // block)


def power_of_2(size: int) -> int:
    """Round `size` up to a power of 2."""
    return 1 << (size - 1).bit_length()
