"""Deferred write-back, the part that writes: the true state of slots whose ring is full, and of any slot on request.

The pending updates of a slot are u_j k_jᵀ with j = first … end - 1 (base.Ring). Their sum over j is one product
[TILE, C] · [C, K] on the tensor cores: k as it came is exact in 16 bits, u is split into 16-bit terms.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .device import EPS, INTERPRETED, log_decay, sigmoid, state_offsets

SETTLE_TILE, SETTLE_WARPS = 32, 4


@triton.jit
def decays_after(log_decays_at, first, end, C: tl.constexpr):
    """Return Σ_{i > j} g_i for each j of a ring [C], and the sum of all.

    Each is a sum of its own terms: as a difference of two sums it would lose everything after one strong decay.
    """
    js = tl.arange(0, C)
    later = tl.load(log_decays_at + js + 1, mask=(js + 1 >= first) & (js + 1 < end), other=0.0)
    every = tl.load(log_decays_at + js, mask=(js >= first) & (js < end), other=0.0)
    return tl.cumsum(later, axis=0, reverse=True), tl.sum(every)


@triton.jit
def true_state(
    S, keys_at, corrections_at, log_decays_at, first, end,
    K: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr, C: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """Return S [TILE, K] float32 with the pending updates added. keys_at: a head's [C, K]; corrections_at: its [C, V]
    from the tile's first row on. TERMS: bf16 terms of u, or 0 for TF32 products, three for each."""
    js = tl.arange(0, C)
    pending = (js >= first) & (js < end)
    after, total = decays_after(log_decays_at, first, end, C)
    weights = tl.where(pending, tl.exp(after), 0.0)
    keys = tl.load(keys_at + js[:, None] * K + tl.arange(0, K)[None, :], mask=pending[:, None], other=0.0)
    u_at = corrections_at + js[None, :] * V + tl.arange(0, TILE)[:, None]
    u = tl.load(u_at, mask=pending[None, :], other=0.0).to(tl.float32) * weights[None, :]
    S *= tl.exp(total)
    if TERMS == 0:
        S = tl.dot(u, keys.to(tl.float32), S, input_precision="tf32x3")
    for _ in tl.static_range(TERMS):
        term = u.to(tl.bfloat16)
        if INTERPRETED:  # it has no product of bf16
            S = tl.dot(term.to(tl.float32), keys.to(tl.float32), S)
        else:
            S = tl.dot(term, keys, S)
        u -= term.to(tl.float32)
    return S


