"""What the kernels of a full-attention layer compute, in PyTorch on any device: for toy sizes, and as the reference.

Sizes: HQ query heads, HKV key and value heads, D channels each; N rows. qkv [N, (2·HQ + 2·HKV)·D]: q, gate, k, v.
"""

import torch
from torch import Tensor

from ..layer.layer_reference import quantize, rms_norm
from .token_rows import TokenRows


def rotary_table(positions: int, channels: int, theta: float, device=None) -> tuple[Tensor, Tensor]:
    """Return cos and sin [positions, channels / 2] float32 of position · theta^(-2 i / channels), found in float64."""
    frequency = theta ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64), frequency)
    return angle.cos().float().to(device), angle.sin().float().to(device)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first channels of x [N, heads, D], i with i + rotary / 2, by cos and sin [N, rotary / 2]."""
    half = cos.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def split_heads(qkv: Tensor, heads: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split qkv [N, …] into q, gate [N, HQ, D] and k, v [N, HKV, D]; heads: (HQ, HKV, D)."""
    HQ, HKV, D = heads
    return qkv.unflatten(1, (-1, D)).split([HQ, HQ, HKV, HKV], dim=1)


def attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, first: int) -> Tensor:
    """softmax(q kᵀ / √D) v · sigmoid(gate), each query seeing the keys up to its own position.

    q, gate [T, HQ, D], of positions first to first + T - 1; k, v [L, HKV, D], L = first + T. Returns [T, HQ, D].
    """
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("thd,lhd->htl", q, k) * q.shape[-1] ** -0.5
    position = first + torch.arange(len(q), device=q.device)
    seen = torch.arange(len(k), device=q.device)[None] <= position[:, None]
    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)
    return torch.einsum("htl,lhd->thd", weights, v) * torch.sigmoid(gate)


# ---- in place, with the arguments of attention_kernels.py ------------------------------------------------------------


def store_qkv(qkv, q_norm, k_norm, table, rows: TokenRows, q, k_pages, v_pages):
    HQ, HKV, D = q.shape[1], k_pages.shape[2], q.shape[2]
    queries, _, keys, values = split_heads(qkv[: len(q)], (HQ, HKV, D))
    cos, sin = (x[rows.positions.long()] for x in table)
    q.copy_(rotated(rms_norm(queries, q_norm), cos, sin))
    keys = rotated(rms_norm(keys, k_norm), cos, sin)
    live = _live(rows)
    page_size = k_pages.shape[1]
    positions = rows.positions[live].long()
    pages = rows.page_table[rows.sequence[live].long(), positions // page_size].long()
    k_pages[pages, positions % page_size] = keys[live].to(k_pages)
    v_pages[pages, positions % page_size] = values[live].to(v_pages)


def attend(q, qkv, k_pages, v_pages, rows: TokenRows, y, y8=None, y_scale=None, *, take=None, max_length=None):
    HQ, D = q.shape[1:]
    gate = split_heads(qkv[: len(q)], (HQ, k_pages.shape[2], D))[1]
    found = torch.zeros(q.shape, device=q.device)
    starts = rows.starts.tolist()
    for n, slot in enumerate(rows.indices.tolist()):
        here = slice(starts[n], starts[n + 1])
        if slot < 0 or here.start == here.stop:
            continue
        first = int(rows.positions[here.start])
        length = first + here.stop - here.start
        pages = rows.page_table[n, : -(-length // k_pages.shape[1])].long()
        k, v = (x[pages].flatten(0, 1)[:length].float() for x in (k_pages, v_pages))
        found[here] = attention(q[here].float(), k, v, gate[here].float(), first)
    if y8 is None:
        y.copy_(found.flatten(1))
    else:
        quantize(found.flatten(1), y8, y_scale)


def _live(rows: TokenRows) -> Tensor:
    """Rows that are tokens of a live slot: bool [N]."""
    return (rows.sequence >= 0) & (rows.indices[rows.sequence.clamp(min=0).long()] >= 0)
