"""Deferred write-back (`replay`): a decode step that reads the state and, in all but one of C + 1 steps, writes none.

A step changes the state by a rank-1 update. The update alone is kept, in a ring beside the state (base.Ring), and the
state is written once the ring is full. With the state S₀ as stored, the pending updates u_j k_jᵀ and the log decays g,

    S x = e^{G} S₀ x + Σ_j e^{G_j} (k_j . x) u_j        x = k, q;  G = Σ g_i,  G_j = Σ_{i > j} g_i, all ≤ 0

is the step in place in real arithmetic. Three launches, without a decision of the host:

    prepare_kernel   a program for each row and key head: k_j . k and k_j . q, gates, weights; stores k
    read_kernel      a program for each tile of a state: reads S₀ and the ring's u_j, stores u and o
    fold_kernel      (replay_fold.py) few programs that go through the rows whose ring is full: these read the state,
                     add the ring, take the step, and write

Each slot has its own phase, so that of B rows about B / (C + 1) are full at a step. The kernels use programmatic
dependent launch (PDL): read_kernel loads its tile while prepare_kernel runs, fold_kernel fills the tail of read_kernel.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..base import multiprocessors
from .device import EPS, log_decay, program_coords, sigmoid, state_offsets
from .recurrent import can_overlap
from .replay_fold import decays_after, fold_kernel, terms

FEWEST_ROWS = 512  # that fold_kernel looks through, so that one compilation serves every batch up to it


class ReplayTiles(NamedTuple):
    """How the three kernels are launched. rows: of the state, for a program."""

    rows: int
    parts: int
    warps: int
    prepare_warps: int
    fold_rows: int
    fold_warps: int
    fold_programs_per_sm: int
    registers: int | None = None  # of read_kernel


@triton.jit
def prepare_kernel(
    q, k, a, b, A_log, dt_bias, indices, keys, log_decays, span, taken, products, scale,
    q_row, q_head, k_row, k_head, a_row, b_row,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, C: tl.constexpr, OVERLAP: tl.constexpr, L2NORM: tl.constexpr,
):  # fmt: skip
    """Compute what read_kernel needs of one row and key head, for each of its value heads. Grid: [HK · B].

    products [slots, HV, 2 C + 8]: e^{G_j} (k_j . k) for each j, e^{G_j} (k_j . q), then e^{G} and the norm of k, e^{G}
    and the norm and scale of q, beta, k . q, the norm of k. Stores k and log g behind the ring's last entry and copies
    the slot's span to `taken`.
    """
    GROUP: tl.constexpr = HV // HK
    WIDTH: tl.constexpr = 2 * C + 8
    key_head = tl.program_id(0) % HK
    row = (tl.program_id(0) // HK).to(tl.int64)
    if OVERLAP:
        # In this order: once every program is past its wait, read_kernel may load what earlier kernels have written
        gdc_wait()
        gdc_launch_dependents()
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
    keys_at = keys + (slot * HK + key_head) * (C * K)
    pending = (js >= first) & (js < end)
    ring = tl.load(keys_at + js[:, None] * K + ks[None, :], mask=pending[:, None], other=0.0).to(tl.float32)
    k_raw = tl.load(k + row * k_row + key_head * k_head + ks)
    q_vec = tl.load(q + row * q_row + key_head * q_head + ks).to(tl.float32)
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
    for i in tl.static_range(GROUP):
        head = key_head * GROUP + i
        x = tl.load(a + row * a_row + head).to(tl.float32) + tl.load(dt_bias + head)
        log_g = log_decay(x, tl.exp(tl.load(A_log + head)))
        beta = sigmoid(tl.load(b + row * b_row + head).to(tl.float32))
        decays_at = log_decays + (slot * HV + head) * C
        after, total = decays_after(decays_at, first, end, C)
        weights = tl.where(pending, tl.exp(after + log_g), 0.0)
        decay = tl.exp(total + log_g)
        at = products + (slot * HV + head) * WIDTH
        tl.store(at + js, weights * kk)
        tl.store(at + C + js, weights * kq)
        tl.store(at + 2 * C, decay * k_norm)
        tl.store(at + 2 * C + 1, decay * q_norm)
        tl.store(at + 2 * C + 2, beta)
        tl.store(at + 2 * C + 3, own)
        tl.store(at + 2 * C + 4, k_norm)
        tl.store(decays_at + end, log_g)


@triton.jit
def read_kernel(
    q, k, v, state, indices, corrections, span, products, out,
    q_row, q_head, k_row, k_head, v_row, v_head,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    PARTS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Compute o and u of TILE rows of one head's state for one batch row. Grid: [V // TILE · HV · B], tiles fastest.

    Rows whose ring is full are fold_kernel's. OVERLAP: everything but `products` is complete once prepare_kernel has
    let this kernel start, so it is loaded before the wait for it. No program ends without that wait, which
    fold_kernel relies on. PARTS: 2 loads the whole tile and works on one half after the other, in fewer registers.
    """
    PART: tl.constexpr = TILE // PARTS
    tile, head, key_head, row = program_coords(HK, HV, V // TILE)
    ks = tl.arange(0, K)
    vs = tile * TILE + tl.arange(0, PART)
    js = tl.arange(0, C)
    out_at = out + (row * HV + head) * V + vs
    v_at = v + row * v_row + head * v_head
    slot = tl.load(indices + row).to(tl.int64)
    if slot < 0:
        if OVERLAP:
            gdc_wait()
            gdc_launch_dependents()
        for part in tl.static_range(PARTS):
            tl.store(out_at + part * PART, tl.zeros([PART], tl.float32).to(out.dtype.element_ty))
        return
    first, end = tl.load(span + 2 * slot), tl.load(span + 2 * slot + 1)
    if end == C:
        if OVERLAP:
            gdc_wait()
            gdc_launch_dependents()
        return

    state_at = state + (slot * HV + head) * (V * K)
    ring_at = corrections + (slot * HV + head) * (C * V) + js[:, None] * V
    pending = ((js >= first) & (js < end))[:, None]
    S = tl.load(state_at + state_offsets(vs, ks, K, V, True))
    ring = tl.load(ring_at + vs[None, :], mask=pending, other=0.0)
    v_vec = tl.load(v_at + vs)
    if PARTS == 2:
        S_2 = tl.load(state_at + state_offsets(vs + PART, ks, K, V, True))
        ring_2 = tl.load(ring_at + (vs + PART)[None, :], mask=pending, other=0.0)
        v_2 = tl.load(v_at + vs + PART)
    q_vec = tl.load(q + row * q_row + key_head * q_head + ks).to(tl.float32)
    k_vec = tl.load(k + row * k_row + key_head * k_head + ks).to(tl.float32)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    made_at = products + (slot * HV + head) * (2 * C + 8)
    u_at = corrections + ((slot * HV + head) * C + end) * V + vs
    step_of_rows(S, ring, k_vec, q_vec, v_vec, made_at, out_at, u_at, C)
    if PARTS == 2:
        step_of_rows(S_2, ring_2, k_vec, q_vec, v_2, made_at, out_at + PART, u_at + PART, C)


@triton.jit
def step_of_rows(S, ring, k_vec, q_vec, v_vec, made_at, out_at, u_at, C: tl.constexpr):
    """Store o and u of the rows of S [n, K], given the ring's u_j, [C, n], and products at made_at."""
    weights_at = made_at + tl.arange(0, C)
    ring = ring.to(tl.float32)
    ring_k = tl.sum(ring * tl.load(weights_at)[:, None], axis=0)
    ring_q = tl.sum(ring * tl.load(weights_at + C)[:, None], axis=0)
    S = S.to(tl.float32)
    Sk = tl.load(made_at + 2 * C) * tl.sum(S * k_vec[None, :], axis=1)
    Sq = tl.load(made_at + 2 * C + 1) * tl.sum(S * q_vec[None, :], axis=1)
    u = tl.load(made_at + 2 * C + 2) * (v_vec.to(tl.float32) - Sk - ring_k)
    o = Sq + ring_q + tl.load(made_at + 2 * C + 3) * u
    tl.store(out_at, o.to(out_at.dtype.element_ty))
    tl.store(u_at, (u * tl.load(made_at + 2 * C + 4)).to(u_at.dtype.element_ty))


def replay_tiles(heads: int, dtype: torch.dtype) -> ReplayTiles:
    """Choose how to launch for B · HV heads."""
    parts = 2 if dtype is torch.float32 else 1
    return ReplayTiles(32, parts, 1, 1, 32, 4, 3)


def decode_launch(call):
    """Return the launch function of decode for a call (base.Call)."""
    HK, HV, K, V = call.shape.dims
    overlap = can_overlap(call.device)
    split = terms(call.state_dtype, call.key_dtype)
    chosen = functools.cache(lambda rows: replay_tiles(rows * HV, call.state_dtype))

    def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
        rows, ring, tiles = q.shape[0], state.ring, chosen(q.shape[0])
        sizes = {"HK": HK, "HV": HV, "K": K, "C": ring.updates, "OVERLAP": overlap}
        of_q_k = {"q_row": q.stride(0), "q_head": q.stride(1), "k_row": k.stride(0), "k_head": k.stride(1)}
        of_v = {"v_row": v.stride(0), "v_head": v.stride(1)}
        of_gates = {"a_row": a.stride(0), "b_row": b.stride(0)}
        prepare_kernel[(HK * rows,)](
            *(q, k, a, b, A_log, dt_bias, indices, ring.keys, ring.log_decays, ring.span, ring.taken, ring.products),
            scale=scale,
            **of_q_k,
            **of_gates,
            **sizes,
            L2NORM=use_qk_l2norm,
            num_warps=tiles.prepare_warps,
            launch_pdl=overlap,
        )
        read_kernel[(V // tiles.rows * HV * rows,)](
            *(q, k, v, state.data, indices, ring.corrections, ring.span, ring.products, out),
            **of_q_k,
            **of_v,
            **sizes,
            V=V,
            TILE=tiles.rows,
            PARTS=tiles.parts,
            num_warps=tiles.warps,
            maxnreg=tiles.registers,
            launch_pdl=overlap,
        )
        fold_kernel[(tiles.fold_programs_per_sm * multiprocessors(state.data.device),)](
            *(q, k, v, a, b, A_log, dt_bias, state.data, indices),
            *(ring.keys, ring.corrections, ring.log_decays, ring.span, ring.taken, out),
            scale=scale,
            rows=rows,
            **of_q_k,
            **of_v,
            **of_gates,
            **sizes,
            V=V,
            TILE=tiles.fold_rows,
            ROWS=max(FEWEST_ROWS, triton.next_power_of_2(rows)),
            TERMS=split,
            L2NORM=use_qk_l2norm,
            num_warps=tiles.fold_warps,
            launch_pdl=overlap,
        )

    return launch