@triton.jit
def fold_kernel(
    q, k, v, a, b, A_log, dt_bias, state, indices, keys, corrections, log_decays, span, taken, out, scale, rows,
    q_row, q_head, k_row, k_head, v_row, v_head, a_row, b_row,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    ROWS: tl.constexpr, TERMS: tl.constexpr, OVERLAP: tl.constexpr, L2NORM: tl.constexpr,
):  # fmt: skip
    """Take the step of the rows whose ring is full and write their state; then advance the span of every row.

    Grid: as many programs as run at once; each takes every n-th of the due tiles. Which rows are due is read from
    `taken`, so the host need not know it. ROWS: a power of two of at least `rows`.
    OVERLAP: this may begin while read_kernel runs, which works on other rows and reads `span`.
    """
    TILES: tl.constexpr = V // TILE
    row_numbers = tl.arange(0, ROWS)
    slots = tl.load(indices + row_numbers, mask=row_numbers < rows, other=-1).to(tl.int64)
    ends = tl.load(taken + 2 * slots + 1, mask=slots >= 0, other=-1)
    is_due = ends == C
    place = tl.cumsum(is_due.to(tl.int32), axis=0)
    ks = tl.arange(0, K)
    for item in range(tl.program_id(0), tl.sum(is_due.to(tl.int32)) * (HV * TILES), tl.num_programs(0)):
        chosen = is_due & (place == item // (HV * TILES) + 1)
        row = tl.sum(tl.where(chosen, row_numbers, 0)).to(tl.int64)
        slot = tl.sum(tl.where(chosen, slots, 0))
        head = item // TILES % HV
        key_head = head // (HV // HK)
        vs = item % TILES * TILE + tl.arange(0, TILE)
        tile_at = state + (slot * HV + head) * (V * K) + state_offsets(vs, ks, K, V, True)
        S = tl.load(tile_at).to(tl.float32)
        q_vec = tl.load(q + row * q_row + key_head * q_head + ks).to(tl.float32)
        k_vec = tl.load(k + row * k_row + key_head * k_head + ks).to(tl.float32)
        v_vec = tl.load(v + row * v_row + head * v_head + vs).to(tl.float32)
        x = tl.load(a + row * a_row + head).to(tl.float32) + tl.load(dt_bias + head)
        g = tl.exp(log_decay(x, tl.exp(tl.load(A_log + head))))
        beta = sigmoid(tl.load(b + row * b_row + head).to(tl.float32))
        S = true_state(
            S,
            keys + (slot * HK + key_head) * (C * K),
            corrections + (slot * HV + head) * (C * V) + item % TILES * TILE,
            log_decays + (slot * HV + head) * C,
            tl.load(taken + 2 * slot),
            C,
            K,
            V,
            TILE,
            C,
            TERMS,
        )
        if L2NORM:
            q_vec *= scale * tl.rsqrt(tl.sum(q_vec * q_vec) + EPS)
            k_vec *= tl.rsqrt(tl.sum(k_vec * k_vec) + EPS)
        else:
            q_vec *= scale
        Sk = tl.sum(S * k_vec[None, :], axis=1)
        Sq = tl.sum(S * q_vec[None, :], axis=1)
        u = beta * (v_vec - g * Sk)
        o = g * Sq + u * tl.sum(q_vec * k_vec)
        S = g * S + u[:, None] * k_vec[None, :]
        tl.store(tile_at, S.to(state.dtype.element_ty))
        tl.store(out + (row * HV + head) * V + vs, o.to(out.dtype.element_ty))

    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()  # until read_kernel has read the spans; what follows waits for this kernel and so for both
    mine = (slots >= 0) & (row_numbers % tl.num_programs(0) == tl.program_id(0))
    firsts = tl.load(taken + 2 * slots, mask=mine, other=0)
    tl.store(span + 2 * slots, tl.where(is_due, 0, firsts), mask=mine)
    tl.store(span + 2 * slots + 1, tl.where(is_due, 0, ends + 1), mask=mine)


@triton.jit
def settle_kernel(
    state, indices, keys, corrections, log_decays, span,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    TERMS: tl.constexpr,
):  # fmt: skip
    """Add a row's pending updates to TILE rows of one head's state. Grid: [V // TILE · HV · B]. The span stays."""
    TILES: tl.constexpr = V // TILE
    tile = tl.program_id(0) % TILES
    head = tl.program_id(0) // TILES % HV
    slot = tl.load(indices + tl.program_id(0) // (TILES * HV)).to(tl.int64)
    if slot < 0:
        return
    first, end = tl.load(span + 2 * slot), tl.load(span + 2 * slot + 1)
    if first == end:
        return
    vs = tile * TILE + tl.arange(0, TILE)
    tile_at = state + (slot * HV + head) * (V * K) + state_offsets(vs, tl.arange(0, K), K, V, True)
    S = true_state(
        tl.load(tile_at).to(tl.float32),
        keys + (slot * HK + head // (HV // HK)) * (C * K),
        corrections + (slot * HV + head) * (C * V) + tile * TILE,
        log_decays + (slot * HV + head) * C,
        first,
        end,
        K,
        V,
        TILE,
        C,
        TERMS,
    )
    tl.store(tile_at, S.to(state.dtype.element_ty))


def terms(state_dtype: torch.dtype, key_dtype: torch.dtype) -> int:
    """Choose how u enters the product with keys of key_dtype: in 2 or 3 bf16 terms, 16 or 24 bits, or 0 for TF32."""
    if key_dtype is not torch.bfloat16:
        return 0
    return 2 if state_dtype is torch.bfloat16 else 3


def settle(state, ring, indices) -> None:
    """Add the pending updates of the rows' slots to state, [slots, HV, V, K]. ring: base.Ring; its spans stay."""
    HV, V, K = state.shape[1:]
    HK, C = ring.keys.shape[1:3]
    with torch.cuda.device_of(state):
        settle_kernel[(V // SETTLE_TILE * HV * len(indices),)](
            *(state, indices, ring.keys, ring.corrections, ring.log_decays, ring.span),
            HK=HK,
            HV=HV,
            K=K,
            V=V,
            C=C,
            TILE=SETTLE_TILE,
            TERMS=terms(state.dtype, ring.keys.dtype),
            num_warps=SETTLE_WARPS,
        )
