"""One tensor-parallel rank's share of a toy model's weights: whole heads, whole FP8 blocks."""

from dataclasses import replace

import torch

from ..layer.experts import ExpertWeights
from ..layer.fp8 import BLOCK, Linear
from ..layer.gdn_layer import LayerWeights
from ..layer.weights import DenseWeights, StepWeights
from .attention_layer import AttentionWeights
from .model_sizes import ModelSizes


def share(whole, sizes: ModelSizes, rank: int):
    """The ModelWeights of `rank`, of the sizes that sizes.tp ranks have, as slices of `whole`."""
    layers = tuple(_layer(layer, whole.sizes, sizes, rank) for layer in whole.layers)
    head = rows(whole.head, span(sizes.vocab_rank, rank))
    return replace(whole, sizes=sizes, rank=rank, layers=layers, head=head)


def span(size: int, rank: int, start: int = 0) -> slice:
    """The `rank`-th piece of `size`, counted from `start`."""
    return slice(start + rank * size, start + (rank + 1) * size)


def rows(weight: Linear, *spans: slice) -> Linear:
    """The rows of a weight [..., N, K] in these spans, which are whole blocks where it has scales."""
    data = torch.cat([weight.data[..., one, :] for one in spans], -2)
    if weight.scale is None:
        return Linear(data)
    blocks = [slice(one.start // BLOCK, -(-one.stop // BLOCK)) for one in spans]
    return Linear(data, torch.cat([weight.scale[..., one, :] for one in blocks], -2))


def columns(weight: Linear, one: slice) -> Linear:
    """The columns of a weight [..., N, K] in a span of whole blocks."""
    scale = weight.scale
    if scale is not None:
        scale = scale[..., one.start // BLOCK : -(-one.stop // BLOCK)].contiguous()
    return Linear(weight.data[..., one].contiguous(), scale)


def _layer(layer: StepWeights, whole: ModelSizes, sizes: ModelSizes, rank: int) -> StepWeights:
    if isinstance(layer.layer, AttentionWeights):
        mixer = _attention(layer.layer, whole, sizes, rank)
    else:
        mixer = _gdn(layer.layer, whole, sizes, rank)
    experts = layer.experts and _experts(layer.experts, sizes, rank)
    dense = layer.dense and _dense(layer.dense, whole, sizes, rank)
    return replace(layer, tp=sizes.tp, sizes=sizes.step, layer=mixer, experts=experts, dense=dense)


def _gdn(w: LayerWeights, whole: ModelSizes, sizes: ModelSizes, rank: int) -> LayerWeights:
    HK, HV, K, V = whole.step.shape.dims
    own_k, own_v = sizes.step.shape.num_k_heads, sizes.step.shape.num_v_heads
    starts = (0, HK * K, 2 * HK * K)  # of q, k, v among the channels; z comes after them
    channels = [span(own_k * K, rank, start) for start in starts[:2]] + [span(own_v * V, rank, starts[2])]
    z = span(own_v * V, rank, whole.step.shape.conv_dim)
    heads, values = span(own_v, rank), span(own_v * V, rank)
    return w._replace(
        in_qkvz=rows(w.in_qkvz, *channels, z),
        in_ba=rows(Linear(w.in_ba), heads, span(own_v, rank, HV)).data,
        conv=rows(Linear(w.conv), *channels).data,
        A_log=w.A_log[heads].clone(),
        dt_bias=w.dt_bias[heads].clone(),
        out=columns(w.out, values),
    )


def _attention(w: AttentionWeights, whole: ModelSizes, sizes: ModelSizes, rank: int) -> AttentionWeights:
    D, HQ, HKV = whole.attention.head_dim, whole.attention.q_heads, whole.attention.kv_heads
    own_q, own_kv = sizes.attention.q_heads * D, sizes.attention.kv_heads * D
    first = rank * HKV // sizes.tp * D  # ranks share a key head where there are fewer
    keys = [slice(start * D + first, start * D + first + own_kv) for start in (2 * HQ, 2 * HQ + HKV)]
    return w._replace(
        qkv=rows(w.qkv, span(own_q, rank), span(own_q, rank, HQ * D), *keys),
        out=columns(w.out, span(own_q, rank)),
    )


def _experts(w: ExpertWeights, sizes: ModelSizes, rank: int) -> ExpertWeights:
    """The shared expert stays right behind the others, in one tensor."""
    own = span(sizes.step.routed, rank)
    count = len(w.router)

    def joined(routed: Linear, shared: Linear) -> Linear:
        scale = None if routed.scale is None else torch.cat((routed.scale, shared.scale))
        return Linear(torch.cat((routed.data, shared.data)), scale)

    def parts(weight: Linear) -> tuple[Linear, Linear]:
        pieces = (slice(None, count), slice(count, None))
        return tuple(Linear(*(x if x is None else x[piece] for x in weight)) for piece in pieces)

    w13, shared_w13 = parts(rows(joined(w.w13, w.shared_w13), own))
    w2, shared_w2 = parts(columns(joined(w.w2, w.shared_w2), own))
    return w._replace(w13=w13, w2=w2, shared_w13=shared_w13, shared_w2=shared_w2)


def _dense(w: DenseWeights, whole: ModelSizes, sizes: ModelSizes, rank: int) -> DenseWeights:
    own = sizes.step.shared
    gate_up = rows(w.gate_up, span(own, rank), span(own, rank, whole.step.shared))
    return DenseWeights(gate_up=gate_up, down=columns(w.down, span(own, rank)))
