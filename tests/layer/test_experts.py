"""Experts without a GPU: FP8's rounding, routing, the PyTorch path, the kernels as compiled."""

import pytest
import torch
from experts_against_reference import check_steps, quantize_weight, random_weights
from hypothesis import given
from hypothesis import strategies as st

from gdn_lab.layer import experts, fp8
from gdn_lab.layer.experts import ExpertWeights, TorchExperts, experts_on, route_reference
from gdn_lab.layer.experts_tilings import tilings
from gdn_lab.models import MODELS, divisions

sizes = st.integers(1, 300)
seeds = st.integers(0, 2**16)
magnitudes = st.sampled_from([1e-6, 1e-2, 1.0, 300.0, 1e6])


def random(*shape, seed, magnitude=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * magnitude


def assert_rounded(found, x, scale):
    """Half a unit in e4m3's last place: 2^-4 of the element, 2^-10 of the scale for the smallest."""
    allowed = x.abs() * (2.0**-4 + 1e-6) + scale * 2.0**-10
    assert ((found - x).abs() <= allowed).all()


@given(rows=st.integers(0, 5), columns=sizes, seed=seeds, magnitude=magnitudes)
def test_rows_come_back_rounded(rows, columns, seed, magnitude):
    x = random(rows, columns, seed=seed, magnitude=magnitude)
    x8, scale = fp8.quantize_rows(x)
    assert x8.shape == x.shape and x8.dtype == torch.float8_e4m3fn and scale.shape == (rows, fp8.blocks(columns))
    assert_rounded(fp8.dequantize_rows(x8, scale), x, scale.repeat_interleave(128, 1)[:, :columns])
    # The largest of each group is e4m3's largest number
    groups = torch.nn.functional.pad(x8.float().abs(), (0, -columns % 128)).unflatten(1, (-1, 128))
    assert (groups.amax(-1) == 448).all()


@given(n=sizes, k=sizes, seed=seeds, magnitude=magnitudes)
def test_weights_come_back_rounded(n, k, seed, magnitude):
    w = random(2, n, k, seed=seed, magnitude=magnitude)
    linear = quantize_weight(w)
    assert linear.data.is_contiguous() and linear.scale.shape == (2, fp8.blocks(n), fp8.blocks(k))
    scale = linear.scale.repeat_interleave(128, 1).repeat_interleave(128, 2)[:, :n, :k]
    assert_rounded(fp8.dequantize(linear), w, scale)


@given(seed=seeds, power=st.integers(-20, 20))
def test_a_power_of_two_moves_scales_only(seed, power):
    x = random(3, 200, seed=seed)
    (a, a_scale), (b, b_scale) = fp8.quantize_rows(x), fp8.quantize_rows(x * 2.0**power)
    assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)) and torch.equal(a_scale * 2.0**power, b_scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_e4m3_number_is_widened_as_pytorch_casts_it(dtype):
    data = torch.arange(256, dtype=torch.uint8).view(fp8.E4M3).view(16, 16).T  # not contiguous
    torch.testing.assert_close(fp8.widened(data, dtype), data.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_zeros_stay_zeros():
    x8, scale = fp8.quantize_rows(torch.zeros(2, 130))
    assert not x8.float().any() and (scale > 0).all() and scale.isfinite().all()


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_random_weights_are_finite_and_keep_sizes(precision):
    linear = fp8.random_weight(3, 200, 512, precision=precision, generator=torch.Generator().manual_seed(0))
    w = fp8.dequantize(linear)
    assert w.isfinite().all() and abs(w.std().item() * 512**0.5 - 1) < 0.05
    with pytest.raises(ValueError, match="precision: expected 'fp8' or 'bf16', got 'fp4'"):
        fp8.random_weight(1, 1, precision="fp4")


@given(seed=seeds, top_k=st.integers(1, 8))
def test_shares_add_up_to_one(seed, top_k):
    logits = random(4, 8, seed=seed, magnitude=3)
    ids, shares = route_reference(logits, top_k)
    torch.testing.assert_close(shares.sum(-1), torch.ones(4, dtype=torch.float64))
    whole = torch.softmax(logits.double(), -1).gather(1, ids.long())
    torch.testing.assert_close(shares, whole / whole.sum(-1, keepdim=True))
    assert (shares.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
@pytest.mark.parametrize("fused", [True, False])
def test_in_pytorch(precision, fused):
    weights = random_weights(256, 8, 64, precision)
    if not experts.kernels_interpreted():
        assert isinstance(experts_on(weights, 2, 5, fused=fused, overlap=False), TorchExperts)
    check_steps(weights, 2, 5, fused=fused)


def test_the_reference_by_hand():
    """One token, two experts and the shared one, multiplied out."""
    weights = random_weights(128, 4, 32, "bf16")
    x = random(1, 128, seed=3).bfloat16()
    ids, shares = torch.tensor([[2, 0]], dtype=torch.int32), torch.tensor([[0.75, 0.25]])
    wide = x[0].double()

    def expert(w13, w2):
        gate, up = (w13[i].double() @ wide for i in range(2))
        return w2.double() @ (gate * torch.sigmoid(gate) * up).bfloat16().double()

    expected = torch.sigmoid(wide @ weights.shared_gate.double())
    expected = expected * expert(weights.shared_w13.data[0], weights.shared_w2.data[0])
    for index, share in ((2, 0.75), (0, 0.25)):
        expected += share * expert(weights.w13.data[index], weights.w2.data[index])
    torch.testing.assert_close(experts.reference(x, weights, ids, shares)[0], expected)


def test_the_shared_expert_is_stored_after_the_others():
    weights = random_weights(256, 4, 64, "fp8")
    assert weights.can_fuse and weights.w13.data.shape == (4, 2, 64, 256)
    apart = weights._replace(shared_w2=fp8.Linear(*(t.clone() for t in weights.shared_w2)))
    assert not apart.can_fuse
    for inner, shared in ((64, 64), (64, 128)):  # without reading addresses, which meta tensors lack
        on_meta = ExpertWeights.random(256, 4, inner, shared, "fp8", device="meta")
        assert on_meta.can_fuse == (inner == shared)
    assert isinstance(weights, ExpertWeights)


def test_tilings_cover_every_model():
    for entry in (entry for entry in MODELS.values() if entry.experts):
        for tp in divisions(next(name for name, other in MODELS.items() if other is entry)):
            for batch in (1, 3, 16, 100, 512):
                tokens, inner = batch * entry.top_k, entry.moe_intermediate // tp
                for is_fp8 in (True, False):
                    slots = min(entry.experts, tokens)
                    up, down = tilings(slots, tokens / entry.experts, entry.hidden, inner, is_fp8)
                    assert inner % up.tile == 0 and inner % down.block_k == 0 and entry.hidden % down.tile == 0
                    assert entry.hidden % (up.block_k * up.sub * up.split) == 0
                    assert down.tiles == 1 or down.block_k == inner
    with pytest.raises(ValueError, match="inner: an expert's intermediate size must be 32, 64 or a multiple of 128"):
        tilings(8, 1.0, 256, 96, True)
    with pytest.raises(ValueError, match="hidden: expected a multiple of 128, got 192"):
        tilings(8, 1.0, 192, 128, True)
