"""Deferred write-back (`replay`): a decode step that reads the state and, in all but one of C + 1 steps, writes none.

A step changes the state by a rank-1 update. The update alone is kept, in a ring beside the state (base.Ring), and the
state is written once the ring is full. With the state S₀ as stored, the pending updates u_j k_jᵀ and the log decays g,

    S x = e^{G} S₀ x + Σ_j e^{G_j} (k_j . x) u_j        x = k, q;  G = Σ g_i,  G_j = Σ_{i > j} g_i, all ≤ 0

is the step in place in real arithmetic. Three launches, without a decision of the host:

    prepare_kernel   a program for each row and key head: k_j . k and k_j . q, gates, weights; stores k. One more lists
                     the rows whose ring is full
    read_kernel      a program for a part of each head's state: reads S₀ and the ring's u_j, stores u and o
    fold_kernel      (replay_fold.py) few programs that go through the rows whose ring is full: these read the state,
                     add the ring, take the step, and write

Each slot has its own phase, so that of B rows about B / (C + 1) are full at a step. The kernels use programmatic
dependent launch (PDL): read_kernel asks for its state while prepare_kernel runs, fold_kernel fills the tail of
read_kernel.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..base import multiprocessors
from .device import EPS, log_decay, prefetch, program_coords, sigmoid, state_offsets
from .recurrent import can_overlap
from .replay_fold import fold_kernel, terms

FEWEST_ROWS = 512  # that the list of full rings looks through, so that one compilation serves every batch up to it


class ReplayTiles(NamedTuple):
    """How read_kernel and fold_kernel are launched. rows: of the state, at a time. splits: programs for a head.

    stages: of the pipelined loop over rows.
    """

    rows: int
    splits: int
    stages: int
    warps: int
    fold_rows: int
    fold_splits: int
    fold_stages: int
    fold_warps: int
    fold_programs_per_sm: int


@triton.jit
def prepare_kernel(
    q, k, a, b, A_log, dt_bias, indices, keys, log_decays, span, taken, due, products, scale, rows,
    q_row, q_head, k_row, k_head, a_row, b_row,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, OVERLAP: tl.constexpr,
    L2NORM: tl.constexpr,
):  # fmt: skip
    """Compute what read_kernel needs of one row and key head, for each of its value heads. Grid: [1 + HK · B].

    products [slots, HV, 2 C + 8]: e^{G_j} (k_j . k) for each j, e^{G_j} (k_j . q), then e^{G} and the norm of k, e^{G}
    and the norm and scale of q, beta, k . q, the norm of k. Stores k and log g behind the ring's last entry and copies
    the slot's span to `taken`. Program 0 writes to `due` how many rows are full, and which. ROWS: a power of two of at
    least `rows`.
    """
    if OVERLAP:
        # In this order: once every program is past its wait, read_kernel may load what earlier kernels have written
        gdc_wait()
        gdc_launch_dependents()
    if tl.program_id(0) == 0:
        list_full_rings(indices, span, due, rows, C, ROWS)
        return
    GROUP: tl.constexpr = HV // HK
    WIDTH: tl.constexpr = 2 * C + 8
    key_head = (tl.program_id(0) - 1) % HK
    row = ((tl.program_id(0) - 1) // HK).to(tl.int64)
    slot = tl.load(indices + row).to(tl.int64)
    if slot < 0:
        return
    first, end = tl.load(span + 2 * slot), tl.load(span + 2 * slot + 1)
    if key_head == 0:
        tl.store(taken + 2 * slot, first)
        tl.store(taken + 2 * slot + 1, end)
    if end == C:
        return
    ks = tl.arange(0, K)
    js = tl.arange(0, C)
    members = tl.arange(0, triton.next_power_of_2(GROUP))
    heads = key_head * GROUP + members
    inside = members < GROUP
    pending = (js >= first) & (js < end)
    is_later = (js + 1 >= first) & (js + 1 < end)
    keys_at = keys + (slot * HK + key_head) * (C * K)
    decays_at = log_decays + (slot * HV + heads) * C
    ring = tl.load(keys_at + js[:, None] * K + ks[None, :], mask=pending[:, None], other=0.0).to(tl.float32)
    k_raw = tl.load(k + row * k_row + key_head * k_head + ks)
    q_vec = tl.load(q + row * q_row + key_head * q_head + ks).to(tl.float32)
    every_at = decays_at[:, None] + js[None, :]
    later = tl.load(every_at + 1, mask=inside[:, None] & is_later[None, :], other=0.0)
    every = tl.load(every_at, mask=inside[:, None] & pending[None, :], other=0.0)
    x = tl.load(a + row * a_row + heads, mask=inside, other=0.0).to(tl.float32)
    b_log = tl.load(b + row * b_row + heads, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(dt_bias + heads, mask=inside, other=0.0)
    A = tl.exp(tl.load(A_log + heads, mask=inside, other=0.0))

    k_vec = k_raw.to(tl.float32)
    tl.store(keys_at + end * K + ks, k_raw)
    q_norm = scale
    k_norm = 1.0
    if L2NORM:
        q_norm = scale * tl.rsqrt(tl.sum(q_vec * q_vec) + EPS)
        k_norm = tl.rsqrt(tl.sum(k_vec * k_vec) + EPS)
    kk = tl.sum(ring * k_vec[None, :], axis=1) * k_norm
    kq = tl.sum(ring * q_vec[None, :], axis=1) * q_norm
    own = tl.sum(k_vec * q_vec) * k_norm * q_norm
    log_g = log_decay(x, A)
    after = tl.cumsum(later, axis=1, reverse=True) + log_g[:, None]  # Σ_{i > j} g_i with this step's
    weights = tl.where(pending[None, :], tl.exp(after), 0.0)
    decay = tl.exp(tl.sum(every, axis=1) + log_g)
    at = products + (slot * HV + heads) * WIDTH
    weights_at = at[:, None] + js[None, :]
    tl.store(weights_at, weights * kk[None, :], mask=inside[:, None])
    tl.store(weights_at + C, weights * kq[None, :], mask=inside[:, None])
    at += 2 * C
    tl.store(at, decay * k_norm, mask=inside)
    tl.store(at + 1, decay * q_norm, mask=inside)
    tl.store(at + 2, sigmoid(b_log), mask=inside)
    tl.store(at + 3, tl.zeros_like(log_g) + own, mask=inside)
    tl.store(at + 4, tl.zeros_like(log_g) + k_norm, mask=inside)
    tl.store(decays_at + end, log_g, mask=inside)


@triton.jit
def list_full_rings(indices, span, due, rows, C: tl.constexpr, ROWS: tl.constexpr):
    """Write to due, [1 + slots], how many rows have a full ring, and their numbers, ascending."""
    numbers = tl.arange(0, ROWS)
    slots = tl.load(indices + numbers, mask=numbers < rows, other=-1).to(tl.int64)
    is_full = tl.load(span + 2 * slots + 1, mask=slots >= 0, other=-1) == C
    tl.store(due + tl.cumsum(is_full.to(tl.int32), axis=0), numbers, mask=is_full)
    tl.store(due, tl.sum(is_full.to(tl.int32)))


@triton.jit
def read_kernel(
    q, k, v, state, indices, corrections, span, products, out,
    q_row, q_head, k_row, k_head, v_row, v_head,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Compute o and u of V // SPLITS rows of one head's state, TILE at a time. Grid: [SPLITS · HV · B], parts fastest.

    Rows whose ring is full are fold_kernel's. OVERLAP: everything but `products` is complete once prepare_kernel has
    let this kernel start, so that the first tiles are asked for before the wait for it. No program ends without that
    wait, which fold_kernel relies on.
    """
    PART: tl.constexpr = V // SPLITS
    part, head, key_head, row = program_coords(HK, HV, SPLITS)
    ks = tl.arange(0, K)
    js = tl.arange(0, C)
    out_at = out + (row * HV + head) * V + part * PART
    slot = tl.load(indices + row).to(tl.int64)
    if slot < 0:
        if OVERLAP:
            gdc_wait()
            gdc_launch_dependents()
        for tile in tl.static_range(PART // TILE):
            at = out_at + tile * TILE + tl.arange(0, TILE)
            tl.store(at, tl.zeros([TILE], tl.float32).to(out.dtype.element_ty))
        return
    first, end = tl.load(span + 2 * slot), tl.load(span + 2 * slot + 1)
    if end == C:
        if OVERLAP:
            gdc_wait()
            gdc_launch_dependents()
        return

    state_at = state + (slot * HV + head) * (V * K) + part * (PART * K)
    ring_at = corrections + (slot * HV + head) * (C * V) + part * PART
    v_at = v + row * v_row + head * v_head + part * PART
    q_vec = tl.load(q + row * q_row + key_head * q_head + ks).to(tl.float32)
    k_vec = tl.load(k + row * k_row + key_head * k_head + ks).to(tl.float32)
    if OVERLAP:
        AHEAD: tl.constexpr = 4 * TILE if 4 * TILE <= PART else TILE
        AHEAD_BYTES: tl.constexpr = AHEAD * K * state.dtype.element_ty.primitive_bitwidth // 8
        prefetch(state_at, AHEAD_BYTES)
        gdc_wait()
        gdc_launch_dependents()
    at = products + (slot * HV + head) * (2 * C + 8)
    weights_k = tl.load(at + js)
    weights_q = tl.load(at + C + js)
    decay_k = tl.load(at + 2 * C)
    decay_q = tl.load(at + 2 * C + 1)
    beta = tl.load(at + 2 * C + 2)
    kq = tl.load(at + 2 * C + 3)
    k_norm = tl.load(at + 2 * C + 4)
    pending = ((js >= first) & (js < end))[:, None]
    v_next = tl.load(v_at + tl.arange(0, TILE))
    for tile in tl.range(0, PART // TILE, num_stages=STAGES):
        vs = tile * TILE + tl.arange(0, TILE)
        S = tl.load(state_at + state_offsets(vs, ks, K, V, True)).to(tl.float32)
        ring = tl.load(ring_at + js[:, None] * V + vs[None, :], mask=pending, other=0.0).to(tl.float32)
        v_vec = v_next.to(tl.float32)
        v_next = tl.load(v_at + vs + TILE, mask=vs + TILE < PART, other=0.0)  # too small to be copied ahead
        Sk = decay_k * tl.sum(S * k_vec[None, :], axis=1)
        Sq = decay_q * tl.sum(S * q_vec[None, :], axis=1)
        ring_k = tl.sum(ring * weights_k[:, None], axis=0)
        ring_q = tl.sum(ring * weights_q[:, None], axis=0)
        u = beta * (v_vec - Sk - ring_k)
        tl.store(out_at + vs, (Sq + ring_q + kq * u).to(out.dtype.element_ty))
        tl.store(ring_at + end * V + vs, (u * k_norm).to(corrections.dtype.element_ty))


def replay_tiles(heads: int, dtype: torch.dtype, V: int) -> ReplayTiles:
    """Choose how to launch for B · HV heads; splits and rows divide V."""
    most = V & -V  # the largest power of two in it
    stages = 3 if dtype is torch.float32 else 4
    return ReplayTiles(16, 1 if heads >= 4096 else 2, stages, 1, 32, min(2, most // 32), 2, 4, 4)


def decode_launch(call):
    """Return the launch function of decode for a call (base.Call)."""
    HK, HV, K, V = call.shape.dims
    overlap = can_overlap(call.device)
    split = terms(call.state_dtype, call.key_dtype)
    chosen = functools.cache(lambda rows: replay_tiles(rows * HV, call.state_dtype, V))

    def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
        rows, ring, tiles = q.shape[0], state.ring, chosen(q.shape[0])
        sizes = {"HK": HK, "HV": HV, "K": K, "C": ring.updates, "OVERLAP": overlap}
        of_q_k = {"q_row": q.stride(0), "q_head": q.stride(1), "k_row": k.stride(0), "k_head": k.stride(1)}
        of_v = {"v_row": v.stride(0), "v_head": v.stride(1)}
        of_gates = {"a_row": a.stride(0), "b_row": b.stride(0)}
        prepare_kernel[(1 + HK * rows,)](
            *(q, k, a, b, A_log, dt_bias, indices),
            *(ring.keys, ring.log_decays, ring.span, ring.taken, ring.due, ring.products),
            scale=scale,
            rows=rows,
            **of_q_k,
            **of_gates,
            **sizes,
            ROWS=max(FEWEST_ROWS, triton.next_power_of_2(rows)),
            L2NORM=use_qk_l2norm,
            num_warps=1,
            launch_pdl=overlap,
        )
        read_kernel[(tiles.splits * HV * rows,)](
            *(q, k, v, state.data, indices, ring.corrections, ring.span, ring.products, out),
            **of_q_k,
            **of_v,
            **sizes,
            V=V,
            TILE=tiles.rows,
            SPLITS=tiles.splits,
            STAGES=tiles.stages,
            num_warps=tiles.warps,
            launch_pdl=overlap,
        )
        fold_kernel[(tiles.fold_programs_per_sm * multiprocessors(state.data.device),)](
            *(q, k, v, a, b, A_log, dt_bias, state.data, indices),
            *(ring.keys, ring.corrections, ring.log_decays, ring.span, ring.taken, ring.due, out),
            scale=scale,
            rows=rows,
            **of_q_k,
            **of_v,
            **of_gates,
            **sizes,
            V=V,
            TILE=tiles.fold_rows,
            SPLITS=tiles.fold_splits,
            STAGES=tiles.fold_stages,
            TERMS=split,
            L2NORM=use_qk_l2norm,
            num_warps=tiles.fold_warps,
            launch_pdl=overlap,
        )

    return launch
