"""Deferred write-back of an FP8 state, the part that writes: rows whose ring is full get a new state and new scales."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ...e4m3 import LARGEST, SMALLEST_SCALE
from .device import EPS, log_decay, sigmoid, state_offsets
from .replay_fold import ring_of_head, with_pending
from .stochastic import head_key, random_bits, round_to_e4m3

E4M3_MOST, LEAST_SCALE = tl.constexpr(LARGEST), tl.constexpr(SMALLEST_SCALE)


@triton.jit(do_not_specialize=["seed"])
def fold_fp8_kernel(
    q, k, v, a, b, A_log, dt_bias, state, scales, indices, keys, corrections, log_decays, span, taken, due, folds, seed,
    out, scale, rows, q_row, q_head, k_row, k_head, v_row, v_head, a_row, b_row,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, U_TERMS: tl.constexpr, OVERLAP: tl.constexpr, L2NORM: tl.constexpr,
):  # fmt: skip
    """Take the step of the rows whose ring is full and write their state; then advance the span of every row.

    Grid: as many programs as run at once; each takes every n-th part, V // SPLITS rows of a head's state, TILE at a
    time. Which rows are due was listed by prepare_fp8_kernel, so the host need not know it. A row of S is divided by a
    new scale, its largest element over 448, and rounded stochastically by seed and folds [slots], how often the slot
    was folded. OVERLAP: this may begin while read_fp8_kernel runs, which works on other rows and reads `span`.
    """
    ks = tl.arange(0, K)
    for item in range(tl.program_id(0), tl.load(due) * (HV * SPLITS), tl.num_programs(0)):
        row = tl.load(due + 1 + item // (HV * SPLITS)).to(tl.int64)
        head = item // SPLITS % HV
        key_head = head // (HV // HK)
        slot = tl.load(indices + row).to(tl.int64)
        head_at = slot * HV + head
        first = tl.load(taken + 2 * slot)
        bits_key = head_key(seed, tl.load(folds + slot), head_at)
        q_vec = tl.load(q + row * q_row + key_head * q_head + ks).to(tl.float32)
        k_vec = tl.load(k + row * k_row + key_head * k_head + ks).to(tl.float32)
        x = tl.load(a + row * a_row + head).to(tl.float32) + tl.load(dt_bias + head)
        g = tl.exp(log_decay(x, tl.exp(tl.load(A_log + head))))
        beta = sigmoid(tl.load(b + row * b_row + head).to(tl.float32))
        if L2NORM:
            q_vec *= scale * tl.rsqrt(tl.sum(q_vec * q_vec) + EPS)
            k_vec *= tl.rsqrt(tl.sum(k_vec * k_vec) + EPS)
        else:
            q_vec *= scale
        kq = tl.sum(q_vec * k_vec)
        keys_at = keys + (slot * HK + key_head) * (C * K)
        ring, weights, decay = ring_of_head(keys_at, log_decays + head_at * C, first, C, K, C)
        for tile in tl.range(0, V // SPLITS // TILE, num_stages=STAGES):
            v_first = item % SPLITS * (V // SPLITS) + tile * TILE
            vs = v_first + tl.arange(0, TILE)
            tile_at = state + head_at * (V * K) + state_offsets(vs, ks, K, V, True)
            scales_at = scales + head_at * V + vs
            S = tl.load(tile_at).to(tl.float32) * tl.load(scales_at)[:, None]
            v_vec = tl.load(v + row * v_row + head * v_head + vs).to(tl.float32)
            u_at = corrections + head_at * (C * V) + v_first
            S = with_pending(S, u_at, ring, weights, decay, first, C, V, TILE, C, U_TERMS)
            u = beta * (v_vec - g * tl.sum(S * k_vec[None, :], axis=1))
            o = g * tl.sum(S * q_vec[None, :], axis=1) + u * kq
            S = g * S + u[:, None] * k_vec[None, :]
            new_scale = tl.maximum(tl.max(tl.abs(S), axis=1) / E4M3_MOST, LEAST_SCALE)
            bits = random_bits(bits_key, vs, ks, u, K)
            tl.store(tile_at, round_to_e4m3(S * (1.0 / new_scale)[:, None], bits))
            tl.store(scales_at, new_scale)
            tl.store(out + (row * HV + head) * V + vs, o.to(out.dtype.element_ty))

    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()  # until read_fp8_kernel has read the spans; what follows waits for this kernel and so for both
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        slot = tl.load(indices + row).to(tl.int64)
        if slot >= 0:
            first, end = tl.load(taken + 2 * slot), tl.load(taken + 2 * slot + 1)
            tl.store(span + 2 * slot, tl.where(end == C, 0, first))
            tl.store(span + 2 * slot + 1, tl.where(end == C, 0, end + 1))
