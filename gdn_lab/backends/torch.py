"""`torch`: eager PyTorch on any device, a dozen small kernels a step. The default where there is no GPU.

PyTorch cannot update a slot in place by index in one operation: the state is gathered, updated in float32 and put back.
"""

import torch

from ..reference import NORM_EPS, SOFTPLUS_THRESHOLD
from .base import Backend, Variant

STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TorchBackend(Backend):
    name = "torch"
    distribution = "torch"
    variants = (
        Variant("vk", "VK", STATE_DTYPES, "eager PyTorch, K-last pool"),
        Variant("kv", "KV", STATE_DTYPES, "eager PyTorch, KV pool"),
    )

    def missing(self, device):
        return None

    def decode_launch(self, variant, call):
        return _decode_vk if variant.layout == "VK" else _decode_kv


def _decode_vk(q, k, v, a, b, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
    _decode(q, k, v, a, b, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, transpose=False)


def _decode_kv(q, k, v, a, b, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
    _decode(q, k, v, a, b, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, transpose=True)


def _decode(q, k, v, a, b, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, *, transpose):
    """state: the pool's [slots, HV, V, K] or, with transpose, [slots, HV, K, V]. Everything in float32."""
    live = (indices >= 0)[:, None, None]
    slots = indices.clamp(min=0).long()  # padding rows work on the null slot
    S = state.index_select(0, slots).float()  # [B, HV, V, K]
    S = S.transpose(-1, -2) if transpose else S
    q, k, v = q.float(), k.float(), v.float()
    if use_qk_l2norm:
        q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + NORM_EPS) for x in (q, k))
    group = v.shape[1] // q.shape[1]
    q, k = (q * scale).repeat_interleave(group, 1), k.repeat_interleave(group, 1)
    x = a.float() + dt_bias
    g = torch.exp(-torch.exp(A_log) * torch.nn.functional.softplus(x, threshold=SOFTPLUS_THRESHOLD))
    S = g[:, :, None, None] * S
    u = torch.sigmoid(b.float())[:, :, None] * (v - (S @ k[..., None])[..., 0])
    S = S + u[..., None] * k[:, :, None, :]
    out.copy_(torch.where(live, (S @ q[..., None])[..., 0], 0.0))
    state.index_copy_(0, slots, (S.transpose(-1, -2) if transpose else S).to(state.dtype))
