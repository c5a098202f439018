"""The kernels of experts and projections in the interpreter. Run by test_triton_interpreter.py."""

import pytest
import torch
from experts_against_reference import assert_near, check_linear, check_steps, random_weights, tokens

from gdn_lab.layer import experts
from gdn_lab.layer.experts import Experts, experts_on

assert experts.kernels_interpreted(), "run under TRITON_INTERPRET=1"
both_precisions = pytest.mark.parametrize("precision", ["fp8", "bf16"])


@both_precisions
@pytest.mark.parametrize("inner, batch", [(32, 3), (64, 1), (128, 5), (256, 4), (384, 2)])
def test_widths_of_an_expert(inner, batch, precision):
    check_steps(random_weights(256, 4, inner, precision), 2, batch, steps=1)


@both_precisions
def test_a_sum_over_hidden_split_among_programs(precision):
    """A hidden size whose sum few programs split; every expert has no token, or one or two."""
    weights = random_weights(1024, 16, 128, precision)
    assert experts.experts_on(weights, 3, 1, fused=True, overlap=False).tiling[0].split > 1
    check_steps(weights, 3, 1)


@pytest.mark.parametrize("fused, precision", [(True, "fp8"), (False, "bf16")])
def test_one_expert_with_many_tokens(fused, precision):
    """One expert has more tokens than a product takes; most have none."""
    bias = torch.full((32,), -50.0)
    bias[[5, 9, 30]] = torch.tensor([100.0, 0.0, 0.0])
    weights = random_weights(128, 32, 64, precision)
    assert experts_on(weights, 2, 37, fused=fused, overlap=False).tiling[0].block_m == 16
    check_steps(weights, 2, 37, bias=bias, fused=fused)


def test_products_of_32_tokens():
    weights = random_weights(128, 4, 64, "fp8")
    assert experts_on(weights, 2, 19, fused=True, overlap=False).tiling[0].block_m == 32
    check_steps(weights, 2, 19)


@both_precisions
def test_fused_is_separate(precision):
    weights = random_weights(256, 8, 64, precision)
    fused, separate = (check_steps(weights, 2, 5, fused=fused, steps=1) for fused in (True, False))
    assert_near(fused, separate.double(), precision == "fp8")


def test_a_shared_expert_of_another_width():
    weights = random_weights(128, 8, 64, "fp8", shared_inner=128)
    assert not weights.can_fuse
    check_steps(weights, 2, 17, fused=False)
    with pytest.raises(ValueError, match="fused: the shared expert must be stored after"):
        Experts(weights, 2, 17, fused=True, overlap=False)


def test_float32_logits():
    check_steps(random_weights(128, 12, 32, "bf16"), 3, 6, logits_dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equal_logits(dtype):
    """Of equal logits the first experts are chosen; 0 and -0 are equal, and negative logits are ordered."""
    weights = random_weights(128, 8, 32, "bf16")
    run = experts_on(weights, 3, 4, fused=True, overlap=False)
    logits = torch.zeros(4, 8)
    logits[0, 0] = -0.0
    logits[1] = torch.tensor([-3.0, -1.0, -2.0, -1.0, -5.0, -1.5, -torch.inf, -9.0])
    logits[2, 7] = 1
    wide = torch.full((4, 11), 99.0, dtype=dtype)
    wide[:, :8] = logits
    run.route(wide[:, :8])
    assert run.ids.tolist() == [[0, 1, 2], [1, 3, 5], [7, 0, 1], [0, 1, 2]]
    chosen = logits.gather(1, run.ids.long())
    torch.testing.assert_close(run.weights, torch.softmax(chosen, 1))


def test_an_unfinished_step_does_not_change_the_next():
    weights = random_weights(128, 8, 32, "bf16")
    run = experts_on(weights, 2, 3, fused=True, overlap=False)
    x, logits, quantized = tokens(weights, 3, 0)
    run.route(logits)
    run.route(logits)
    run.combine(x, torch.empty_like(x))
    run.route(logits)
    run.routed(x, *quantized)
    out = run.combine(x, torch.empty_like(x))
    assert_near(out, experts.reference(x, weights, run.ids, run.weights), False)


@pytest.mark.parametrize(
    "m, n, k",
    [
        (1, 64, 128),
        (3, 192, 512),
        (17, 64, 1024),
        (33, 128, 256),
        (70, 100, 384),
        (5, 64, 200),
        (2, 70, 544),
        (3, 16, 1024),
    ],
)
@pytest.mark.parametrize("fp8", [True, False])
def test_linear(m, n, k, fp8):
    check_linear(m, n, k, fp8=fp8)
