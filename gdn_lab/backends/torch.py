"""`torch`: eager PyTorch on any device, a dozen small kernels a token. The default where there is no GPU.

PyTorch cannot update a slot in place by index in one operation: the state is gathered, updated in float32 and put back.
"""

import functools

import torch

from ..reference import NORM_EPS, SOFTPLUS_THRESHOLD
from .base import Backend, Variant

STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PHASES = ("decode", "verify")


class TorchBackend(Backend):
    name = "torch"
    distribution = "torch"
    variants = (
        Variant("vk", "VK", STATE_DTYPES, "eager PyTorch, K-last pool", PHASES),
        Variant("kv", "KV", STATE_DTYPES, "eager PyTorch, KV pool", PHASES),
    )

    def missing(self, device):
        return None

    def decode_launch(self, variant, call):
        return functools.partial(_decode, variant.layout == "KV")

    def verify_launch(self, variant, call):
        return functools.partial(_verify, variant.layout == "KV")


# Everything is computed in float32. `transpose`: the pool is KV; S is [B, HV, V, K] all the same.


def _decode(transpose, q, k, v, a, b, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
    S, slots = _gather(transpose, state, indices)
    S, o = _step(S, *_factors(q, k, v, a, b, A_log, dt_bias, scale, use_qk_l2norm))
    out.copy_(_live(indices, o))
    _scatter(transpose, state, slots, S)


def _verify(
    transpose, q, k, v, a, b, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, intermediate_states,
    update_state,
):  # fmt: skip
    S, slots = _gather(transpose, state, indices)
    factors = _factors(q, k, v, a, b, A_log, dt_bias, scale, use_qk_l2norm)
    for t in range(q.shape[1]):
        S, o = _step(S, *(x[:, t] for x in factors))
        out[:, t] = _live(indices, o)
        if intermediate_states is not None:
            intermediate_states[:, t] = S.transpose(-1, -2) if transpose else S
    if update_state:
        _scatter(transpose, state, slots, S)


def _gather(transpose, state, indices):
    """The rows' states and slots; padding rows work on the null slot."""
    slots = indices.clamp(min=0).long()
    S = state.index_select(0, slots).float()
    return (S.transpose(-1, -2) if transpose else S), slots


def _scatter(transpose, state, slots, S):
    state.index_copy_(0, slots, (S.transpose(-1, -2) if transpose else S).to(state.dtype))


def _live(indices, o):
    """o [B, HV, V], zero in padding rows."""
    return torch.where((indices >= 0)[:, None, None], o, 0.0)


def _factors(q, k, v, a, b, A_log, dt_bias, scale, use_qk_l2norm):
    """q and k normalised, scaled, one head for each value head; v; g; beta. Any leading dimensions; float32."""
    q, k, v = q.float(), k.float(), v.float()
    if use_qk_l2norm:
        q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + NORM_EPS) for x in (q, k))
    group = v.shape[-2] // q.shape[-2]
    q, k = (q * scale).repeat_interleave(group, -2), k.repeat_interleave(group, -2)
    x = a.float() + dt_bias
    g = torch.exp(-torch.exp(A_log) * torch.nn.functional.softplus(x, threshold=SOFTPLUS_THRESHOLD))
    return q, k, v, g, torch.sigmoid(b.float())


def _step(S, q, k, v, g, beta):
    """One token: the new S [B, HV, V, K], and o [B, HV, V]."""
    S = g[:, :, None, None] * S
    u = beta[:, :, None] * (v - (S @ k[..., None])[..., 0])
    S = S + u[..., None] * k[:, :, None, :]
    return S, (S @ q[..., None])[..., 0]
