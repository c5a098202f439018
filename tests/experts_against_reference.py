"""One check for the experts' kernels, in the interpreter and on a GPU: whole steps against the reference."""

import torch
from tolerances import assert_close

from gdn_lab.layer.experts import ExpertWeights, experts_on, reference, route_reference
from gdn_lab.layer.fp8 import (
    BLOCK,
    E4M3,
    E4M3_MAX,
    SMALLEST_AMAX,
    Linear,
    blocks,
    dequantize,
    dequantize_rows,
    quantize_rows,
)
from gdn_lab.tolerances import EXPERTS, ROUNDING

BF16 = torch.bfloat16


def random_weights(hidden, experts, inner, precision, shared_inner=None, device="cpu"):
    generator = torch.Generator(device).manual_seed(7)
    return ExpertWeights.random(hidden, experts, inner, shared_inner or inner, precision, device, generator)


def check_steps(weights, top_k, batch, *, fused=True, overlap=False, bias=None, logits_dtype=BF16, steps=2):
    """Run steps of one Experts with different tokens and return the last result. bias [E]: added to the logits."""
    experts = experts_on(weights, top_k, batch, fused=fused, overlap=overlap)
    for seed in range(steps):
        x, logits, quantized = tokens(weights, batch, seed)
        logits = (logits if bias is None else logits + bias.to(logits.device)).to(logits_dtype)
        experts.route(logits)
        experts.routed(x, *quantized)
        experts.shared(x, *quantized)
        out = experts.combine(x, torch.full_like(x, torch.nan))

        ids, shares = route_reference(logits, top_k)
        assert torch.equal(experts.ids, ids)
        torch.testing.assert_close(experts.weights.double(), shares, rtol=1e-5, atol=1e-6)
        assert experts.experts_hit() == len(ids.unique())
        expected = reference(x, weights, ids, experts.weights, quantized if weights.fp8 else None)
        assert_near(out, expected, weights.fp8)
    return out


def tokens(weights, batch, seed):
    """x [B, H] bf16, router logits [B, E], and (x8, x_scale) with the token fastest, as the norm's kernel writes it."""
    device = weights.router.device
    x = torch.randn(batch, weights.router.shape[1], generator=torch.Generator().manual_seed(seed)).to(device, BF16)
    x8, scale = quantize_rows(x)
    return x, x.float() @ weights.router.float().T, (x8, scale.T.contiguous().T)


def assert_near(out, expected, fp8: bool):
    """h is rounded to bf16, and y of each expert again; FP8 adds EXPERTS at most, and little on average."""
    largest = expected.abs().max()
    allowed = 2 * ROUNDING[BF16] * largest + (EXPERTS * largest if fp8 else 0)
    error = (out.double() - expected).abs()
    assert (error <= allowed).all(), f"{error.max():.3g} of {largest:.3g}"  # NaN is not
    assert error.mean() <= ROUNDING[BF16] * largest / 2, f"{error.mean():.3g} on average, of {largest:.3g}"


def quantize_weight(w: torch.Tensor) -> Linear:
    """Quantise w [..., N, K] to e4m3 in 128 × 128 blocks; N and K need not be multiples of 128."""
    *lead, n, k = w.shape
    padded = torch.nn.functional.pad(w.float(), (0, -k % BLOCK, 0, -n % BLOCK))
    tiles = padded.view(*lead, blocks(n), BLOCK, blocks(k), BLOCK)
    scale = tiles.abs().amax((-3, -1)).clamp_min(SMALLEST_AMAX) / E4M3_MAX
    data = (tiles / scale[..., :, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)
    return Linear(data.view(padded.shape)[..., :n, :k].contiguous(), scale)


def check_linear(m, n, k, device="cpu", fp8=True, **options):
    """Run projections.linear twice with one scratch; scales have the token fastest, out is a view of a wider tensor."""
    from gdn_lab.layer.kernels.projections import Scratch, linear

    generator = torch.Generator().manual_seed(m)
    x, w = (torch.randn(rows, k, generator=generator).to(device) for rows in (m, n))
    (x8, x_scale), weight = quantize_rows(x), quantize_weight(w) if fp8 else Linear(w.to(BF16))
    x_scale = x_scale.T.contiguous().T
    rows = dequantize_rows(x8, x_scale, torch.float64) if fp8 else x.to(BF16).double()
    expected = rows @ dequantize(weight, torch.float64).T
    scratch = Scratch.of(m, weight)
    for _ in range(2):
        out = torch.full((m, n + 32), 7.0, dtype=BF16, device=device)
        linear(x8 if fp8 else x.to(BF16), x_scale, weight, out[:, :n], scratch=scratch, **options)
        # the tensor cores keep 13 bits of a sum of 32
        assert_close("out", out[:, :n], expected.cpu(), BF16, extra=2e-4 if fp8 else 0)
        assert (out[:, n:] == 7).all()
    assert scratch is None or not scratch.arrived.any()
