"""What the elementwise kernels of a layer compute, in PyTorch on any device: float32, or float64 as the reference.

The functions of the first half are pure. Those of the second half write into given buffers, take the arguments of the
launches in kernels/elementwise.py, and are what the eager configurations of a step run.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu

from ..reference import NORM_EPS
from .fp8 import Linear, dequantize, dequantize_rows, quantize_rows


def rms_norm(x: Tensor, weight: Tensor, dtype=torch.float32) -> Tensor:
    """x / sqrt(mean(x²) + 1e-6) · (1 + weight) over the last dimension; Qwen3-Next and Qwen3.5 store `weight` so."""
    x = x.to(dtype)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * (1 + weight.to(dtype))


def gated_rms_norm(o: Tensor, z: Tensor, weight: Tensor, dtype=torch.float32) -> Tensor:
    """o / sqrt(mean(o²) + 1e-6) · weight · SiLU(z): o, z [..., HV, V], weight [V]."""
    o = o.to(dtype)
    return o * torch.rsqrt(o.square().mean(-1, keepdim=True) + NORM_EPS) * weight.to(dtype) * silu(z.to(dtype))


def causal_conv(mixed: Tensor, window: Tensor, weight: Tensor, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Return SiLU of the depthwise convolution's newest output [B, conv_dim], and the updated window.

    mixed [B, conv_dim]; window [B, conv_dim, 3], the newest input last; weight [conv_dim, 4]. No bias.
    """
    inputs = torch.cat((window, mixed[..., None].to(window.dtype)), -1)
    return silu((inputs.to(dtype) * weight.to(dtype)).sum(-1)), inputs[..., 1:]


def linear(x: Tensor, weight: Linear, dtype=torch.float32) -> Tensor:
    """x Wᵀ, x [..., K] of any dtype."""
    return x.to(dtype) @ dequantize(weight, dtype).transpose(-1, -2)


# ---- in place, with the arguments of kernels/elementwise.py ----------------------------------------------------------


def add_norm(x, residual, weight, residual_out, y, y8=None, y_scale=None, *, overlap=False):
    total = x.float() + residual.float()
    residual_out.copy_(total)
    normed = rms_norm(total, weight)
    y.copy_(normed)
    if y8 is not None:
        quantize(normed, y8, y_scale)


def quantize(x, x8, x_scale, *, overlap=False):
    data, scale = quantize_rows(x)
    x8[: len(x)] = data
    x_scale[: len(x)] = scale


def split(qkvz, ba, mixed_qkv, z, b, a):
    rows = len(mixed_qkv)
    mixed_qkv.copy_(qkvz[:rows, : mixed_qkv.shape[1]])
    z.copy_(qkvz[:rows, mixed_qkv.shape[1] :])
    b.copy_(ba[:rows, : b.shape[1]])
    a.copy_(ba[:rows, b.shape[1] :])


def conv_update(mixed, window, weight, indices, out, *, overlap=False):
    slots = indices.clamp(min=0).long()
    live = (indices >= 0)[:, None]
    result, updated = causal_conv(mixed, window[slots], weight)
    out.copy_(torch.where(live, result, 0.0))
    window.index_copy_(0, slots, torch.where(live[..., None], updated, window[slots]))


def gated_norm(o, z, weight, y=None, y8=None, y_scale=None, *, overlap=False):
    normed = gated_rms_norm(o, z.view(o.shape) if z.is_contiguous() else z.reshape(o.shape), weight).flatten(1)
    if y8 is None:
        y.copy_(normed)
    else:
        quantize(normed, y8, y_scale)


def silu_mul(gate_up, y=None, y8=None, y_scale=None, *, overlap=False):
    gate, up = gate_up.float().chunk(2, dim=1)
    product = silu(gate) * up
    if y8 is None:
        y.copy_(product)
    else:
        quantize(product, y8, y_scale)


def conv_sequences(mixed, window, weight, indices, sequence, starts, out, drafts=None):
    slots = indices.long()
    live = sequence >= 0
    live &= slots[sequence.clamp(min=0).long()] >= 0
    row = sequence.clamp(min=0).long()
    at = torch.arange(len(mixed), device=mixed.device) - starts[row]  # of each token in its sequence
    total = torch.zeros(mixed.shape, device=mixed.device)
    for back in range(4):
        here = mixed.roll(back, 0)
        old = window[slots[row].clamp(min=0), :, (3 + at - back).clamp(0, 2).long()]
        total += torch.where((at >= back)[:, None], here, old).float() * weight[:, 3 - back].float()
    out.copy_(torch.where(live[:, None], silu(total), 0.0))
    if drafts is not None:
        drafts[row[live], :, at[live].long()] = mixed[live]
        return
    lengths = starts.diff()
    for i, slot in enumerate(slots.tolist()):
        if slot >= 0:
            first, length = int(starts[i]), int(lengths[i])
            inputs = torch.cat((window[slot], mixed[first : first + length].T), 1)
            window[slot] = inputs[:, -3:]


def project(x, x8, x_scale, out=None, *, weight):
    """x Wᵀ as bf16, of the bf16 rows x or, for an FP8 weight, of the rows that x8 and x_scale represent."""
    rows = x if weight.scale is None else dequantize_rows(x8, x_scale)
    y = linear(rows, weight).to(torch.bfloat16)
    return y if out is None else out.copy_(y)
