"""Deferred write-back (`replay`): a decode step that reads the state and, in all but one of C + 1 steps, writes none.

A step changes the state by a rank-1 update. The update alone is kept, in a ring beside the state (base.Ring), and the
state is written once the ring is full. With the state S₀ as stored, the pending updates u_j k_jᵀ and the log decays g,

    S x = e^{G} S₀ x + Σ_j e^{G_j} (k_j . x) u_j        x = k, q;  G = Σ g_i,  G_j = Σ_{i > j} g_i, all ≤ 0

is the step in place in real arithmetic. It is one launch, without a decision of the host: a program takes one head
of one row, and where the ring is full it also writes the state. Each slot has its own phase, so that of B rows about
B / (C + 1) are full at a step. Their programs take longest, so they begin first: eight rows that lie B / 8 apart
change places among themselves by their spans. The last program that has read these spans moves them on.

With a bf16 state and bf16 inputs, S₀ k and S₀ q are one product [TILE, K] · [K, 8] on the tensor cores, exact but for
its float32 sum, because k and q are taken as they came and their norms are factors of the result. The ring adds to it
a product [TILE, C] · [C, 8] whose float32 weights are split into three bf16 terms, two columns each. Sums across the
threads of a warp, of which the CUDA cores need 64 shuffles for each 16 rows, are what limits them.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .device import EPS, INTERPRETED, log_decay, program_coords, sigmoid, state_offsets
from .recurrent import can_overlap
from .replay_fold import add_updates, arrive, decays_after, terms

GROUP = 8  # rows that change places, those with a full ring first


class ReplayTiles(NamedTuple):
    """How replay_kernel is launched. rows: of the state, at a time. stages: of the pipelined loop over rows.

    parts: of the columns, which a program that writes goes through. registers: at most, of a thread; None: no limit.
    """

    rows: int
    stages: int
    warps: int
    parts: int = 2
    registers: int | None = None


@triton.jit
def dot(x, y, z):
    """Return x y + z, float32, of 16-bit x and y."""
    if INTERPRETED:  # it has no product of bf16
        return tl.dot(x.to(tl.float32), y.to(tl.float32), z)
    else:
        return tl.dot(x, y, z)


@triton.jit
def in_terms(x, columns):
    """Return x [.., 8] as bf16: the first, second and third term of x in columns 0 and 1, 2 and 3, 4 and 5."""
    high = x.to(tl.bfloat16)
    x -= high.to(tl.float32)
    middle = x.to(tl.bfloat16)
    low = (x - middle.to(tl.float32)).to(tl.bfloat16)
    zero = tl.zeros_like(x).to(tl.bfloat16)
    return tl.where(columns < 2, high, tl.where(columns < 4, middle, tl.where(columns < 6, low, zero)))


@triton.jit
def updated(S, decay, us, keys, u, k, TERMS: tl.constexpr):
    """Return decay S + us keys + u kᵀ, float32. S [TILE, K], us [TILE, C] float32, keys [C, K]."""
    more = add_updates(tl.zeros(S.shape, tl.float32), us, keys, TERMS)
    return S.to(tl.float32) * decay + more + u[:, None] * k.to(tl.float32)[None, :]


@triton.jit
def rows_of_group(place, indices, span, HV: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr):
    """Return a group's rows, slots (-1 past the last row), firsts and ends of their spans, and which row is of `place`.

    Each [GROUP]. A group is the rows place % apart + n · apart with apart = ⌈B / GROUP⌉; those with a full ring have
    its first places.
    """
    B = tl.num_programs(0) // HV
    apart = tl.cdiv(B, GROUP)
    nth = tl.arange(0, GROUP)
    rows = place % apart + nth * apart
    slots = tl.load(indices + rows, mask=rows < B, other=-1).to(tl.int64)
    firsts = tl.load(span + 2 * slots, mask=slots >= 0, other=0)
    ends = tl.load(span + 2 * slots + 1, mask=slots >= 0, other=0)
    full = (ends == C).to(tl.int32)
    before = tl.cumsum(full, axis=0)
    places = tl.where(full > 0, before - 1, tl.sum(full) + nth - before)
    return rows, slots, firsts, ends, places == place // apart


@triton.jit
def replay_kernel(
    q, k, v, a, b, A_log, dt_bias, state, indices, keys, corrections, log_decays, span, arrivals, out, scale,
    q_row, q_head, k_row, k_head, v_row, v_head, a_row, b_row,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr, TENSOR: tl.constexpr, TERMS: tl.constexpr,
    OVERLAP: tl.constexpr, L2NORM: tl.constexpr,
):  # fmt: skip
    """Take the step of one head of one row, TILE rows of its state at a time. Grid: [HV · B], heads fastest.

    arrivals [slots] int32: how many programs have read the spans of a group of rows, counted at the group's largest
    slot; 0 between steps. TENSOR: state, u and inputs are bf16, and products with the state and the ring run on the
    tensor cores. TERMS: of add_updates().
    """
    _, head, key_head, place = program_coords(HK, HV, 1)
    ks = tl.arange(0, K)
    js = tl.arange(0, C)
    rows = tl.arange(0, TILE)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    group, slots, firsts, ends, mine = rows_of_group(place, indices, span, HV, C, GROUP)
    row = tl.sum(tl.where(mine, group, 0))
    slot = tl.sum(tl.where(mine, slots, 0))
    first, end = tl.sum(tl.where(mine, firsts, 0)), tl.sum(tl.where(mine, ends, 0))
    tl.debug_barrier()  # every warp has the spans, which the last program to come here moves on
    largest = tl.max(slots)
    if largest >= 0:
        members = tl.sum((group < tl.num_programs(0) // HV).to(tl.int32))
        is_last = arrive(arrivals + largest) == HV * members - 1
        tl.store(arrivals + largest, 0, mask=is_last)
        moved = is_last & (slots >= 0)
        tl.store(span + 2 * slots, tl.where(ends < C, firsts, 0), mask=moved)
        tl.store(span + 2 * slots + 1, tl.where(ends < C, ends + 1, 0), mask=moved)
    out_at = out + (row * HV + head) * V
    if slot < 0:
        for tile in tl.static_range(V // TILE):
            tl.store(out_at + tile * TILE + rows, tl.zeros([TILE], tl.float32).to(out.dtype.element_ty))
        return

    state_at = state + (slot * HV + head) * (V * K)
    keys_at = keys + (slot * HK + key_head) * (C * K)
    decays_at = log_decays + (slot * HV + head) * C
    k_at = k + row * k_row + key_head * k_head
    k_raw = tl.load(k_at + ks)
    q_raw = tl.load(q + row * q_row + key_head * q_head + ks)
    x = tl.load(a + row * a_row + head).to(tl.float32) + tl.load(dt_bias + head)
    A = tl.exp(tl.load(A_log + head))
    beta = sigmoid(tl.load(b + row * b_row + head).to(tl.float32))
    v_at = v + row * v_row + head * v_head
    v_next = tl.load(v_at + rows)
    u_at = corrections + (slot * HV + head) * (C * V)
    pending = (js >= first) & (js < end)
    ring = tl.load(keys_at + js[:, None] * K + ks[None, :], mask=pending[:, None], other=0.0)
    after, total = decays_after(decays_at, first, end, C)

    k_vec = k_raw.to(tl.float32)
    q_vec = q_raw.to(tl.float32)
    q_norm = scale
    k_norm = 1.0
    if L2NORM:
        q_norm = scale * tl.rsqrt(tl.sum(q_vec * q_vec) + EPS)
        k_norm = tl.rsqrt(tl.sum(k_vec * k_vec) + EPS)
    kq = tl.sum(k_vec * q_vec) * k_norm * q_norm
    log_g = log_decay(x, A)
    decay = tl.exp(total + log_g)
    weights = tl.where(pending, tl.exp(after + log_g), 0.0)
    if TENSOR:
        columns = tl.arange(0, 8)[None, :]
        is_k = tl.arange(0, 8)[:, None] % 2 == 0
        both = tl.trans(tl.where(is_k, k_raw[None, :], q_raw[None, :]))  # [K, 8]: k, q, k, q, …
        weights_both = dot(ring, both, tl.zeros([C, 8], tl.float32)) * weights[:, None]
        weights_both = in_terms(weights_both, columns)
    else:
        ring_32 = ring.to(tl.float32)
        weights_k = weights * tl.sum(ring_32 * k_vec[None, :], axis=1)
        weights_q = weights * tl.sum(ring_32 * q_vec[None, :], axis=1)

    if end < C:
        if head % (HV // HK) == 0:
            tl.store(keys_at + end * K + ks, k_raw)
        tl.store(decays_at + end, log_g)
    for tile in tl.range(0, V // TILE, num_stages=STAGES):
        vs = tile * TILE + rows
        S = tl.load(state_at + state_offsets(vs, ks, K, V, True))
        v_vec = v_next.to(tl.float32)
        v_next = tl.load(v_at + vs + TILE, mask=vs + TILE < V, other=0.0)  # too small to be copied ahead
        if TENSOR:
            us = tl.load(u_at + js[None, :] * V + vs[:, None], mask=pending[None, :], other=0.0)
            both_S = decay * dot(S, both, tl.zeros([TILE, 8], tl.float32))
            both_S = dot(us, weights_both, tl.where(columns < 2, both_S, 0.0))
            Sk = tl.sum(tl.where(columns % 2 == 0, both_S, 0.0), axis=1)
            Sq = tl.sum(tl.where(columns % 2 == 1, both_S, 0.0), axis=1)
        else:
            us = tl.load(u_at + js[:, None] * V + vs[None, :], mask=pending[:, None], other=0.0).to(tl.float32)
            S = S.to(tl.float32)
            Sk = decay * tl.sum(S * k_vec[None, :], axis=1) + tl.sum(us * weights_k[:, None], axis=0)
            Sq = decay * tl.sum(S * q_vec[None, :], axis=1) + tl.sum(us * weights_q[:, None], axis=0)
        u = beta * (v_vec - k_norm * Sk)
        tl.store(out_at + vs, (q_norm * Sq + kq * u).to(out.dtype.element_ty))
        u *= k_norm
        if end < C:
            tl.store(u_at + end * V + vs, u.to(corrections.dtype.element_ty))
        else:
            if TENSOR:
                weighted = us.to(tl.float32) * weights[None, :]
            else:
                weighted = tl.trans(us * weights[:, None])
            PART: tl.constexpr = K // PARTS
            part = tl.arange(0, PART)
            part_at = state_at + state_offsets(vs, part, K, V, True)
            ring_at = keys_at + js[:, None] * K + part[None, :]
            S_next, k_next = tl.load(part_at), tl.load(k_at + part)
            ring_next = tl.load(ring_at, mask=pending[:, None], other=0.0)
            for n in tl.static_range(PARTS):
                S_part, k_part, ring_part = S_next, k_next, ring_next
                if n + 1 < PARTS:  # on its way while this part is computed
                    S_next, k_next = tl.load(part_at + (n + 1) * PART), tl.load(k_at + (n + 1) * PART + part)
                    ring_next = tl.load(ring_at + (n + 1) * PART, mask=pending[:, None], other=0.0)
                S_new = updated(S_part, decay, weighted, ring_part, u, k_part, TERMS)
                tl.store(part_at + n * PART, S_new.to(state.dtype.element_ty))


def replay_tiles(heads: int, tensor: bool, K: int, V: int, C: int) -> ReplayTiles:
    """Choose how to launch for B · HV heads, by times on an H200. tensor: as TENSOR of replay_kernel.

    Many heads: one warp for each, so that most run at once. Few: two warps, so that each is done sooner. A program that
    writes takes 32 columns at a time, 64 bytes of a row, the least piece of memory: with 64 columns it needs 250
    registers a thread in two warps. The limits let 6 programs of two warps or 16 of one share a multiprocessor; with a
    longer ring or head they would cost more.
    """
    if not tensor:
        return ReplayTiles(16, 3, 2)
    parts, limited = max(2, K // 32), K <= 128 and C <= 16
    if heads < 8192:
        return ReplayTiles(min(64, V & -V), 2, 2, parts, 168 if limited else None)
    return ReplayTiles(16, 2, 1, parts, 128) if limited else ReplayTiles(16, 3, 1, parts)


def decode_launch(call):
    """Return the launch function of decode for a call (base.Call)."""
    HK, HV, K, V = call.shape.dims
    overlap = can_overlap(call.device)
    tensor = call.state_dtype is call.key_dtype is torch.bfloat16
    split = terms(call.state_dtype, call.key_dtype)
    chosen = functools.cache(lambda rows, updates: replay_tiles(rows * HV, tensor, K, V, updates))

    def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
        rows, ring = q.shape[0], state.ring
        tiles = chosen(rows, ring.updates)
        replay_kernel[(HV * rows,)](
            *(q, k, v, a, b, A_log, dt_bias, state.data, indices),
            *(ring.keys, ring.corrections, ring.log_decays, ring.span, ring.arrivals, out),
            scale=scale,
            q_row=q.stride(0),
            q_head=q.stride(1),
            k_row=k.stride(0),
            k_head=k.stride(1),
            v_row=v.stride(0),
            v_head=v.stride(1),
            a_row=a.stride(0),
            b_row=b.stride(0),
            HK=HK,
            HV=HV,
            K=K,
            V=V,
            C=ring.updates,
            TILE=tiles.rows,
            STAGES=tiles.stages,
            PARTS=tiles.parts,
            GROUP=GROUP,
            TENSOR=tensor,
            TERMS=split,
            OVERLAP=overlap,
            L2NORM=use_qk_l2norm,
            num_warps=tiles.warps,
            maxnreg=tiles.registers,
            launch_pdl=overlap,
        )

    return launch
