"""`torch`: eager PyTorch on any device, a dozen small kernels for each token or prefill chunk. "auto" without a GPU.

PyTorch cannot update a slot in place by index in one operation: the state is gathered, updated in float32 and put back.
"""

import functools

import torch

from ..reference import NORM_EPS, SOFTPLUS_THRESHOLD
from ..rounding import head_keys, random_bits, round_stochastically
from .base import MIN_LOG_DECAY, Backend, Variant

STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PHASES = ("decode", "verify", "prefill")
CHUNK = 64  # tokens of a prefill step


class TorchBackend(Backend):
    name = "torch"
    distribution = "torch"
    variants = (
        Variant(
            "vk",
            "VK",
            STATE_DTYPES,
            "eager PyTorch, K-last pool",
            PHASES,
            role="eager",
            order=70,
            colour="#000000",
            marker="X",
            host_sync=("prefill",),
            stochastic=("decode",),
            allocates=True,
        ),
        Variant(
            "kv",
            "KV",
            STATE_DTYPES,
            "eager PyTorch, KV pool",
            PHASES,
            role="eager",
            order=80,
            colour="#999999",
            marker="^",
            host_sync=("prefill",),
            stochastic=("decode",),
            allocates=True,
            vk_twin="torch/vk",
        ),
    )
    auto = {"decode": 99, "verify": 99, "prefill": 99}

    def missing(self, device):
        return None

    def decode_launch(self, variant, call):
        return functools.partial(_decode, variant.layout == "KV")

    def verify_launch(self, variant, call):
        return functools.partial(_verify, variant.layout == "KV")

    def prefill_launch(self, variant, call):
        return functools.partial(_prefill, variant.layout == "KV")


# Everything is computed in float32. `transpose`: the pool is KV; S is [B, HV, V, K] all the same.


def _decode(transpose, q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
    S, slots = _gather(transpose, state.data, indices)
    S, o = _step(S, *_factors(q, k, v, a, b, A_log, dt_bias, scale, use_qk_l2norm))
    out.copy_(_live(indices, o))
    if state.rounding is not None:
        S = _rounded(S, state.data.dtype, slots, *state.rounding)
    _scatter(transpose, state.data, slots, S)


def _rounded(S, dtype, slots, steps, seed):
    """Return S [B, HV, V, K] rounded stochastically, and count the step."""
    heads, rows, columns = S.shape[1:]
    counted = steps.index_select(0, slots)
    keys = head_keys(seed, counted[..., 0], slots, heads)
    steps.index_copy_(0, slots, counted + 1)
    return round_stochastically(S, dtype, random_bits(keys, rows, columns))


def _verify(transpose, q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, update_state):
    S, slots = _gather(transpose, state.data, indices)
    factors = _factors(q, k, v, a, b, A_log, dt_bias, scale, use_qk_l2norm)
    for t in range(q.shape[1]):
        S, o = _step(S, *(x[:, t] for x in factors))
        out[:, t] = _live(indices, o)
        if state.intermediate is not None:
            state.intermediate[:, t] = S.transpose(-1, -2) if transpose else S
    if update_state:
        _scatter(transpose, state.data, slots, S)


def _prefill(transpose, q, k, v, a, b, *, A_log, dt_bias, state, indices, cu_seqlens, scale, use_qk_l2norm, out):
    """One sequence after the other, CHUNK tokens at a time. Reads cu_seqlens and indices on the host: synchronises."""
    S, slots = _gather(transpose, state.data, indices)
    bounds = cu_seqlens.tolist()
    for n, slot in enumerate(indices.tolist()):
        tokens = slice(bounds[n], bounds[n + 1])
        if slot < 0:
            out[tokens] = 0.0
            continue
        q_n, k_n, v_n, _, beta = _factors(*(x[tokens] for x in (q, k, v, a, b)), A_log, dt_bias, scale, use_qk_l2norm)
        log_g = _log_decay(a[tokens], A_log, dt_bias).clamp(min=MIN_LOG_DECAY)
        for start in range(0, len(q_n), CHUNK):
            chunk = slice(start, start + CHUNK)
            o, S[n] = _chunk(S[n], *(x[chunk].transpose(0, 1) for x in (q_n, k_n, v_n)), log_g[chunk].T, beta[chunk].T)
            out[tokens][chunk] = o.transpose(0, 1)
    _scatter(transpose, state.data, slots, S)


def _chunk(S, q, k, v, log_g, beta):
    """Compute a chunk of one sequence, as reference.prefill_chunked does: return o [HV, C, V] and the new S [HV, V, K].

    q, k, v [HV, C, K or V]; log_g, beta [HV, C].
    """
    G = log_g.cumsum(1)
    difference = G[:, :, None] - G[:, None, :]  # <= 0 where i >= j
    decay = torch.exp(torch.where(difference.new_ones(difference.shape[1:]).tril().bool(), difference, -torch.inf))
    A = (beta[:, :, None] * decay * (k @ k.transpose(1, 2))).tril(-1)
    r = beta[:, :, None] * (v - torch.exp(G)[:, :, None] * (k @ S.transpose(1, 2)))
    u = torch.linalg.solve_triangular(A, r, upper=False, unitriangular=True)
    o = torch.exp(G)[:, :, None] * (q @ S.transpose(1, 2)) + (decay * (q @ k.transpose(1, 2))) @ u
    to_end = torch.exp(G[:, -1:] - G)[:, :, None]
    return o, torch.exp(G[:, -1])[:, None, None] * S + (to_end * u).transpose(1, 2) @ k


def _gather(transpose, state, indices):
    """Return the rows' states and slots; padding rows work on the null slot."""
    slots = indices.clamp(min=0).long()
    S = state.index_select(0, slots).float()
    return (S.transpose(-1, -2) if transpose else S), slots


def _scatter(transpose, state, slots, S):
    state.index_copy_(0, slots, (S.transpose(-1, -2) if transpose else S).to(state.dtype))


def _live(indices, o):
    """Return o [B, HV, V], zero in padding rows."""
    return torch.where((indices >= 0)[:, None, None], o, 0.0)


def _factors(q, k, v, a, b, A_log, dt_bias, scale, use_qk_l2norm):
    """Return q and k normalised, scaled, one head for each value head; v; g; beta. Any leading dimensions; float32."""
    q, k, v = q.float(), k.float(), v.float()
    if use_qk_l2norm:
        q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + NORM_EPS) for x in (q, k))
    group = v.shape[-2] // q.shape[-2]
    q, k = (q * scale).repeat_interleave(group, -2), k.repeat_interleave(group, -2)
    return q, k, v, torch.exp(_log_decay(a, A_log, dt_bias)), torch.sigmoid(b.float())


def _log_decay(a, A_log, dt_bias):
    return -torch.exp(A_log) * torch.nn.functional.softplus(a.float() + dt_bias, threshold=SOFTPLUS_THRESHOLD)


def _step(S, q, k, v, g, beta):
    """Take one token: return the new S [B, HV, V, K], and o [B, HV, V]."""
    S = g[:, :, None, None] * S
    u = beta[:, :, None] * (v - (S @ k[..., None])[..., 0])
    S = S + u[..., None] * k[:, :, None, :]
    return S, (S @ q[..., None])[..., 0]


BACKEND = TorchBackend()
