"""The gated delta rule in differentiable PyTorch, float32, 64 tokens at a time: what the small model is trained with.

reference.prefill_chunked has the equations. Here all chunks are prepared at once: with T = (I + A)^-1 of a chunk,

    u = T (beta v) - T (beta e^G k) S^T          so the state after a chunk is linear in the one before it:
    S' = M S + B      M = e^{G_C} I - K^T (T beta e^G k)      B = K^T (T beta v)      K = e^{G_C - G} k

(S here [K, V]), and the only loop is one matrix product for each chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import NORM_EPS

CHUNK = 64


class _InverseUnitLower(torch.autograd.Function):
    """(I + A)^-1 of strictly lower triangular A [..., C, C]. Its derivative needs products alone."""

    @staticmethod
    def forward(ctx, A):
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        inverse = torch.linalg.solve_triangular(A + eye, eye.expand_as(A), upper=False, unitriangular=True)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx, gradient):
        (inverse,) = ctx.saved_tensors
        transposed = inverse.transpose(-1, -2)
        return -(transposed @ gradient @ transposed).tril(-1)


def normalised(x: Tensor) -> Tensor:
    """x / sqrt(sum(x²) + 1e-6) over the last dimension."""
    n = x.shape[-1]
    return F.rms_norm(x, (n,), eps=NORM_EPS / n) * n**-0.5


def chunked_gdn(q, k, v, log_g, beta) -> Tensor:
    """Take whole sequences from states of zeros; return o [n, T, HV, V].

    q, k [n, T, HK, K], normalised, q scaled; v [n, T, HV, V]; log_g, beta [n, T, HV]; T a multiple of 64.
    """
    n, T, HV, V = v.shape
    if T % CHUNK:
        raise ValueError(f"T: expected a multiple of {CHUNK} tokens, got {T}")
    group = HV // q.shape[2]

    def chunks(x, repeat=1):  # [n, T, heads, ...] -> [n, HV, chunks, C, ...]
        x = x.reshape(n, T // CHUNK, CHUNK, *x.shape[2:]).movedim(3, 1)
        return x.repeat_interleave(repeat, 1)

    q, k, v, beta = chunks(q, group), chunks(k, group), chunks(v), chunks(beta)
    G = chunks(log_g).cumsum(-1)
    lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=v.device).tril()
    decay = torch.exp((G[..., :, None] - G[..., None, :]).masked_fill(~lower, float("-inf")))
    from_start, whole = torch.exp(G), torch.exp(G[..., -1])[..., None, None]
    A = (beta[..., None] * decay * (k @ k.transpose(-1, -2))).tril(-1)
    T_beta = _InverseUnitLower.apply(A) * beta[..., None, :]
    writes, reads = T_beta @ v, (T_beta * from_start[..., None, :]) @ k
    to_end = (decay[..., -1, :, None] * k).transpose(-1, -2)
    M = whole * torch.eye(k.shape[-1], dtype=k.dtype, device=k.device) - to_end @ reads
    B = to_end @ writes
    S = torch.zeros_like(B[:, :, 0])
    states = []  # before each chunk
    for M_chunk, B_chunk in zip(M.unbind(2), B.unbind(2), strict=True):
        states.append(S)
        S = B_chunk + M_chunk @ S
    S = torch.stack(states, 2)
    u = writes - reads @ S
    o = from_start[..., None] * (q @ S) + (decay * (q @ k.transpose(-1, -2))) @ u
    return o.movedim(1, 3).reshape(n, T, HV, V)
