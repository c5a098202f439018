"""Whether a step is right: every part's result against float64 PyTorch, on what the part was given.

Part by part, so that an error is seen where it is made, and a choice between two nearly equal experts does not turn the
rest of the step into a difference.
"""

from typing import NamedTuple

import torch

from .. import reference
from ..tolerances import ARITHMETIC, E4M3, E4M3_SUBNORMAL, EXPERTS, EXPERTS_MEAN, PRODUCT, Check, allowed, worse
from . import experts, layer_reference
from .fp8 import dequantize_rows, quantize_rows

ROWS_CHECKED = 32  # first and last rows of the batch: the oracle works in float64


class Difference(NamedTuple):
    """Of one part: near enough everywhere, and the largest difference (None where it is not finite)."""

    part: str
    right: bool
    max_abs_error: float | None


def check(step) -> Check:
    """Runs `step` once. right: every part's result is; step.wrong_parts names those that are not. The largest error of
    what parts put out, but for FP8 rows, which round by design; then that of the new state."""
    compared = differences(step)
    step.wrong_parts = [d.part for d in compared if not d.right]
    output = state = 0.0
    for d in compared:
        if d.part == "gdn state":
            state = worse(state, d.max_abs_error)
        elif not d.part.endswith("fp8"):
            output = worse(output, d.max_abs_error)
    return Check(not step.wrong_parts, output, state)


def differences(step) -> list[Difference]:
    """One for each result of each part, in order."""
    layer, pool, w = step.layer, step.pool, step.weights
    rows = _rows(step)
    slots = step.indices[rows]
    state, window = pool.read(slots), pool.conv[slots.long()].clone()
    step()
    double = torch.float64
    found = []

    def compare(part, actual, expected, arithmetic=ARITHMETIC, mean=None):
        """mean: relative to the largest element, of the errors of each row."""
        expected = expected.to(actual.device, double)
        error = (actual.to(double) - expected).abs()
        finite = bool(torch.isfinite(error).all())
        right = finite and bool((error <= allowed(expected, actual.dtype, arithmetic)).all())
        if mean is not None:
            right = right and bool((error.mean(1) <= mean * expected.abs().max()).all())
        found.append(Difference(part, right, error.max().item() if finite else None))

    def normed(part, x, residual, weight, residual_out, activation):
        total = x[rows].to(double) + residual[rows].to(double)
        compare(part, residual_out[rows], total)
        y = layer_reference.rms_norm(total, weight, double)
        compare(part, activation.y[rows], y)
        quantized(part, activation, y)

    def quantized(part, activation, of):
        """FP8 rows against what they were made of: exact but for rounding."""
        if activation.y8 is None:
            return
        actual = dequantize_rows(activation.y8[rows], activation.scale[rows], double)
        of = of if step.kernels.fused else activation.y[rows].to(double)
        scale = quantize_rows(of)[1].repeat_interleave(128, -1)[:, : of.shape[1]].to(double)
        error = (actual - of).abs()
        # the scale itself may differ in its last bits, and with it where an element is rounded
        most = (E4M3 + ARITHMETIC) * of.abs() + E4M3_SUBNORMAL * scale + ARITHMETIC * of.abs().max()
        found.append(Difference(f"{part} fp8", bool((error <= most).all()), error.max().item()))

    def product(part, actual, activation, weight):
        x = activation.y[rows] if weight.scale is None else dequantize_rows(
            activation.y8[rows], activation.scale[rows], double
        )  # fmt: skip
        compare(part, actual[rows], layer_reference.linear(x, weight, double), PRODUCT)

    normed("input norm", layer.x, layer.residual, w.layer.norm, layer.residual_out, layer.normed)
    product("in_proj qkvz", layer.qkvz, layer.normed, w.layer.in_qkvz)
    ba = layer.normed.y[rows].to(double) @ w.layer.in_ba.to(double).T
    compare("in_proj ba", layer.ba[rows], ba, PRODUCT)
    compare("split", torch.cat((layer.mixed, layer.z), 1)[rows], layer.qkvz[rows].to(double), 0.0)
    compare("split", torch.cat((layer.b, layer.a), 1)[rows], layer.ba[rows].to(double), 0.0)
    convolved, moved = layer_reference.causal_conv(layer.mixed[rows], window, w.layer.conv, double)
    compare("conv", layer.conv_out[rows], convolved)
    compare("conv window", pool.conv[slots.long()], moved.to(double), 0.0)
    q, k, v = (x[rows] for x in layer.qkv())
    o, new_state = reference.decode(
        q, k, v, layer.a[rows], layer.b[rows], A_log=w.layer.A_log, dt_bias=w.layer.dt_bias, state=state
    )
    compare("gdn", layer.o[rows], o)
    compare("gdn state", pool.read(slots).to(pool.dtype), new_state)
    z = layer.z[rows].reshape(o.shape)
    gated = layer_reference.gated_rms_norm(layer.o[rows], z, w.layer.gated_norm, double).flatten(1)
    if not (step.kernels.fused and step.fp8):
        compare("gated norm", layer.gated.y[rows], gated)
    quantized("gated norm", layer.gated, gated)
    product("out_proj", layer.projected, layer.gated, w.layer.out)
    normed("post norm", layer.result, layer.residual_out, w.post_norm, step.residual_out, step.post)
    found += _dense(step, rows, compare, product, quantized) if w.dense else _experts(step, rows, compare)
    return found


def _experts(step, rows, compare) -> list[Difference]:
    """Choice of experts, then what they make of it."""
    w = step.weights.experts
    logits = step.post.y[rows].double() @ w.router.double().T
    if step.weights.popularity is not None:
        logits += step.weights.popularity
    compare("router", step.logits[rows], logits, PRODUCT)
    ids = step.experts.ids[rows].long()
    of_ids = step.logits[rows].double().gather(1, ids)
    least = of_ids.min(1).values
    others = step.logits[rows].double().scatter(1, ids, -torch.inf).max(1).values
    distinct = all(len(set(row)) == len(row) for row in ids.tolist())
    best = Difference("router choice", distinct and bool((least >= others).all()), 0.0)
    compare("router weights", step.experts.weights[rows], torch.softmax(of_ids, -1))
    x = step.post.y[rows]
    quantized = (step.post.y8[rows], step.post.scale[rows]) if step.fp8 else None
    expected = experts.reference(x, w, ids, step.experts.weights[rows], quantized)
    compare("experts", step.out[rows], expected, EXPERTS, EXPERTS_MEAN)
    return [best]


def _dense(step, rows, compare, product, quantized) -> list[Difference]:
    gate_up, down = step.weights.dense
    product("feed-forward", step.gate_up, step.post, gate_up)
    gate, up = step.gate_up[rows].double().chunk(2, 1)
    hidden = torch.nn.functional.silu(gate) * up
    if not (step.kernels.fused and step.fp8):
        compare("feed-forward", step.hidden.y[rows], hidden)
    quantized("feed-forward", step.hidden, hidden)
    product("feed-forward", step.out_padded, step.hidden, down)
    return []


def _rows(step) -> torch.Tensor:
    """Numbers of the rows that are checked."""
    every = torch.arange(step.batch, device=step.device)
    half = ROWS_CHECKED // 2
    return every if step.batch <= ROWS_CHECKED else torch.cat((every[:half], every[-half:]))
