"""Weights of whole models: their bytes, and that each layer has its own."""

from unittest import mock

import pytest
import torch

from gdn_lab.engine.capacity import kv_token_nbytes, weight_nbytes
from gdn_lab.engine.kv_cache import PagedCache
from gdn_lab.engine.model_sizes import ModelSizes
from gdn_lab.engine.model_weights import ModelWeights

GENERATOR = torch.Generator


class HostGenerator:
    """A generator of the CPU, whatever the device: there is none for meta tensors."""

    def __new__(cls, device):
        return GENERATOR()


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize("name", ["qwen3.5-35b-a3b", "qwen3.5-27b"])
def test_calculated_bytes_are_those_of_the_tensors(name, tp, precision):
    """Of three GDN layers and an attention layer."""
    with mock.patch.object(torch, "Generator", HostGenerator):
        found = ModelWeights.random(name, tp=tp, precision=precision, device="meta", layers=4).nbytes
    expected, whole = weight_nbytes(name, tp, precision), ModelSizes.of(name, tp)
    layers = {"GDN layers": whole.gdn_layers / 3, "attention layers": whole.attention_layers}
    layers["feed-forward"] = whole.layers / 4
    assert {part: nbytes * layers.get(part, 1) for part, nbytes in found.items()} == expected
    sizes = whole.attention
    cache = PagedCache(whole.attention_layers, 3, 64, sizes.kv_heads, sizes.head_dim, device="meta")
    assert cache.token_nbytes == kv_token_nbytes(name, tp)


def test_layers_differ_and_a_seed_repeats():
    first, again = (ModelWeights.random("qwen3.5-27b", toy=True, seed=3) for _ in range(2))
    other = ModelWeights.random("qwen3.5-27b", toy=True, seed=4)

    def numbers(weights, layer):
        return weights.layers[layer].layer.out.data.float()

    assert torch.equal(numbers(first, 0), numbers(again, 0)) and torch.equal(first.embedding, again.embedding)
    assert not torch.equal(numbers(first, 0), numbers(first, 1))
    assert not torch.equal(numbers(first, 0), numbers(other, 0)) and not torch.equal(first.head.data, other.head.data)
