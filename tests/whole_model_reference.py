"""A whole model over a whole sequence in float64, token by token, without cache, batch or rounding."""

import torch

from gdn_lab import reference
from gdn_lab.engine.attention_reference import attention, rotary_table, rotated, split_heads
from gdn_lab.engine.model_sizes import THETA
from gdn_lab.layer import experts
from gdn_lab.layer.fp8 import dequantize
from gdn_lab.layer.layer_reference import causal_conv, gated_rms_norm, linear, rms_norm

DOUBLE = torch.float64


def logits(weights, tokens, ties: list | None = None) -> torch.Tensor:
    """Logits [T, vocab] after each of the tokens. weights: bf16, of one rank.

    ties: takes of each layer how far the logits of the last expert chosen and of the next one are apart.
    """
    ties = [] if ties is None else ties
    x = weights.embedding[tokens].to(DOUBLE)
    for layer, is_attention in zip(weights.layers, weights.sizes.is_attention, strict=True):
        normed = rms_norm(x, layer.layer.norm, DOUBLE)
        x = x + (_attention if is_attention else _gdn)(layer.layer, normed, weights.sizes)
        normed = rms_norm(x, layer.post_norm, DOUBLE)
        x = x + (
            _dense(layer.dense, normed) if layer.dense else _experts(layer.experts, normed, layer.sizes.top_k, ties)
        )
    return linear(rms_norm(x, weights.final_norm, DOUBLE), weights.head, DOUBLE)


def _gdn(w, x, sizes):
    shape = sizes.step.shape
    HK, HV, K, V = shape.dims
    qkvz = linear(x, w.in_qkvz, DOUBLE)
    b, a = (x @ w.in_ba.to(DOUBLE).T).chunk(2, -1)
    window = torch.zeros(1, shape.conv_dim, 3, dtype=DOUBLE)
    state, out = torch.zeros(1, HV, V, K, dtype=DOUBLE), []
    for t in range(len(x)):
        mixed, z = qkvz[[t]].split([shape.conv_dim, HV * V], -1)
        mixed, window = causal_conv(mixed, window, w.conv, DOUBLE)
        q, k, v = mixed.split([HK * K, HK * K, HV * V], -1)
        o, state = reference.decode(
            q.view(1, HK, K),
            k.view(1, HK, K),
            v.view(1, HV, V),
            a[[t]],
            b[[t]],
            A_log=w.A_log,
            dt_bias=w.dt_bias,
            state=state,
        )
        out.append(gated_rms_norm(o, z.view(1, HV, V), w.gated_norm, DOUBLE).flatten(1))
    return linear(torch.cat(out), w.out, DOUBLE)


def _attention(w, x, sizes):
    heads = sizes.attention.q_heads, sizes.attention.kv_heads, sizes.attention.head_dim
    q, gate, k, v = split_heads(linear(x, w.qkv, DOUBLE), heads)
    cos, sin = (part.to(DOUBLE) for part in rotary_table(len(x), sizes.attention.rotary, THETA))
    q, k = rotated(rms_norm(q, w.q_norm, DOUBLE), cos, sin), rotated(rms_norm(k, w.k_norm, DOUBLE), cos, sin)
    return linear(attention(q, k, v, gate, 0).flatten(1), w.out, DOUBLE)


def _dense(w, x):
    gate, up = linear(x, w.gate_up, DOUBLE).chunk(2, -1)
    return linear(torch.nn.functional.silu(gate) * up, w.down, DOUBLE)


def _experts(w, x, top_k, ties):
    routing = x @ w.router.to(DOUBLE).T
    ids, shares = experts.route_reference(routing, top_k)
    order = routing.sort(-1, descending=True).values
    ties.append((order[:, top_k - 1] - order[:, top_k]).min().item())

    def feed_forward(index, rows):
        w13, w2 = (dequantize(part, DOUBLE) for part in w.expert(index))
        gate, up = rows @ w13.mT
        return (torch.nn.functional.silu(gate) * up) @ w2.T

    out = torch.sigmoid(x @ w.shared_gate.to(DOUBLE))[:, None] * feed_forward(-1, x)
    for t in range(len(x)):
        for share, expert in zip(shares[t], ids[t].tolist(), strict=True):
            out[t] += share * feed_forward(expert, x[[t]])[0]
    return out
