"""Prefill in Triton: packed sequences in chunks of 64 tokens, by two kernels, on the pool in place.

Within a chunk, with G_i the sum of log g up to token i, S the state before it and normalised q and k:

    A_ij = beta_i e^{G_i - G_j} (k_i . k_j), j < i        T = (I + A)^-1 diag(beta)
    P_ij = e^{G_i - G_j} (q_i . k_j), j <= i              M = P T        Q_i = e^{G_i} q_i - sum_j M_ij e^{G_j} k_j
    u = T r  with  r_i = v_i - e^{G_i} S k_i              o_i = S Q_i + sum_j M_ij v_j
    S = e^{G_C} S + sum_j e^{G_C - G_j} u_j k_j^T

(reference.prefill_chunked gives the same in float64.) T, M and Q need no state: chunk_kernel computes them for all
chunks at once. scan_kernel then walks each sequence's chunks with the state in registers. It holds everything with the
value dimension first, S [TILE, K] and r, u, o [TILE, 64]: the result of one product is the left operand of the next as
it lies in registers, and the right operands, k, Q, T and M, come from memory.

Rounding. Operands of the products have the inputs' dtype; sums and the state are float32. o could be had from u as
e^{G_i} S q_i + sum_j P_ij u_j. But where q is close to k, or keys to each other, and g is near 1, those terms are as
large as the state and cancel, so that rounding u, T and P to 16 bits loses o. In M and Q the difference has been taken
already, by products of two 16-bit terms each; what is rounded afterwards is no larger than what remains. In u the
rounding stays: it moves S by a few units in the last place of 16 bits, and the next chunk's o follows S.

Range. Only differences G_i - G_j <= 0 are exponentiated: strong decay underflows and never overflows. bf16 inputs enter
the products as they are, norms multiplied in afterwards. float16 has too little range for that: keys are multiplied by
a power of two that makes their norm nearly 1, rows of S and v by one that makes their largest element nearly 1.

Sequence n keeps its chunks in scratch from slot cu_seqlens[n] // 64 + n: far enough apart for every sequence, and
known without a sum over the sequences before it, so nothing waits for the GPU.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..base import MIN_LOG_DECAY, Call, capability, dtype_name, dtype_names, multiprocessors
from .device import EPS, log_decay, program_coords, sigmoid, state_offsets

CHUNK = 64
SEARCH = 128  # sequences looked through at a time
INTERPRETED = triton.knobs.runtime.interpret
MIN_LOG = tl.constexpr(MIN_LOG_DECAY)
# Rows of `factors` [slots, HV, 7, 64]; chunk_kernel alone reads the last three
STATE_TO_K, U_TO_STATE, STATE_TO_END, KEY_SIZE, LOG_DECAY, BETA, KEY_NORM = (tl.constexpr(i) for i in range(7))
FACTORS = tl.constexpr(7)


@triton.jit
def _power_of_two(x):
    """Return the largest power of two that is at most x, a positive float32."""
    return (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def _invert(A, C: tl.constexpr, OPERAND: tl.constexpr):
    """Return (I + A)^-1, float32, of a strictly lower triangular A [C, C] of type OPERAND, C = 64.

    With D the inverse of the diagonal blocks, N the blocks below them and X = D N, the inverse is (I + X)^-1 D. Four
    blocks a side make X^4 = 0, so (I + X)^-1 = (I + X^2) (I - X). Blocks of 1, then 4, then 16: powers of A itself
    would grow as binomial coefficients do and cancel; these stay near 1.
    """
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
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
def _times_inverse(P, A, inverse, OPERAND: tl.constexpr):
    """Return P (I + A)^-1, float32; P [C, C] float32; A, inverse [C, C] of type OPERAND.

    One step of refinement removes most of the error of `inverse` and of rounding P to float16.
    """
    product = tl.dot(P.to(OPERAND), inverse)
    if OPERAND == tl.float16:
        first = product.to(OPERAND)
        rest = P - first.to(tl.float32) - tl.dot(first, A)
        product = tl.dot(rest.to(OPERAND), inverse, first.to(tl.float32))
    return product


@triton.jit
def _find_chunk(cu_seqlens, sequences, chunk, C: tl.constexpr, SEARCH: tl.constexpr):
    """Return the sequence of a chunk slot, the slot's first token and the sequence's end; end <= first: no chunk."""
    # The last sequence that begins at or before this slot
    count = 0
    for n0 in range(0, sequences, SEARCH):
        n = n0 + tl.arange(0, SEARCH)
        begins = tl.load(cu_seqlens + n, mask=n < sequences, other=0).to(tl.int32) // C + n
        count += tl.sum(((begins <= chunk) & (n < sequences)).to(tl.int32))
    sequence = count - 1
    begin = tl.load(cu_seqlens + sequence, mask=sequence >= 0, other=0).to(tl.int32)
    end = tl.load(cu_seqlens + sequence + 1, mask=sequence >= 0, other=0).to(tl.int32)
    return sequence, begin + (chunk - begin // C - sequence) * C, end


@triton.jit
def chunk_kernel(
    q, k, a, b, A_log, dt_bias, indices, cu_seqlens, sequences, T, M, Q, factors,
    q_row, q_head, k_row, k_head, a_row, b_row,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, C: tl.constexpr, PART: tl.constexpr, SEARCH: tl.constexpr,
    OPERAND: tl.constexpr, L2NORM: tl.constexpr,
):  # fmt: skip
    """One program: one value head of one chunk slot. Grid: [HV · slots], heads fastest.

    *_row, *_head: strides in elements of a token and a head; the last dimension is contiguous everywhere.
    T, M [slots, HV, C, C] and Q [slots, HV, C, K] of q's dtype, zero outside the sequence; factors
    [slots, HV, FACTORS, C] float32. OPERAND: type of the operands of the products that make T and M.
    """
    head = tl.program_id(0) % HV
    chunk = tl.program_id(0) // HV
    key_head = head // (HV // HK)
    sequence, first, end = _find_chunk(cu_seqlens, sequences, chunk, C, SEARCH)
    if first >= end:
        return
    if tl.load(indices + sequence) < 0:
        return

    dtype = q.dtype.element_ty
    cs = tl.arange(0, C)
    inside = first + cs < end
    tokens = (first + cs).to(tl.int64)
    here = chunk.to(tl.int64) * HV + head
    k_rows = k + tokens[:, None] * k_row + key_head * k_head
    q_rows = q + tokens[:, None] * q_row + key_head * q_head
    ks = tl.arange(0, PART)
    # Over K a part at a time, and q after the inverse is found: both spare registers
    kk = tl.zeros([C, C], tl.float32)  # row i column j
    k_square = tl.zeros([C], tl.float32)
    for k0 in tl.range(0, K, PART, num_stages=1):
        k_tile = tl.load(k_rows + k0 + ks[None, :], mask=inside[:, None], other=0.0)  # [C, PART]
        k_square += tl.sum(k_tile.to(tl.float32) * k_tile.to(tl.float32), axis=1)
        kk = tl.dot(k_tile, tl.trans(k_tile), kk)
    k_norm = tl.full([C], 1.0, tl.float32)
    if L2NORM:
        k_norm = tl.rsqrt(k_square + EPS)
    key_size = tl.full([C], 1.0, tl.float32)  # what scan_kernel multiplies keys by
    if dtype == tl.float16:
        key_size = _power_of_two(k_norm)

    x = tl.load(a + tokens * a_row + head, mask=inside, other=0.0).to(tl.float32) + tl.load(dt_bias + head)
    b_log = tl.load(b + tokens * b_row + head, mask=inside, other=0.0).to(tl.float32)
    log_g = log_decay(x, tl.exp(tl.load(A_log + head)), COMPENSATED=True)
    log_g = tl.where(inside, tl.maximum(log_g, MIN_LOG), 0.0)
    beta = tl.where(inside, sigmoid(b_log), 0.0)
    G = tl.cumsum(log_g, axis=0)
    G_end = tl.sum(tl.where(cs == C - 1, G, 0.0))  # not the sum of log_g, which rounds otherwise than G does
    factor = factors + here * (FACTORS * C) + cs
    tl.store(factor + STATE_TO_K * C, tl.exp(G) * (k_norm / key_size))
    tl.store(factor + U_TO_STATE * C, tl.exp(G_end - G) * (k_norm / key_size))
    tl.store(factor + STATE_TO_END * C, tl.zeros([C], tl.float32) + tl.exp(G_end))
    tl.store(factor + KEY_SIZE * C, key_size)
    tl.store(factor + LOG_DECAY * C, G)
    tl.store(factor + BETA * C, beta)
    tl.store(factor + KEY_NORM * C, k_norm)

    square = cs[:, None] * C + cs[None, :]
    decay = tl.exp(tl.where(cs[:, None] > cs[None, :], G[:, None] - G[None, :], float("-inf")))
    A = (kk * (beta * k_norm)[:, None] * decay * k_norm[None, :]).to(OPERAND)
    inverse = _invert(A, C, OPERAND)
    tl.store(T + here * (C * C) + square, (inverse * beta[None, :]).to(dtype))

    # Read back, because registers that keep these over the inversion spill
    tl.debug_barrier()
    G = tl.load(factor + LOG_DECAY * C)
    beta = tl.load(factor + BETA * C)
    k_norm = tl.load(factor + KEY_NORM * C)
    qk = tl.zeros([C, C], tl.float32)
    q_square = tl.zeros([C], tl.float32)
    for k0 in tl.range(0, K, PART, num_stages=1):
        k_tile = tl.load(k_rows + k0 + ks[None, :], mask=inside[:, None], other=0.0)
        q_tile = tl.load(q_rows + k0 + ks[None, :], mask=inside[:, None], other=0.0)
        q_square += tl.sum(q_tile.to(tl.float32) * q_tile.to(tl.float32), axis=1)
        qk = tl.dot(q_tile, tl.trans(k_tile), qk)
    q_norm = tl.full([C], 1.0, tl.float32)
    if L2NORM:
        q_norm = tl.rsqrt(q_square + EPS)
    decay = tl.exp(tl.where(cs[:, None] >= cs[None, :], G[:, None] - G[None, :], float("-inf")))
    P = qk * q_norm[:, None] * decay * k_norm[None, :]
    M_tile = _times_inverse(P, A, inverse.to(OPERAND), OPERAND) * beta[None, :]
    tl.store(M + here * (C * C) + square, M_tile.to(dtype))

    # Q with two terms of M: e^G q and the sum may cancel
    M_tile *= tl.load(factor + STATE_TO_K * C)[None, :]
    high = M_tile.to(dtype)
    low = (M_tile - high.to(tl.float32)).to(dtype)
    for k0 in tl.range(0, K, PART, num_stages=1):
        k_tile = tl.load(k_rows + k0 + ks[None, :], mask=inside[:, None], other=0.0)
        q_tile = tl.load(q_rows + k0 + ks[None, :], mask=inside[:, None], other=0.0)
        if dtype == tl.float16:
            k_tile = (k_tile.to(tl.float32) * key_size[:, None]).to(dtype)
        Mk = tl.dot(low, k_tile, tl.dot(high, k_tile))
        Q_tile = q_tile.to(tl.float32) * (tl.exp(G) * q_norm)[:, None] - Mk
        tl.store(Q + here * (C * K) + cs[:, None] * K + k0 + ks[None, :], Q_tile.to(dtype))


@triton.jit
def scan_kernel(
    k, v, T, M, Q, factors, state, indices, cu_seqlens, out, scale,
    k_row, k_head, v_row, v_head,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    K_LAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: TILE rows of one head's state for one sequence. Grid: [V // TILE · HV · sequences], tiles fastest.

    state [slots, HV, V, K] with K_LAST, else [slots, HV, K, V]; slot offsets are 64-bit. STAGES - 1 chunks are loaded
    ahead of the one at hand.
    """
    tile, head, key_head, sequence = program_coords(HK, HV, V // TILE)
    begin = tl.load(cu_seqlens + sequence).to(tl.int32)
    end = tl.load(cu_seqlens + sequence + 1).to(tl.int32)
    if begin >= end:
        return
    dtype = k.dtype.element_ty
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
    state_at = state + (slot * HV + head) * (V * K) + state_offsets(vs, ks, K, V, K_LAST)
    S = tl.load(state_at).to(tl.float32)

    square = cs[:, None] * C + cs[None, :]
    first_chunk = begin // C + sequence
    for i in tl.range(0, (end - begin + C - 1) // C, num_stages=STAGES):
        rows = begin + i * C + cs
        inside = rows < end
        tokens = rows.to(tl.int64)
        here = (first_chunk + i) * HV + head
        factor = factors + here * (FACTORS * C) + cs
        k_at = k + tokens[:, None] * k_row + key_head * k_head + ks[None, :]
        k_tile = tl.load(k_at, mask=inside[:, None], other=0.0)  # [C, K]
        Q_tile = tl.load(Q + here * (C * K) + cs[:, None] * K + ks[None, :])
        v_tile = tl.load(v_head_at + tokens[None, :] * v_row, mask=inside[None, :], other=0.0)  # [TILE, C]
        T_tile = tl.load(T + here * (C * C) + square)  # [C, C], row i column j
        M_tile = tl.load(M + here * (C * C) + square)

        if dtype == tl.float16:  # a row of S, v and so of r and u in units that keep it in range
            k_tile = (k_tile.to(tl.float32) * tl.load(factor + KEY_SIZE * C)[:, None]).to(dtype)
            largest = tl.maximum(tl.max(tl.abs(S), axis=1), tl.max(tl.abs(v_tile.to(tl.float32)), axis=1))
            unit = _power_of_two(tl.maximum(largest, 1e-30))[:, None]
            S_operand = (S / unit).to(dtype)
            v_tile = (v_tile.to(tl.float32) / unit).to(dtype)
        else:
            S_operand = S.to(dtype)
        Sk = tl.dot(S_operand, tl.trans(k_tile))  # [TILE, C], as all that follow
        r = v_tile.to(tl.float32) - Sk * tl.load(factor + STATE_TO_K * C)[None, :]
        u = tl.dot(r.to(dtype), tl.trans(T_tile))
        o = tl.dot(v_tile, tl.trans(M_tile))
        o = tl.dot(S_operand, tl.trans(Q_tile), o) * scale
        u = (u * tl.load(factor + U_TO_STATE * C)[None, :]).to(dtype)
        S *= tl.load(factors + here * (FACTORS * C) + STATE_TO_END * C)
        if dtype == tl.float16:
            o *= unit
            S += tl.dot(u, k_tile) * unit
        else:
            S = tl.dot(u, k_tile, S)
        tl.store(out_head_at + tokens[None, :] * (HV * V), o.to(out.dtype.element_ty), mask=inside[None, :])
    tl.store(state_at, S.to(state.dtype.element_ty))


class Tuning(NamedTuple):
    """How the kernels are compiled.

    scan_kernel: rows of the state a program holds (tile), warps, chunks loaded ahead and the one at hand (stages), and
    the same where no multiprocessor gets two programs (stages_alone), whose shared memory one program may fill.
    chunk_kernel: its warps (chunk_warps), elements of a key or query loaded at a time (part).
    """

    tile: int
    warps: int
    stages: int
    stages_alone: int
    chunk_warps: int
    part: int


# By compute capability, each the first from which it holds. From 9.0 on a product of 64 rows is one instruction of four
# warps; before, and on 12.x, where it is not, smaller tiles keep to the registers.
TUNING = {
    80: Tuning(tile=32, warps=8, stages=2, stages_alone=2, chunk_warps=8, part=32),
    90: Tuning(tile=64, warps=4, stages=2, stages_alone=3, chunk_warps=4, part=64),
    100: Tuning(tile=128, warps=8, stages=2, stages_alone=2, chunk_warps=4, part=64),
    120: Tuning(tile=32, warps=8, stages=1, stages_alone=1, chunk_warps=8, part=32),
}


def tuning(capability: int, V: int, io_dtype: torch.dtype) -> Tuning:
    """Return the tuning for a compute capability, 90 for 9.0, and V, a multiple of 32, which the tile divides.

    float16 inputs take registers for the units of rows, so that no tile of theirs is larger than 64 and no third stage
    fits.
    """
    best = TUNING[max(known for known in TUNING if known <= max(capability, 80))]
    if io_dtype == torch.float16:
        best = best._replace(tile=min(best.tile, 64), stages_alone=best.stages)
    return best if V % best.tile == 0 else best._replace(tile=32, warps=8, stages=1, stages_alone=1)


def refusal(call: Call) -> str | None:
    """Return what the prefill kernels cannot serve and the decode kernels can, in one sentence, or None."""
    if call.shape.head_k_dim > 128:
        return f"takes head_k_dim up to 128 for prefill; this is {call.shape.head_k_dim}"
    wanted = (torch.float16, torch.float32) if INTERPRETED else (torch.bfloat16, torch.float16)
    if call.io_dtype not in wanted:
        where = "interpreted, for prefill" if INTERPRETED else "for prefill"
        return f"takes inputs of {dtype_names(wanted)} {where}; these are {dtype_name(call.io_dtype)}"
    return None


def prefill_launch(call: Call):
    """Return the launch for calls like this one."""
    HK, HV, K, V = call.shape.dims
    major, minor = capability(call.device) if call.device.type == "cuda" else (8, 0)
    tuned = tuning(10 * major + minor, V, call.io_dtype)
    available = multiprocessors(call.device)
    k_last = call.layout == "VK"

    def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, cu_seqlens, scale, use_qk_l2norm, out):
        sequences = len(indices)
        slots = len(q) // CHUNK + sequences
        T, M = torch.empty(2, slots, HV, CHUNK, CHUNK, dtype=q.dtype, device=q.device)
        Q = torch.empty(slots, HV, CHUNK, K, dtype=q.dtype, device=q.device)
        factors = torch.empty(slots, HV, FACTORS.value, CHUNK, dtype=torch.float32, device=q.device)
        # (I + A)^-1 of normalised keys has no element above 1: float16 is right for it; of others it may have
        operand = tl.float16 if use_qk_l2norm and not INTERPRETED else tl.float32
        scratch = dict(T=T, M=M, Q=Q, factors=factors)
        sizes = dict(HK=HK, HV=HV, K=K, C=CHUNK)
        chunk_kernel[(slots * HV,)](
            q=q,
            k=k,
            a=a,
            b=b,
            A_log=A_log,
            dt_bias=dt_bias,
            indices=indices,
            cu_seqlens=cu_seqlens,
            sequences=sequences,
            q_row=q.stride(0),
            q_head=q.stride(1),
            k_row=k.stride(0),
            k_head=k.stride(1),
            a_row=a.stride(0),
            b_row=b.stride(0),
            PART=min(K, tuned.part),
            SEARCH=SEARCH,
            OPERAND=operand,
            L2NORM=use_qk_l2norm,
            num_warps=tuned.chunk_warps,
            **scratch,
            **sizes,
        )
        programs = V // tuned.tile * HV * sequences
        scan_kernel[(programs,)](
            k=k,
            v=v,
            state=state.data,
            indices=indices,
            cu_seqlens=cu_seqlens,
            out=out,
            scale=scale,
            k_row=k.stride(0),
            k_head=k.stride(1),
            v_row=v.stride(0),
            v_head=v.stride(1),
            V=V,
            TILE=tuned.tile,
            K_LAST=k_last,
            STAGES=tuned.stages_alone if programs <= available else tuned.stages,
            num_warps=tuned.warps,
            **scratch,
            **sizes,
        )

    return launch
