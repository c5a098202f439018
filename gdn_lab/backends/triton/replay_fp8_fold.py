"""Deferred write-back of an FP8 state, the part that writes: rows whose ring is full get a new state and new scales."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ...e4m3 import LARGEST, SMALLEST_SCALE
from .device import state_offsets
from .replay_fold import ring_of_head, with_pending
from .stochastic import head_key, random_bits_of_e4m3, round_to_e4m3

E4M3_MOST, LEAST_SCALE = tl.constexpr(LARGEST), tl.constexpr(SMALLEST_SCALE)


@triton.jit
def larger(x, y):
    """Return the larger of two numbers, NaN if one of them is: a NaN in a row makes its scale one, and so the row."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["seed", "rows"], do_not_specialize_on_alignment=["indices"])
def fold_fp8_kernel(
    state, scales, indices, keys, corrections, log_decays, span, taken, due, folds, seed, rows,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, U_TERMS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Write the state of the rows whose ring has become full; then advance the span of every row.

    Grid: as many programs as run at once; each takes every n-th part, V // SPLITS rows of a head's state, TILE at a
    time. Which rows are due was listed by prepare_fp8_kernel, so the host need not know it. A row of S is divided by a
    new scale, its largest element over 448, and rounded stochastically by seed and folds [slots], how often the slot
    was folded. U_TERMS: of with_pending().
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    ks = tl.arange(0, K)
    for item in range(tl.program_id(0), tl.load(due) * (HV * SPLITS), tl.num_programs(0)):
        row = tl.load(due + 1 + item // (HV * SPLITS)).to(tl.int64)
        head = item // SPLITS % HV
        slot = tl.load(indices + row).to(tl.int64)
        head_at = slot * HV + head
        first = tl.load(taken + 2 * slot)
        bits_key = head_key(seed, tl.load(folds + slot), head_at)
        keys_at = keys + (slot * HK + head // (HV // HK)) * (C * K)
        ring, weights, decay = ring_of_head(keys_at, log_decays + head_at * C, first, C, K, C)
        for tile in tl.range(0, V // SPLITS // TILE, num_stages=STAGES):
            v_first = item % SPLITS * (V // SPLITS) + tile * TILE
            vs = v_first + tl.arange(0, TILE)
            tile_at = state + head_at * (V * K) + state_offsets(vs, ks, K, V, True)
            scales_at = scales + head_at * V + vs
            S = tl.load(tile_at).to(tl.float32) * (tl.load(scales_at) * decay)[:, None]
            u_at = corrections + head_at * (C * V) + v_first
            S = with_pending(S, u_at, ring, weights, 1.0, first, C, V, TILE, C, U_TERMS)
            largest = tl.reduce(tl.abs(S), 1, larger)
            new_scale = larger(largest / E4M3_MOST, LEAST_SCALE)
            bits = random_bits_of_e4m3(bits_key, vs, ks, K)
            tl.store(tile_at, round_to_e4m3(S * (1.0 / new_scale)[:, None], bits))
            tl.store(scales_at, new_scale)

    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        slot = tl.load(indices + row).to(tl.int64)
        if slot >= 0:
            first, end = tl.load(taken + 2 * slot), tl.load(taken + 2 * slot + 1)
            tl.store(span + 2 * slot, tl.where(end == C - 1, 0, first))
            tl.store(span + 2 * slot + 1, tl.where(end == C - 1, 0, end + 1))
