"""The small model as it is trained: plain differentiable PyTorch over whole documents, float32.

A layer: norm, GDN or attention, residual; norm, SwiGLU feed-forward, residual. GDN as Qwen3.5 has it: one projection of
q, k, v and the output gate z, one of b and a; a causal convolution of width 4 over q, k, v; gated norm; projection.
inference.py runs the same weights with this workbook's decode(), verify() and prefill().
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chunked import chunked_gdn, normalised
from .sizes import Sizes

EPS = 1e-6
CONV_WIDTH = 4
ROPE_BASE = 10_000.0


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / rms(x) * weight over the last dimension."""
    return F.rms_norm(x, (x.shape[-1],), weight, EPS)


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Apply rotary position embedding to x [..., T, heads, dim] at positions [..., T]."""
    half = x.shape[-1] // 2
    frequencies = ROPE_BASE ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions[..., None, None].float() * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


class GDN(nn.Module):
    """Weights of a GDN layer; forward takes x [n, T, hidden]."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.shape = shape = sizes.gdn
        HK, HV, K, V = shape.dims
        self.widths = [HK * K, HK * K, HV * V]
        self.in_proj_qkvz = nn.Linear(sizes.hidden, shape.conv_dim + HV * V, bias=False)
        self.in_proj_ba = nn.Linear(sizes.hidden, 2 * HV, bias=False)
        self.conv = nn.Parameter(torch.randn(shape.conv_dim, CONV_WIDTH) * CONV_WIDTH**-0.5)
        step = torch.exp(torch.empty(HV).uniform_(math.log(1e-3), math.log(5e-2)))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus(dt_bias) = step
        self.A_log = nn.Parameter(torch.empty(HV).uniform_(0.5, 4.0).log())
        self.norm = nn.Parameter(torch.ones(V))
        self.out_proj = nn.Linear(HV * V, sizes.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, T, _ = x.shape
        HK, HV, K, V = self.shape.dims
        mixed, z = self.in_proj_qkvz(x).split([self.shape.conv_dim, HV * V], -1)
        b, a = self.in_proj_ba(x).split(HV, -1)
        past = F.pad(mixed.transpose(1, 2), (CONV_WIDTH - 1, 0))
        mixed = F.silu(F.conv1d(past, self.conv[:, None], groups=len(self.conv))).transpose(1, 2)
        q, k, v = mixed.split(self.widths, -1)
        q, k, v = q.unflatten(-1, (HK, K)), k.unflatten(-1, (HK, K)), v.unflatten(-1, (HV, V))
        log_g = -self.A_log.exp() * F.softplus(a + self.dt_bias)
        o = chunked_gdn(normalised(q) * self.shape.scale, normalised(k), v, log_g, b.sigmoid())
        o = rms_norm(o, self.norm) * F.silu(z.view(n, T, HV, V))
        return self.out_proj(o.reshape(n, T, -1))


class Attention(nn.Module):
    """Weights of an attention layer over a window, with an output gate; forward takes x [n, T, hidden]."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.heads, self.kv_heads, self.dim, self.window = (
            sizes.attn_heads,
            sizes.attn_kv_heads,
            sizes.attn_dim,
            sizes.window,
        )
        self.widths = [self.heads * self.dim, self.kv_heads * self.dim, self.kv_heads * self.dim, self.heads * self.dim]
        self.in_proj = nn.Linear(sizes.hidden, sum(self.widths), bias=False)
        self.q_norm = nn.Parameter(torch.ones(self.dim))
        self.k_norm = nn.Parameter(torch.ones(self.dim))
        self.out_proj = nn.Linear(self.heads * self.dim, sizes.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, T, _ = x.shape
        q, k, v, gate = self.in_proj(x).split(self.widths, -1)
        q, k, v = (part.view(n, T, -1, self.dim) for part in (q, k, v))
        place = torch.arange(T, device=x.device)
        q, k = rotated(rms_norm(q, self.q_norm), place), rotated(rms_norm(k, self.k_norm), place)
        group = self.heads // self.kv_heads
        k, v = (part.repeat_interleave(group, 2).transpose(1, 2) for part in (k, v))
        back = place[:, None] - place
        o = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=(back >= 0) & (back < self.window))
        return self.out_proj(o.transpose(1, 2).reshape(n, T, -1) * gate.sigmoid())


class Layer(nn.Module):
    """One layer of the model, of either kind."""

    def __init__(self, sizes: Sizes, number: int):
        super().__init__()
        self.input_norm = nn.Parameter(torch.ones(sizes.hidden))
        self.mixer = Attention(sizes) if sizes.is_attention(number) else GDN(sizes)
        self.post_norm = nn.Parameter(torch.ones(sizes.hidden))
        self.up = nn.Linear(sizes.hidden, 2 * sizes.ffn, bias=False)
        self.down = nn.Linear(sizes.ffn, sizes.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(rms_norm(x, self.input_norm))
        gate, up = self.up(rms_norm(x, self.post_norm)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Network(nn.Module):
    """The model: forward takes tokens [n, T] and returns logits [n, T, vocab]."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Parameter(torch.randn(sizes.vocab, sizes.hidden) * sizes.hidden**-0.5)
        self.layers = nn.ModuleList(Layer(sizes, number) for number in range(sizes.layers))
        self.norm = nn.Parameter(torch.ones(sizes.hidden))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding[tokens] * self.sizes.hidden**0.5
        for layer in self.layers:
            x = layer(x)
        return rms_norm(x, self.norm) @ self.embedding.T
