"""The differentiable chunked form against the float64 reference."""

import pytest
import torch

from gdn_lab import reference
from gdn_lab.trained.chunked import _InverseUnitLower, chunked_gdn, normalised

HK, HV, K, V = 1, 2, 32, 64


@pytest.mark.parametrize("parallel", [False, True], ids=["random keys", "nearly parallel keys"])
def test_the_chunked_form_is_the_reference(parallel):
    rng = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 128, HK, K, generator=rng) for _ in "qk")
    if parallel:
        k = 1.0 + 0.05 * k
    v = torch.randn(2, 128, HV, V, generator=rng)
    a, b = (torch.randn(2, 128, HV, generator=rng) for _ in "ab")
    A_log, dt_bias = torch.tensor([0.5, -3.0]), torch.tensor([1.0, -4.0])
    log_g = -A_log.exp() * torch.nn.functional.softplus(a + dt_bias)
    o = chunked_gdn(normalised(q) * K**-0.5, normalised(k), v, log_g, b.sigmoid())
    state = torch.zeros(2, HV, V, K)
    expected, _ = reference.verify(q, k, v, a, b, A_log=A_log, dt_bias=dt_bias, state=state)
    assert (o - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_the_derivative_of_the_inverse():
    A = torch.randn(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda A: _InverseUnitLower.apply(A.tril(-1)), A)


def test_other_lengths_are_refused():
    x = torch.zeros(1, 65, 1, 32)
    with pytest.raises(ValueError, match="T: expected a multiple of 64 tokens, got 65"):
        chunked_gdn(x, x, x, x[..., 0], x[..., 0])
