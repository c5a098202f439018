"""Whether a step is right: every part's result against float64 PyTorch, computed from the inputs that the part had.

Part by part, so that an error is reported where it occurs, and so that a choice between two nearly equal experts does
not make the rest of the step look wrong.
"""

from typing import NamedTuple

import torch

from .. import reference
from ..tolerances import (
    ARITHMETIC,
    CORRECTIONS,
    E4M3,
    E4M3_SUBNORMAL,
    EXPERTS,
    EXPERTS_MEAN,
    PRODUCT,
    Check,
    allowed,
    fp8_step_allowed,
    worse,
)
from . import experts, layer_reference
from .fp8 import BLOCK, dequantize_rows, quantize_rows

ROWS_CHECKED = 32  # first and last rows of the batch: float64 is slow


class Difference(NamedTuple):
    """One result of one part: whether it is within tolerance, and the largest difference (None if not finite)."""

    part: str
    right: bool
    max_abs_error: float | None


def check(step) -> Check:
    """Run `step` once and check every part; step.wrong_parts then names the parts that are wrong.

    The Check has the largest error of all outputs except FP8 rows, which round by design, and that of the new state.
    """
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
    """Run `step` once; return a Difference for each result of each part, in order."""
    layer, pool, w = step.layer, step.pool, step.weights
    rows = _rows(step)
    slots = step.indices[rows]
    state, window = pool.read(slots), pool.conv[slots.long()].clone()
    folds = pool.folds(slots)
    step()
    double = torch.float64
    found = []

    def compare(part, actual, expected, arithmetic=ARITHMETIC, mean=None, more=0.0):
        """mean: limit of each row's mean error, relative to the largest element. more: allowed besides."""
        expected = expected.to(actual.device, double)
        error = (actual.to(double) - expected).abs()
        finite = bool(torch.isfinite(error).all())
        right = finite and bool((error <= allowed(expected, actual.dtype, arithmetic) + more).all())
        if mean is not None:
            right = right and bool((error.mean(1) <= mean * expected.abs().max()).all())
        found.append(Difference(part, right, error.max().item() if finite else None))

    def normed(part, x, residual, weight, residual_out, activation):
        total = x[rows].to(double) + residual[rows].to(double)
        compare(part, residual_out[rows], total)
        y = layer_reference.rms_norm(total, weight, double)
        compare(part, activation.y[rows], y)
        quantized(part, activation, y)

    def quantized(part, activation, exact):
        """FP8 rows against the float64 rows, or the bf16 rows where a kernel of its own quantises those."""
        if activation.y8 is None:
            return
        actual = dequantize_rows(activation.y8[rows], activation.scale[rows], double)
        exact = exact if step.kernels.fused else activation.y[rows].to(double)
        scale = quantize_rows(exact)[1].repeat_interleave(BLOCK, -1)[:, : exact.shape[1]].to(double)
        error = (actual - exact).abs()
        # the scale itself may differ in its last bits, and with it where an element is rounded
        most = (E4M3 + ARITHMETIC) * exact.abs() + E4M3_SUBNORMAL * scale + ARITHMETIC * exact.abs().max()
        found.append(Difference(f"{part} fp8", bool((error <= most).all()), error.max().item()))

    def product(part, actual, activation, weight):
        x = activation.y[rows]
        if weight.scale is not None:
            x = dequantize_rows(activation.y8[rows], activation.scale[rows], double)
        compare(part, actual[rows], layer_reference.linear(x, weight, double), PRODUCT)

    normed("input norm", layer.x, layer.residual, w.layer.norm, layer.residual_out, layer.normed)
    product("in_proj qkvz", layer.qkvz, layer.normed, w.layer.in_qkvz)
    ba = layer.normed.y[rows].to(double) @ w.layer.in_ba.to(double).T
    compare("in_proj ba", layer.ba[rows], ba, PRODUCT)
    compare("split", torch.cat((layer.mixed, layer.z), 1)[rows], layer.qkvz[rows].to(double), 0.0)
    compare("split", torch.cat((layer.b, layer.a), 1)[rows], layer.ba[rows].to(double), 0.0)
    convolved, new_window = layer_reference.causal_conv(layer.mixed[rows], window, w.layer.conv, double)
    compare("conv", layer.conv_out[rows], convolved)
    compare("conv window", pool.conv[slots.long()], new_window.to(double), 0.0)
    q, k, v = (x[rows] for x in layer.qkv())
    o, new_state = reference.decode(
        q, k, v, layer.a[rows], layer.b[rows], A_log=w.layer.A_log, dt_bias=w.layer.dt_bias, state=state
    )
    if pool.scales is None:
        compare("gdn", layer.o[rows], o)
        corrections = CORRECTIONS[pool.dtype] if pool.ring else 0.0
        compare("gdn state", pool.read(slots).to(pool.dtype), new_state, ARITHMETIC + corrections)
    else:
        of_read, of_state = fp8_step_allowed(state, new_state, folds)
        compare("gdn", layer.o[rows], o, more=2 * w.shape.scale * of_read)
        compare("gdn state", pool.read(slots), new_state, more=of_state)
    z = layer.z[rows].reshape(o.shape)
    gated = layer_reference.gated_rms_norm(layer.o[rows], z, w.layer.gated_norm, double).flatten(1)
    if not (step.kernels.fused and step.fp8):
        compare("gated norm", layer.gated.y[rows], gated)
    quantized("gated norm", layer.gated, gated)
    product("out_proj", layer.projected, layer.gated, w.layer.out)
    normed("post norm", layer.result, layer.residual_out, w.post_norm, step.residual_out, step.feed_forward.post)
    found += _dense(step, rows, compare, product, quantized) if w.dense else _experts(step, rows, compare)
    return found


