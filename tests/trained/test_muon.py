"""Muon: what it makes of a matrix's singular values, and that it minimises."""

import pytest
import torch

from gdn_lab.trained.muon import Muon, orthogonalised

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("shape", [(2, 48, 32), (2, 32, 48), (1, 32, 32)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(shape[0], n, n, generator=rng))[0] for n in shape[1:])
    least = min(shape[1:])
    values = torch.logspace(0, -2, least)
    y = orthogonalised(left[..., :least] @ torch.diag(values) @ right[..., :least].mT)
    inner = left[..., :least].mT @ y @ right[..., :least]
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    assert 0.5 < diagonal.min() and diagonal.max() < 1.3
    assert (inner - torch.diag_embed(diagonal)).abs().max() < 1e-4


def test_two_matrices_of_one_shape_come_to_their_own_targets():
    rng = torch.Generator().manual_seed(0)
    targets = [torch.randn(8, 16, generator=rng) for _ in range(2)]
    weights = [torch.zeros(8, 16, requires_grad=True) for _ in targets]
    rate = torch.tensor(0.02)
    optimizer = Muon(weights, lr=rate, faster=10.0, weight_decay=0.0)
    for step in range(100):
        rate.fill_(0.02 * (1 - step / 100))
        optimizer.zero_grad()
        sum((weight - target).square().sum() for weight, target in zip(weights, targets, strict=True)).backward()
        optimizer.param_groups[0]["lr"].fill_(rate)
        optimizer.step()
    for weight, target in zip(weights, targets, strict=True):
        assert (weight - target).norm() < 0.05 * target.norm()
