"""The all-reduce kernels in Triton's interpreter: several ranks in one process, against sums in float64.

Run by test_triton_interpreter.py in a process of its own, under TRITON_INTERPRET=1.
"""

import pytest
import torch
from layer_interpreter_cases import BF16, LAST_PLACE, assert_close, assert_quantized, random

from gdn_lab.engine.all_reduce_launch import Norm, one_shot, two_shot
from gdn_lab.engine.emulated_ranks import emulated, everywhere
from gdn_lab.layer import layer_reference
from gdn_lab.layer.gdn_layer import Activation

KERNELS = [one_shot, two_shot]


def assert_emptied(peers):
    for rank in peers:
        assert (rank.scratch == -1).all(), "a scratch is left EMPTY for the call after the next"


def identical(tensors):
    return all(torch.equal(tensor.view(torch.int16), tensors[0].view(torch.int16)) for tensor in tensors)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_sums_of_calls_that_follow_each_other(kernel, ranks):
    """Of changing sizes, each twice on the same half of the scratch, with fewer rows than ranks and than programs."""
    hidden = 256
    peers = emulated(ranks, rows=5, hidden=hidden)
    for rank in peers:
        rank.counter.fill_(0x7FFE << 16)  # the number of calls wraps within this test
    for seed, rows in enumerate((5, 1, 4)):
        xs = random(ranks, rows, 2 * hidden, seed=seed)[..., :hidden]
        ys = torch.full((ranks, rows, hidden), torch.nan, dtype=BF16)
        everywhere(kernel, peers, xs, ys, [None] * ranks)
        assert identical(ys)
        error = (ys[0].double() - xs.double().sum(0)).abs()
        assert (error <= LAST_PLACE * xs.double().abs().sum(0) + 1e-6).all()
        assert_emptied(peers)
    assert all(rank.counter.item() == -0x7FFF << 16 for rank in peers)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("ranks, hidden, quantize", [(2, 256, False), (2, 384, True), (4, 384, True)])
def test_with_residual_and_norm(kernel, ranks, hidden, quantize):
    rows = 3
    xs = random(ranks, rows, hidden)
    residual, weight = random(rows, hidden, seed=1), random(hidden, seed=2)
    peers, made = emulated(ranks, rows, hidden), [Activation(rows, hidden, True) for _ in range(ranks)]
    outs = [torch.full((rows, hidden), torch.nan, dtype=BF16) for _ in range(ranks)]
    norms = [
        Norm(residual, weight, out, **(m.quantized() if quantize else {})) for out, m in zip(outs, made, strict=True)
    ]
    everywhere(kernel, peers, xs, [m.live for m in made], norms)
    assert identical(outs) and identical([m.live for m in made])
    total = xs.double().sum(0) + residual.double()
    largest = xs.double().abs().sum(0) + residual.double().abs()
    assert ((outs[0].double() - total).abs() <= LAST_PLACE * largest).all()
    # Two shots normalise the rounded total
    normed = layer_reference.rms_norm(outs[0].double() if kernel is two_shot else total, weight, torch.float64)
    assert_close(made[0].live, normed)
    for m in made if quantize else ():
        assert_quantized(m, rows, normed)
    assert_emptied(peers)


@pytest.mark.parametrize("kernel", KERNELS)
def test_in_place_with_huge_and_cancelling_terms_and_every_nan(kernel):
    """The bits that mean EMPTY are a NaN in x: the sum is NaN there, and nothing waits for ever."""
    xs = torch.full((2, 2, 128), 3e38).to(BF16)
    xs[1].neg_()
    xs[0, 0, :3] = torch.tensor([1.0, torch.inf, torch.nan])
    xs[1, 1, :2].view(torch.int16).fill_(-1)
    expected = (xs[0].float() + xs[1].float()).to(BF16)
    peers = emulated(2, 2, 128)
    everywhere(kernel, peers, xs, xs, [None, None])
    for x in xs:
        torch.testing.assert_close(x, expected, rtol=0, atol=0, equal_nan=True)
    assert_emptied(peers)