def _experts(step, rows, compare) -> list[Difference]:
    """Check the choice of experts, their weights, and their combined output."""
    w, forward = step.weights.experts, step.feed_forward
    logits = forward.post.y[rows].double() @ w.router.double().T
    if step.weights.popularity is not None:
        logits += step.weights.popularity
    compare("router", forward.logits[rows], logits, PRODUCT)
    ids = forward.experts.ids[rows].long()
    chosen = forward.logits[rows].double().gather(1, ids)
    others = forward.logits[rows].double().scatter(1, ids, -torch.inf).max(1).values
    distinct = all(len(set(row)) == len(row) for row in ids.tolist())
    choice = Difference("router choice", distinct and bool((chosen.min(1).values >= others).all()), 0.0)
    compare("router weights", forward.experts.weights[rows], torch.softmax(chosen, -1))
    x = forward.post.y[rows]
    quantized = (forward.post.y8[rows], forward.post.scale[rows]) if step.fp8 else None
    expected = experts.reference(x, w, ids, forward.experts.weights[rows], quantized)
    compare("experts", step.out[rows], expected, EXPERTS, EXPERTS_MEAN)
    return [choice]


def _dense(step, rows, compare, product, quantized) -> list[Difference]:
    (gate_up, down), forward = step.weights.dense, step.feed_forward
    product("feed-forward", forward.gate_up, forward.post, gate_up)
    gate, up = forward.gate_up[rows].double().chunk(2, 1)
    hidden = torch.nn.functional.silu(gate) * up
    if not (step.kernels.fused and step.fp8):
        compare("feed-forward", forward.hidden.y[rows], hidden)
    quantized("feed-forward", forward.hidden, hidden)
    product("feed-forward", forward.out_padded, forward.hidden, down)
    return []


def _rows(step) -> torch.Tensor:
    """The rows to check: all, or the first and last ROWS_CHECKED / 2."""
    every = torch.arange(step.batch, device=step.device)
    half = ROWS_CHECKED // 2
    return every if step.batch <= ROWS_CHECKED else torch.cat((every[:half], every[-half:]))
