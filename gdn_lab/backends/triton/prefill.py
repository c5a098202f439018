"""Prefill in Triton: packed sequences in chunks of 64 tokens, by two kernels, on the pool in place.

Within a chunk, with G_i the sum of log g up to token i, S the state before it and normalised q and k:

    A_ij = beta_i e^{G_i - G_j} (k_i . k_j), j < i        T = (I + A)^-1 diag(beta)
    P_ij = e^{G_i - G_j} (q_i . k_j), j <= i              r_i = v_i - e^{G_i} S k_i
    u = T r        o_i = e^{G_i} S q_i + sum_j P_ij u_j        S = e^{G_C} S + sum_j e^{G_C - G_j} u_j k_j^T

(reference.prefill_chunked is the same in float64.) T and P need no state: chunk_kernel makes them for all chunks at
once. scan_kernel then walks each sequence's chunks with the state in registers. It holds everything with the value
dimension first, S [TILE, K] and r, u, o [TILE, 64]: the result of one product is the left operand of the next as it
lies in registers, and the right operands, k, q, T and P, come from memory.

Only differences G_i - G_j <= 0 are exponentiated: strong decay underflows and never overflows. Operands of the matrix
products have q's dtype, sums and the state are float32; k and q enter unrounded, their norms multiplied in afterwards.

Sequence n keeps its chunks in scratch from slot cu_seqlens[n] // 64 + n: far enough apart for every sequence, and
known without a sum over the sequences before it, so nothing waits for the GPU.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...reference import NORM_EPS, SOFTPLUS_THRESHOLD
from ..base import MIN_LOG_DECAY, Call, capability, dtype_name, dtype_names

CHUNK = 64
SEARCH = 128  # sequences looked through at a time
INTERPRETED = triton.knobs.runtime.interpret
# Rows of `factors` [slots, HV, 4, 64]
STATE_TO_K, STATE_TO_Q, U_TO_STATE, STATE_TO_END = (tl.constexpr(i) for i in range(4))


@triton.jit
def _invert(A, C: tl.constexpr, OPERAND: tl.constexpr):
    """(I + A)^-1 of a strictly lower triangular A [C, C], C = 64, float32.

    With D the inverse of the diagonal blocks, N the blocks below them and X = D N, the inverse is (I + X)^-1 D. Four
    blocks a side make X^4 = 0, so (I + X)^-1 = (I + X^2) (I - X). Blocks of 1, then 4, then 16: powers of A itself
    would grow as binomial coefficients do and cancel; these stay near 1.
    """
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
    A = A.to(OPERAND)
    N = tl.where(i // 4 == j // 4, A, 0.0).to(OPERAND)
    Y = tl.where(i == j, 1.0, 0.0) - N.to(tl.float32)
    D = tl.dot(tl.dot(N, N).to(OPERAND), Y.to(OPERAND), Y)
    N = tl.where((i // 16 == j // 16) & (i // 4 != j // 4), A, 0.0).to(OPERAND)
    X = tl.dot(D.to(OPERAND), N).to(OPERAND)
    Y = D - tl.dot(X, D.to(OPERAND))
    D = tl.dot(tl.dot(X, X).to(OPERAND), Y.to(OPERAND), Y)
    N = tl.where(i // 16 != j // 16, A, 0.0).to(OPERAND)
    X = tl.dot(D.to(OPERAND), N).to(OPERAND)
    Y = D - tl.dot(X, D.to(OPERAND))
    return tl.dot(tl.dot(X, X).to(OPERAND), Y.to(OPERAND), Y)


@triton.jit
def chunk_kernel(
    q, k, a, b, A_log, dt_bias, indices, cu_seqlens, sequences, T, P, factors, scale,
    q_row, q_head, k_row, k_head, a_row, b_row,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, C: tl.constexpr, PART: tl.constexpr, SEARCH: tl.constexpr,
    OPERAND: tl.constexpr, L2NORM: tl.constexpr, EPS: tl.constexpr, SOFTPLUS_MAX: tl.constexpr, MIN_LOG: tl.constexpr,
):  # fmt: skip
    """One program: one value head of one chunk slot. Grid: [HV · slots], heads fastest.

    *_row, *_head: strides in elements of a token and a head; the last dimension is contiguous everywhere.
    T, P [slots, HV, C, C] of q's dtype, zero outside the sequence; factors [slots, HV, 4, C] float32.
    """
    head = tl.program_id(0) % HV
    chunk = tl.program_id(0) // HV
    key_head = head // (HV // HK)

    # The last sequence that begins at or before this slot
    count = 0
    for n0 in range(0, sequences, SEARCH):
        n = n0 + tl.arange(0, SEARCH)
        begins = tl.load(cu_seqlens + n, mask=n < sequences, other=0).to(tl.int32) // C + n
        count += tl.sum(((begins <= chunk) & (n < sequences)).to(tl.int32))
    sequence = count - 1
    if sequence < 0:
        return
    begin = tl.load(cu_seqlens + sequence).to(tl.int32)
    end = tl.load(cu_seqlens + sequence + 1).to(tl.int32)
    first = begin + (chunk - begin // C - sequence) * C
    if first >= end:
        return
    if tl.load(indices + sequence) < 0:
        return

    cs = tl.arange(0, C)
    inside = first + cs < end
    tokens = (first + cs).to(tl.int64)
    slot = chunk.to(tl.int64)
    at = slot * HV + head
    # Products and norms over K, a part at a time, which spares registers
    kk = tl.zeros([C, C], tl.float32)  # row i column j
    qk = tl.zeros([C, C], tl.float32)
    k_square = tl.zeros([C], tl.float32)
    q_square = tl.zeros([C], tl.float32)
    for k0 in tl.range(0, K, PART, num_stages=1):
        ks = k0 + tl.arange(0, PART)
        k_at = k + tokens[:, None] * k_row + key_head * k_head + ks[None, :]
        q_at = q + tokens[:, None] * q_row + key_head * q_head + ks[None, :]
        k_tile = tl.load(k_at, mask=inside[:, None], other=0.0)  # [C, PART]
        q_tile = tl.load(q_at, mask=inside[:, None], other=0.0)
        k_square += tl.sum(k_tile.to(tl.float32) * k_tile.to(tl.float32), axis=1)
        q_square += tl.sum(q_tile.to(tl.float32) * q_tile.to(tl.float32), axis=1)
        kk = tl.dot(k_tile, tl.trans(k_tile), kk)
        qk = tl.dot(q_tile, tl.trans(k_tile), qk)
    k_norm = tl.full([C], 1.0, tl.float32)
    q_norm = tl.full([C], 1.0, tl.float32) * scale
    if L2NORM:
        k_norm = tl.rsqrt(k_square + EPS)
        q_norm = tl.rsqrt(q_square + EPS) * scale
    x = tl.load(a + tokens * a_row + head, mask=inside, other=0.0).to(tl.float32) + tl.load(dt_bias + head)
    b_log = tl.load(b + tokens * b_row + head, mask=inside, other=0.0).to(tl.float32)
    A_rate = tl.exp(tl.load(A_log + head))

    # log(1 + e) with what 1 + e rounded off put back: over a long sequence near g = 1 it would add up
    e = tl.exp(tl.minimum(x, SOFTPLUS_MAX))
    softplus = tl.where(x > SOFTPLUS_MAX, x, tl.log(1.0 + e) + (e - ((1.0 + e) - 1.0)) / (1.0 + e))
    log_g = tl.where(inside, tl.maximum(-A_rate * softplus, MIN_LOG), 0.0)
    beta = tl.where(inside, 1.0 / (1.0 + tl.exp(-b_log)), 0.0)
    G = tl.cumsum(log_g, axis=0)
    G_end = tl.sum(tl.where(cs == C - 1, G, 0.0))  # not the sum of log_g, which rounds otherwise than G does
    factor = factors + at * (4 * C) + cs
    from_start = tl.exp(G)
    tl.store(factor + STATE_TO_K * C, from_start * k_norm)
    tl.store(factor + STATE_TO_Q * C, from_start * q_norm)
    tl.store(factor + U_TO_STATE * C, tl.exp(G_end - G) * k_norm)
    tl.store(factor + STATE_TO_END * C, tl.zeros([C], tl.float32) + tl.exp(G_end))

    square = cs[:, None] * C + cs[None, :]
    decay = tl.exp(tl.where(cs[:, None] >= cs[None, :], G[:, None] - G[None, :], float("-inf"))) * k_norm[None, :]
    tl.store(P + at * (C * C) + square, (qk * q_norm[:, None] * decay).to(P.dtype.element_ty))
    A = tl.where(cs[:, None] > cs[None, :], kk * (beta * k_norm)[:, None] * decay, 0.0)
    inverse = _invert(A, C, OPERAND)
    tl.store(T + at * (C * C) + square, (inverse * beta[None, :]).to(T.dtype.element_ty))


@triton.jit
def scan_kernel(
    q, k, v, T, P, factors, state, indices, cu_seqlens, out,
    q_row, q_head, k_row, k_head, v_row, v_head,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    K_LAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: TILE rows of one head's state for one sequence. Grid: [V // TILE · HV · sequences], tiles fastest.

    state [slots, HV, V, K] with K_LAST, else [slots, HV, K, V]; slot offsets are 64-bit. STAGES - 1 chunks are loaded
    ahead of the one at hand.
    """
    program = tl.program_id(0)
    TILES: tl.constexpr = V // TILE
    tile = program % TILES
    head = (program // TILES) % HV
    sequence = program // (TILES * HV)
    key_head = head // (HV // HK)

    begin = tl.load(cu_seqlens + sequence).to(tl.int32)
    end = tl.load(cu_seqlens + sequence + 1).to(tl.int32)
    if begin >= end:
        return
    cs = tl.arange(0, C)
    ks = tl.arange(0, K)
    vs = tile * TILE + tl.arange(0, TILE)
    v_head_at = v + head * v_head + vs[:, None]
    out_head_at = out + head * V + vs[:, None]
    slot = tl.load(indices + sequence).to(tl.int64)
    if slot < 0:
        for first in range(begin, end, C):
            tokens = (first + cs).to(tl.int64)
            zeros = tl.zeros([TILE, C], tl.float32).to(out.dtype.element_ty)
            tl.store(out_head_at + tokens[None, :] * (HV * V), zeros, mask=(first + cs < end)[None, :])
        return

    # S [TILE, K] in either memory order; for KV the tile is the transpose of what lies in memory
    head_state = state + (slot * HV + head) * (V * K)
    if K_LAST:
        state_at = head_state + vs[:, None] * K + ks[None, :]
    else:
        state_at = head_state + ks[None, :] * V + vs[:, None]
    S = tl.load(state_at).to(tl.float32)

    square = cs[:, None] * C + cs[None, :]
    operand = q.dtype.element_ty
    first_chunk = (begin // C + sequence).to(tl.int64)
    for i in tl.range(0, (end - begin + C - 1) // C, num_stages=STAGES):
        rows = begin + i * C + cs
        inside = rows < end
        tokens = rows.to(tl.int64)
        chunk = first_chunk + i
        k_at = k + tokens[:, None] * k_row + key_head * k_head + ks[None, :]
        q_at = q + tokens[:, None] * q_row + key_head * q_head + ks[None, :]
        k_tile = tl.load(k_at, mask=inside[:, None], other=0.0)  # [C, K]
        q_tile = tl.load(q_at, mask=inside[:, None], other=0.0)
        at = chunk * HV + head
        factor = factors + at * (4 * C) + cs
        v_tile = tl.load(v_head_at + tokens[None, :] * v_row, mask=inside[None, :], other=0.0)  # [TILE, C]
        T_tile = tl.load(T + at * (C * C) + square)  # [C, C], row i column j
        P_tile = tl.load(P + at * (C * C) + square)

        S_operand = S.to(operand)
        Sk = tl.dot(S_operand, tl.trans(k_tile))  # [TILE, C], as all that follow
        r = v_tile.to(tl.float32) - Sk * tl.load(factor + STATE_TO_K * C)[None, :]
        u = tl.dot(r.to(operand), tl.trans(T_tile))
        o = tl.dot(S_operand, tl.trans(q_tile)) * tl.load(factor + STATE_TO_Q * C)[None, :]
        o = tl.dot(u.to(operand), tl.trans(P_tile), o)
        tl.store(out_head_at + tokens[None, :] * (HV * V), o.to(out.dtype.element_ty), mask=inside[None, :])
        S *= tl.load(factors + at * (4 * C) + STATE_TO_END * C)
        S = tl.dot((u * tl.load(factor + U_TO_STATE * C)[None, :]).to(operand), k_tile, S)
    tl.store(state_at, S.to(state.dtype.element_ty))


class Tuning(NamedTuple):
    """How scan_kernel is compiled: rows of the state a program holds, warps, chunks loaded ahead."""

    tile: int
    warps: int
    stages: int


# By compute capability, each the first from which it holds. From 9.0 on a product of 64 rows is one instruction of four
# warps; before, and on 12.x, where it is not, smaller tiles keep to the registers.
TUNING = {80: Tuning(32, 8, 2), 90: Tuning(64, 4, 2), 100: Tuning(128, 8, 2), 120: Tuning(32, 8, 1)}
CHUNK_WARPS = 4


def tuning(capability: int, V: int) -> Tuning:
    """For compute capability 90 (9.0), say; V, a multiple of 32, is divided evenly."""
    best = TUNING[max(known for known in TUNING if known <= max(capability, 80))]
    return best if V % best.tile == 0 else Tuning(32, 8, 1)


def refusal(call: Call) -> str | None:
    """What the prefill kernels cannot serve and the decode kernels can: one sentence, or None."""
    if call.shape.head_k_dim > 128:
        return f"takes head_k_dim up to 128 for prefill; this is {call.shape.head_k_dim}"
    wanted = (torch.float32,) if INTERPRETED else (torch.bfloat16, torch.float16)
    if call.io_dtype not in wanted:
        where = "interpreted, for prefill" if INTERPRETED else "for prefill"
        return f"takes inputs of {dtype_names(wanted)} {where}; these are {dtype_name(call.io_dtype)}"
    return None


def prefill_launch(call: Call):
    """The launch for calls like this one."""
    HK, HV, K, V = call.shape.num_k_heads, call.shape.num_v_heads, call.shape.head_k_dim, call.shape.head_v_dim
    major, minor = capability(call.device) if call.device.type == "cuda" else (8, 0)
    tile, warps, stages = tuning(10 * major + minor, V)
    k_last = call.layout == "VK"

    def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, cu_seqlens, scale, use_qk_l2norm, out):
        sequences = len(indices)
        slots = len(q) // CHUNK + sequences
        T, P = torch.empty(2, slots, HV, CHUNK, CHUNK, dtype=q.dtype, device=q.device)
        factors = torch.empty(slots, HV, 4, CHUNK, dtype=torch.float32, device=q.device)
        # (I + A)^-1 of normalised keys has no element above 1: float16 is right for it; of others it may have
        operand = tl.float16 if use_qk_l2norm and not INTERPRETED else tl.float32
        q_row, q_head, _ = q.stride()
        k_row, k_head, _ = k.stride()
        v_row, v_head, _ = v.stride()
        chunk_kernel[(slots * HV,)](
            q, k, a, b, A_log, dt_bias, indices, cu_seqlens, sequences, T, P, factors, scale,
            q_row, q_head, k_row, k_head, a.stride(0), b.stride(0),
            HK, HV, K, CHUNK, min(K, 64), SEARCH, operand, use_qk_l2norm, NORM_EPS, SOFTPLUS_THRESHOLD, MIN_LOG_DECAY,
            num_warps=CHUNK_WARPS,
        )  # fmt: skip
        scan_kernel[(V // tile * HV * sequences,)](
            q, k, v, T, P, factors, state.data, indices, cu_seqlens, out, q_row, q_head, k_row, k_head, v_row, v_head,
            HK, HV, K, V, CHUNK, tile, k_last, stages, num_warps=warps,
        )  # fmt: skip

    return launch
