"""Gates and keys as trained: shapes and dtypes, and that they are what decode() is given."""

import pytest
import torch
from small_network import SIZES, network_and_model

from gdn_lab.trained.as_trained import as_trained, half_lives


@pytest.fixture
def checkpoint(tmp_path):
    network_and_model(tmp_path)
    return tmp_path / "model.safetensors"


def test_each_gdn_layer_has_its_inputs(checkpoint):
    layers = as_trained(length=100, path=checkpoint)
    HK, HV, K, V = SIZES.gdn.dims
    assert [each.layer for each in layers] == SIZES.gdn_layers
    for each in layers:
        assert each.q.shape == each.k.shape == (3, 102, HK, K) and each.v.shape == (3, 102, HV, V)
        assert each.a.shape == each.b.shape == (3, 102, HV)
        assert {x.dtype for x in each[1:6]} == {torch.bfloat16}
        assert each.A_log.dtype == each.dt_bias.dtype == torch.float32 and each.A_log.shape == (HV,)


def test_tokens_that_are_given_are_used(checkpoint):
    tokens = torch.full((2, 5), 7)
    (first, *_) = as_trained(tokens, path=checkpoint)
    assert first.k.shape[:2] == (2, 5)
    assert torch.equal(first.k[0], first.k[1]) and torch.equal(first.k[:, 3], first.k[:, 4])


def test_half_lives(checkpoint):
    (first, *_) = as_trained(torch.full((1, 4), 7), path=checkpoint)
    constant = first._replace(a=torch.zeros_like(first.a), A_log=torch.zeros(2), dt_bias=torch.tensor([0.0, -2.0]))
    # softplus(0) = log 2, so g is a half in the first head; softplus(-2) = 0.126928
    assert half_lives(constant).tolist() == pytest.approx([1.0, 0.693147 / 0.126928], rel=1e-4)
