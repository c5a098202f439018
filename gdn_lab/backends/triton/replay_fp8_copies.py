"""An FP8 state that other kernels go on from: copies in their dtype, stored again rounded to nearest; and the write of
a ring's pending updates.

A program takes TILE rows of a head's state. One of a padding row ends at once, so that a CUDA graph with room for many
sequences costs what its live ones move. A NaN makes its whole row NaN.
"""

import torch
import triton
import triton.language as tl

from ..base import Ring, State
from .device import state_offsets
from .replay_fold import ring_of_head, terms, with_pending
from .replay_fp8_fold import E4M3_MOST, LEAST_SCALE
from .stochastic import round_to_e4m3

TILE, WARPS = 32, 4
HALF = tl.constexpr(1 << 19)  # of the last place of e4m3, as round_to_e4m3() counts


@triton.jit
def store_nearest(S, tile_at, scales_at):
    """Store S [TILE, K] float32 in FP8, and the scale of each row."""
    scale = tl.maximum(tl.max(tl.abs(S), axis=1) / E4M3_MOST, LEAST_SCALE)
    scale = tl.where(tl.max((S != S).to(tl.int32), axis=1) > 0, float("nan"), scale)
    tl.store(tile_at, round_to_e4m3(S / scale[:, None], HALF))
    tl.store(scales_at, scale)


@triton.jit(do_not_specialize_on_alignment=["indices"])
def copy_fp8_kernel(
    state, scales, indices, copies,
    HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write the states of the rows' slots to copies [n, HV, V, K]. Grid: [V // TILE · HV · n]."""
    TILES: tl.constexpr = V // TILE
    row = (tl.program_id(0) // (TILES * HV)).to(tl.int64)
    slot = tl.load(indices + row).to(tl.int64)
    if slot < 0:
        return
    head = tl.program_id(0) // TILES % HV
    vs = tl.program_id(0) % TILES * TILE + tl.arange(0, TILE)
    offsets = state_offsets(vs, tl.arange(0, K), K, V, True)
    head_at = slot * HV + head
    S = tl.load(state + head_at * (V * K) + offsets).to(tl.float32) * tl.load(scales + head_at * V + vs)[:, None]
    tl.store(copies + (row * HV + head) * (V * K) + offsets, S.to(copies.dtype.element_ty))


@triton.jit(do_not_specialize_on_alignment=["indices", "starts"])
def store_fp8_kernel(
    copies, state, scales, indices, starts,
    HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write copies [n, HV, V, K] to the rows' slots. Grid: [V // TILE · HV · n].

    starts [n + 1]: where each row's sequence begins and ends, None if none is empty; an empty one keeps its bits.
    """
    TILES: tl.constexpr = V // TILE
    row = (tl.program_id(0) // (TILES * HV)).to(tl.int64)
    slot = tl.load(indices + row).to(tl.int64)
    if slot < 0:
        return
    if starts is not None:
        if tl.load(starts + row) == tl.load(starts + row + 1):
            return
    head = tl.program_id(0) // TILES % HV
    vs = tl.program_id(0) % TILES * TILE + tl.arange(0, TILE)
    offsets = state_offsets(vs, tl.arange(0, K), K, V, True)
    S = tl.load(copies + (row * HV + head) * (V * K) + offsets).to(tl.float32)
    head_at = slot * HV + head
    store_nearest(S, state + head_at * (V * K) + offsets, scales + head_at * V + vs)


@triton.jit(do_not_specialize_on_alignment=["indices"])
def settle_fp8_kernel(
    state, scales, indices, keys, corrections, log_decays, span,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    U_TERMS: tl.constexpr,
):  # fmt: skip
    """Add the rows' pending updates to their states. Grid: [V // TILE · HV · n]. The spans stay."""
    TILES: tl.constexpr = V // TILE
    slot = tl.load(indices + tl.program_id(0) // (TILES * HV)).to(tl.int64)
    if slot < 0:
        return
    first, end = tl.load(span + 2 * slot), tl.load(span + 2 * slot + 1)
    if first == end:
        return
    head = tl.program_id(0) // TILES % HV
    v_first = tl.program_id(0) % TILES * TILE
    vs, ks = v_first + tl.arange(0, TILE), tl.arange(0, K)
    head_at = slot * HV + head
    tile_at = state + head_at * (V * K) + state_offsets(vs, ks, K, V, True)
    scales_at = scales + head_at * V + vs
    keys_at = keys + (slot * HK + head // (HV // HK)) * (C * K)
    ring, weights, decay = ring_of_head(keys_at, log_decays + head_at * C, first, end, K, C)
    S = tl.load(tile_at).to(tl.float32) * tl.load(scales_at)[:, None]
    u_at = corrections + head_at * (C * V) + v_first
    S = with_pending(S, u_at, ring, weights, decay, first, end, V, TILE, C, U_TERMS)
    store_nearest(S, tile_at, scales_at)


def copied(state: State, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return copies of the states of the slots in `indices` [n], of a dtype; of padding anything."""
    HV, V, K = state.data.shape[1:]
    copies = torch.empty(len(indices), HV, V, K, dtype=dtype, device=state.data.device)
    copy_fp8_kernel[(V // TILE * HV * len(indices),)](
        *(state.data, state.scales, indices, copies), HV=HV, K=K, V=V, TILE=TILE, num_warps=WARPS
    )
    return copies


def stored(copies: torch.Tensor, state: State, indices: torch.Tensor, starts: torch.Tensor | None = None) -> None:
    """Store copies [n, HV, V, K] in the slots; starts: of store_fp8_kernel."""
    HV, V, K = state.data.shape[1:]
    store_fp8_kernel[(V // TILE * HV * len(indices),)](
        *(copies, state.data, state.scales, indices, starts), HV=HV, K=K, V=V, TILE=TILE, num_warps=WARPS
    )


def settle(state: torch.Tensor, scales: torch.Tensor, ring: Ring, indices: torch.Tensor) -> None:
    """Add the pending updates of the rows' slots to their states, [slots, HV, V, K]; the ring's spans stay."""
    HV, V, K = state.shape[1:]
    HK, C = ring.keys.shape[1:3]
    with torch.cuda.device_of(state):
        settle_fp8_kernel[(V // TILE * HV * len(indices),)](
            *(state, scales, indices, ring.keys, ring.corrections, ring.log_decays, ring.span),
            HK=HK,
            HV=HV,
            K=K,
            V=V,
            C=C,
            TILE=TILE,
            U_TERMS=terms(torch.bfloat16, ring.keys.dtype),
            num_warps=WARPS,
        )
