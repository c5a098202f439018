"""Deferred write-back of an FP8 state (e4m3.py): the tensor cores read it as it is stored, without a conversion.

The step is replay.py's. With S₀[v, :] = s_v E[v, :], k and q are split into e4m3 terms k = Σ_t 2^-4t k_t, so that

    S₀ k = s ∘ Σ_t 2^-4t (E k_t)       S₀ q = s ∘ Σ_t 2^-4t (E q_t)

are one product of E with the 16 columns k_0, k_1, …, q_0, q_1, …, exact for inputs of bf16 but for sums: the tensor
cores of Hopper keep 14 bits of an FP8 sum. The ring's part is a product of its u_j, bf16, with the weights in two bf16
terms, in the same columns. Three launches, without a decision of the host:

    prepare_fp8_kernel   a program for each row and key head: terms of k and q, weights of the ring, gates; stores k.
                         One more lists the rows whose ring this step fills
    read_fp8_kernel      a program for some heads of one row: reads E and the ring's u_j, stores u and o
    fold_fp8_kernel      (replay_fp8_fold.py) few programs that go through the rows whose ring is full and write them

A step that fills the ring reads its state twice, once in C steps. So the kernel that writes needs no k, q, v or gates:
their 64 registers a thread would halve the warps that hide its loads.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..base import multiprocessors
from .device import EPS, INTERPRETED, log_decay, prefetch, sigmoid
from .recurrent import can_overlap
from .replay_fp8_fold import fold_fp8_kernel

FEWEST_ROWS = 512  # that the list of full rings looks through, so that one compilation serves every batch up to it
MOST_TERMS = 3  # of k, and of q
COLUMNS = tl.constexpr(16)  # 8 for k, 8 for q


class Fp8Tiles(NamedTuple):
    """How the kernels are launched. rows: of a state, at a time. heads: of one key head, for a program.

    stages: of the pipelined loop over rows. ahead: rows brought into the L2 while prepare_fp8_kernel runs.
    """

    rows: int
    heads: int
    stages: int
    warps: int
    ahead: int
    fold_rows: int
    fold_splits: int
    fold_stages: int
    fold_warps: int
    fold_programs_per_sm: int


@triton.jit
def in_e4m3(x):
    """Return float32 x of at most 448 in e4m3, to nearest."""
    if INTERPRETED:  # it loses a carry out of the mantissa, so the bits that e4m3 lacks are cut off before
        x = (x.to(tl.uint32, bitcast=True) & 0xFFF00000).to(tl.float32, bitcast=True)
    return x.to(tl.float8e4nv)


@triton.jit
def store_terms(x, terms_at, ks, K: tl.constexpr, TERMS: tl.constexpr):
    """Store x [K] float32 as e4m3 terms [TERMS, K]: x = unit Σ_t 2^-4t term_t. Return unit, a power of two.

    Each term is the rounding of what is left. The largest element of the first lies from 128 to 256, and what rounding
    to 4 bits leaves is at most 2^-4 of that.
    """
    exponent = (tl.max(tl.abs(x), axis=0).to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.minimum(tl.maximum(exponent, 8), 253)
    left = x * ((261 - exponent) << 23).to(tl.float32, bitcast=True)
    for t in tl.static_range(TERMS):
        term = in_e4m3(left)
        tl.store(terms_at + t * K + ks, term)
        left = (left - term.to(tl.float32)) * 16.0
    return ((exponent - 7) << 23).to(tl.float32, bitcast=True)


@triton.jit
def product(x, y):
    """Return x y, float32."""
    if INTERPRETED:  # it has no product of bf16 or e4m3
        return tl.dot(x.to(tl.float32), y.to(tl.float32))
    else:
        return tl.dot(x, y)


@triton.jit
def list_due(indices, span, due, rows, C: tl.constexpr, ROWS: tl.constexpr):
    """Write to due, [1 + slots], how many rows fill their ring in this step, and their numbers, ascending."""
    numbers = tl.arange(0, ROWS)
    slots = tl.load(indices + numbers, mask=numbers < rows, other=-1).to(tl.int64)
    is_full = tl.load(span + 2 * slots + 1, mask=slots >= 0, other=-1) == C - 1
    places = tl.cumsum(is_full.to(tl.int32), axis=0)
    tl.store(due + places, numbers, mask=is_full)
    tl.store(due, tl.max(places, axis=0))


@triton.jit(do_not_specialize=["rows", "a_row", "b_row"], do_not_specialize_on_alignment=["a", "b"])
def prepare_fp8_kernel(
    q, k, a, b, A_log, dt_bias, indices, keys, log_decays, span, taken, due, factors, terms, folds, scale, rows,
    q_row, q_head, k_row, k_head, a_row, b_row,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, TERMS: tl.constexpr,
    OVERLAP: tl.constexpr, L2NORM: tl.constexpr,
):  # fmt: skip
    """Compute what read_fp8_kernel needs of one row and key head, for each of its value heads. Grid: [1 + HK · B].

    factors [slots, HV, 2 C + 5]: e^{G_j} (k_j . k) for each j, e^{G_j} (k_j . q), then what E k and E q are multiplied
    with, beta, k . q, the norm of k. terms [slots, HK, 6, K]: TERMS of k, then of q. Stores k and log g behind the
    ring's last entry, copies the slot's span to `taken` and counts its folds. Program 0 writes to `due` how many rows
    fill their ring, and which. ROWS: a power of two of at least `rows`.
    """
    if OVERLAP:
        # In this order: once every program is past its wait, read_fp8_kernel may load what earlier kernels have written
        gdc_wait()
        gdc_launch_dependents()
    if tl.program_id(0) == 0:
        list_due(indices, span, due, rows, C, ROWS)
        return
    GROUP: tl.constexpr = HV // HK
    key_head = (tl.program_id(0) - 1) % HK
    row = ((tl.program_id(0) - 1) // HK).to(tl.int64)
    slot = tl.load(indices + row).to(tl.int64)
    if slot < 0:
        return
    first, end = tl.load(span + 2 * slot), tl.load(span + 2 * slot + 1)
    if key_head == 0:
        tl.store(taken + 2 * slot, first)
        tl.store(taken + 2 * slot + 1, end)
        tl.store(folds + slot, tl.load(folds + slot) + (end == C - 1).to(tl.int32))
    ks = tl.arange(0, K)
    js = tl.arange(0, C)
    members = tl.arange(0, triton.next_power_of_2(GROUP))
    heads = key_head * GROUP + members
    inside = members < GROUP
    pending = (js >= first) & (js < end)
    is_later = (js + 1 >= first) & (js + 1 < end)
    keys_at = keys + (slot * HK + key_head) * (C * K)
    decays_at = (log_decays + (slot * HV + heads) * C)[:, None] + js[None, :]
    k_raw = tl.load(k + row * k_row + key_head * k_head + ks)
    q_raw = tl.load(q + row * q_row + key_head * q_head + ks)
    ring = tl.load(keys_at + js[:, None] * K + ks[None, :], mask=pending[:, None], other=0.0)
    later = tl.load(decays_at + 1, mask=inside[:, None] & is_later[None, :], other=0.0)
    every = tl.load(decays_at, mask=inside[:, None] & pending[None, :], other=0.0)
    x = tl.load(a + row * a_row + heads, mask=inside, other=0.0).to(tl.float32)
    b_log = tl.load(b + row * b_row + heads, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(dt_bias + heads, mask=inside, other=0.0)
    A = tl.exp(tl.load(A_log + heads, mask=inside, other=0.0))

    k_vec = k_raw.to(tl.float32)
    q_vec = q_raw.to(tl.float32)
    tl.store(keys_at + end * K + ks, k_raw)
    terms_at = terms + (slot * HK + key_head) * (6 * K)
    k_unit = store_terms(k_vec, terms_at, ks, K, TERMS)
    q_unit = store_terms(q_vec, terms_at + TERMS * K, ks, K, TERMS)
    q_norm = scale
    k_norm = 1.0
    if L2NORM:
        q_norm = scale * tl.rsqrt(tl.sum(q_vec * q_vec) + EPS)
        k_norm = tl.rsqrt(tl.sum(k_vec * k_vec) + EPS)
    if TERMS == 2:  # bf16, exact but for sums: k, q, k, q, … in 8 columns
        is_k = (tl.arange(0, 8) % 2 == 0)[None, :]
        dots = product(ring, tl.where(is_k, k_raw[:, None], q_raw[:, None]))
        kk = tl.sum(tl.where(is_k, dots, 0.0), axis=1) * (0.25 * k_norm)
        kq = tl.sum(tl.where(is_k, 0.0, dots), axis=1) * (0.25 * q_norm)
    else:
        kk = tl.sum(ring.to(tl.float32) * k_vec[None, :], axis=1) * k_norm
        kq = tl.sum(ring.to(tl.float32) * q_vec[None, :], axis=1) * q_norm
    own = tl.sum(k_vec * q_vec) * k_norm * q_norm
    log_g = log_decay(x, A)
    after = tl.cumsum(later, axis=1, reverse=True) + log_g[:, None]  # Σ_{i > j} g_i with this step's
    weights = tl.where(pending[None, :], tl.exp(after), 0.0)
    decay = tl.exp(tl.sum(every, axis=1) + log_g)
    at = factors + (slot * HV + heads) * (2 * C + 5)
    weights_at = at[:, None] + js[None, :]
    tl.store(weights_at, weights * kk[None, :], mask=inside[:, None])
    tl.store(weights_at + C, weights * kq[None, :], mask=inside[:, None])
    at += 2 * C
    tl.store(at, decay * (k_norm * k_unit), mask=inside)
    tl.store(at + 1, decay * (q_norm * q_unit), mask=inside)
    tl.store(at + 2, sigmoid(b_log), mask=inside)
    tl.store(at + 3, tl.zeros_like(log_g) + own, mask=inside)
    tl.store(at + 4, tl.zeros_like(log_g) + k_norm, mask=inside)
    tl.store(log_decays + (slot * HV + heads) * C + end, log_g, mask=inside)


@triton.jit(do_not_specialize_on_alignment=["indices"])
def read_fp8_kernel(
    v, state, scales, indices, corrections, span, factors, terms, out, v_row, v_head,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    HEADS: tl.constexpr, STAGES: tl.constexpr, TERMS: tl.constexpr, AHEAD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Compute o and u of HEADS heads' states, TILE rows at a time. Grid: [HV // HEADS · B], heads fastest.

    OVERLAP: everything but factors and terms is complete once prepare_fp8_kernel has let this kernel start, so that
    AHEAD rows are asked for before the wait for it. No program ends without that wait, which fold_fp8_kernel relies on.
    """
    TILES: tl.constexpr = V // TILE
    first_head = tl.program_id(0) % (HV // HEADS) * HEADS
    row = (tl.program_id(0) // (HV // HEADS)).to(tl.int64)
    ks = tl.arange(0, K)
    js = tl.arange(0, C)
    columns = tl.arange(0, COLUMNS)
    tile_rows = tl.arange(0, TILE)
    out_at = out + (row * HV + first_head) * V + tile_rows
    slot = tl.load(indices + row).to(tl.int64)
    if slot < 0:
        if OVERLAP:
            gdc_wait()
            gdc_launch_dependents()
        for tile in tl.static_range(HEADS * TILES):
            tl.store(out_at + tile * TILE, tl.zeros([TILE], tl.float32).to(out.dtype.element_ty))
        return
    first, end = tl.load(span + 2 * slot), tl.load(span + 2 * slot + 1)
    head_at = slot * HV + first_head
    state_at = state + head_at * (V * K)
    scales_at = scales + head_at * V + tile_rows
    v_at = v + row * v_row + first_head * v_head + tile_rows
    if OVERLAP:
        if AHEAD > 0:
            prefetch(state_at, AHEAD * K)
        gdc_wait()
        gdc_launch_dependents()
    # Columns 0, 1, … are the terms of k, columns 8, 9, … those of q
    term = columns % 8
    terms_at = terms + (slot * HK + first_head // (HV // HK)) * (6 * K) + (columns // 8 * TERMS + term) * K
    kq_terms = tl.load(terms_at[None, :] + ks[:, None], mask=(term < TERMS)[None, :], other=0.0)
    of_term = ((127 - 4 * term) << 23).to(tl.float32, bitcast=True)
    of_k = columns < 8
    pending = ((js >= first) & (js < end))[None, :]
    v_next = tl.load(v_at)
    scale_next = tl.load(scales_at)
    for tile in tl.range(0, HEADS * TILES, num_stages=STAGES):
        head = tile // TILES
        vs = tile % TILES * TILE + tile_rows
        E = tl.load(state_at + (tile * TILE + tile_rows)[:, None] * K + ks[None, :])
        u_at = corrections + (head_at + head) * (C * V) + vs
        us = tl.load(u_at[:, None] + js[None, :] * V, mask=pending, other=0.0)
        at = factors + (head_at + head) * (2 * C + 5)
        weights = tl.load(at + (columns // 8 * C)[None, :] + js[:, None])
        decay = tl.load(at + 2 * C + columns // 8)
        beta = tl.load(at + 2 * C + 2)
        own = tl.load(at + 2 * C + 3)
        k_norm = tl.load(at + 2 * C + 4)
        v_vec, row_scale = v_next.to(tl.float32), scale_next
        after = tile + 1  # too small to be copied ahead by the pipeline
        inside = (tile_rows >= 0) & (after < HEADS * TILES)
        v_next = tl.load(v_at + after // TILES * v_head + after % TILES * TILE, mask=inside, other=0.0)
        scale_next = tl.load(scales_at + after * TILE, mask=inside, other=0.0)

        high = weights.to(tl.bfloat16)
        low = (weights - high.to(tl.float32)).to(tl.bfloat16)
        nothing = tl.zeros([C, COLUMNS], tl.bfloat16)
        weights = tl.where((term == 0)[None, :], high, tl.where((term == 1)[None, :], low, nothing))
        read = product(E, kq_terms) * (decay * of_term)[None, :] * row_scale[:, None] + product(us, weights)
        Sk = tl.sum(tl.where(of_k[None, :], read, 0.0), axis=1)
        Sq = tl.sum(tl.where(of_k[None, :], 0.0, read), axis=1)
        u = beta * (v_vec - Sk)
        tl.store(out_at + tile * TILE, (Sq + own * u).to(out.dtype.element_ty))
        tl.store(u_at + end * V, (u * k_norm).to(corrections.dtype.element_ty))


def fp8_tiles(rows: int, shape) -> Fp8Tiles:
    """Choose how to launch for `rows` rows, by times on an H200: few heads as many small programs."""
    group, heads = shape.num_v_heads // shape.num_k_heads, rows * shape.num_v_heads
    most = shape.head_v_dim & -shape.head_v_dim  # the largest power of two in it
    together = 2 if heads >= 8192 and group % 2 == 0 else 1
    splits = min(2 if heads >= 16384 else 4, most // 16)
    return Fp8Tiles(min(128, most), together, 1, 4, min(128, most), 16, splits, 2, 1, 8)


def decode_launch(call):
    """Return the launch function of decode for a call (base.Call)."""
    HK, HV, K, V = call.shape.dims
    overlap = can_overlap(call.device)
    term_count = 2 if call.key_dtype is torch.bfloat16 else MOST_TERMS
    chosen = functools.cache(lambda rows: fp8_tiles(rows, call.shape))

    def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
        rows, ring, tiles = q.shape[0], state.ring, chosen(q.shape[0])
        taken, due, factors, terms = ring.operands
        sizes = {"HK": HK, "HV": HV, "K": K, "C": ring.updates, "OVERLAP": overlap}
        of_q_k = {"q_row": q.stride(0), "q_head": q.stride(1), "k_row": k.stride(0), "k_head": k.stride(1)}
        of_v = {"v_row": v.stride(0), "v_head": v.stride(1)}
        of_gates = {"a_row": a.stride(0), "b_row": b.stride(0)}
        prepare_fp8_kernel[(1 + HK * rows,)](
            *(q, k, a, b, A_log, dt_bias, indices, ring.keys, ring.log_decays, ring.span),
            *(taken, due, factors, terms, state.rounding.steps),
            scale=scale,
            rows=rows,
            **of_q_k,
            **of_gates,
            **sizes,
            ROWS=max(FEWEST_ROWS, triton.next_power_of_2(rows)),
            TERMS=term_count,
            L2NORM=use_qk_l2norm,
            num_warps=1,
            launch_pdl=overlap,
        )
        read_fp8_kernel[(HV // tiles.heads * rows,)](
            *(v, state.data, state.scales, indices, ring.corrections, ring.span, factors, terms, out),
            **of_v,
            **sizes,
            V=V,
            TILE=tiles.rows,
            HEADS=tiles.heads,
            STAGES=tiles.stages,
            TERMS=term_count,
            AHEAD=tiles.ahead,
            num_warps=tiles.warps,
            launch_pdl=overlap,
        )
        fold_fp8_kernel[(tiles.fold_programs_per_sm * multiprocessors(state.data.device),)](
            *(state.data, state.scales, indices, ring.keys, ring.corrections, ring.log_decays),
            *(ring.span, taken, due, *state.rounding),
            rows=rows,
            **sizes,
            V=V,
            TILE=tiles.fold_rows,
            SPLITS=tiles.fold_splits,
            STAGES=tiles.fold_stages,
            U_TERMS=2 if call.key_dtype is torch.bfloat16 else 0,
            num_warps=tiles.fold_warps,
            launch_pdl=overlap,
        )

    return launch
