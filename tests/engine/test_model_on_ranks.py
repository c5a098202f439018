"""Two and four processes share a toy model: what the shares hold, and the tokens that they agree on."""

import pytest
import torch
from model_rank_cases import PROMPTS, answers_on_rank
from whole_model_reference import logits

from gdn_lab.engine import ranks
from gdn_lab.engine.communicator import Alone
from gdn_lab.engine.model_sizes import ModelSizes
from gdn_lab.engine.model_weights import ModelWeights
from gdn_lab.engine.served_model import ServedModel
from gdn_lab.layer.fp8 import dequantize

EXPERTS, DENSE = "qwen3.5-35b-a3b", "qwen3.5-27b"
NEAR = 0.1  # of the largest logit, in standard deviations: ranks round their shares to bf16 before these are summed
TIE = 0.02  # between two experts' logits: rounding decides


@pytest.mark.parametrize("name", [EXPERTS, DENSE])
def test_two_ranks_answer_as_one(name, forked_python):
    values = ranks.start(2, answers_on_rank, name, "bf16", 3, device="cpu", timeout_s=200)
    assert values[0] == values[1], "ranks chose other tokens"
    found, parts = values[0]
    assert "all-reduces" in parts
    whole = ModelWeights.random(name, precision="bf16", toy=True, seed=1)
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        exact = logits(whole, torch.tensor(prompt + tokens[:-1]), ties := [])[len(prompt) - 1 :]
        short = exact.max(1).values - exact.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert (short <= NEAR * exact.std(1)).all() or min(ties, default=1) <= TIE


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
@pytest.mark.parametrize("name", [EXPERTS, DENSE])
def test_shares_add_up_to_the_whole(name, precision):
    """Sums over ranks of what each computes, for products of every kind, are those of the whole weights."""
    whole = ModelWeights.random(name, precision=precision, toy=True)
    shares = [ModelWeights.random(name, precision=precision, toy=True, tp=2, rank=rank) for rank in range(2)]
    assert torch.equal(torch.cat([share.head.data for share in shares]), whole.head.data)
    for number, layer in enumerate(whole.layers):
        parts = [share.layers[number] for share in shares]
        outs = [dequantize(part.layer.out) for part in parts]
        torch.testing.assert_close(torch.cat(outs, 1), dequantize(layer.layer.out))
        if layer.dense:
            gate_up = [dequantize(part.dense.gate_up).chunk(2) for part in parts]
            joined = torch.cat([torch.cat(pieces) for pieces in zip(*gate_up, strict=True)])
            torch.testing.assert_close(joined, dequantize(layer.dense.gate_up))
            torch.testing.assert_close(
                torch.cat([dequantize(part.dense.down) for part in parts], 1), dequantize(layer.dense.down)
            )
        else:
            assert all(part.experts.can_fuse for part in parts)
            for expert in (-1, 0, 7):
                w13, w2 = (dequantize(part) for part in layer.experts.expert(expert))
                both = [[dequantize(one) for one in part.experts.expert(expert)] for part in parts]
                torch.testing.assert_close(torch.cat([one[0] for one in both], 1), w13)
                torch.testing.assert_close(torch.cat([one[1] for one in both], 1), w2)


def test_a_model_of_more_ranks_than_its_communicator_is_refused():
    share = ModelWeights.random(DENSE, toy=True, tp=2)
    sizes = {"max_batch": 1, "slots": 2, "pages": 1, "max_length": 8}
    with pytest.raises(ValueError, match="communicator: expected 2 ranks, as the weights have, got 1"):
        ServedModel(share, "torch", **sizes, communicator=Alone())


@pytest.mark.parametrize("tp", [4, 8])
def test_a_toy_has_shares_for_more_ranks(tp):
    sizes = ModelSizes.of(EXPERTS, tp, toy=True)
    assert sizes.attention.kv_heads == 1 and sizes.step.routed == 128 and sizes.step.shape.num_k_heads == 1
    weights = ModelWeights.random(EXPERTS, toy=True, tp=tp, rank=tp - 1)
    assert weights.layers[0].layer.in_qkvz.data.shape == (128 * 2 + 256 + 256, 256)
    with pytest.raises(ValueError, match="tp: a toy model runs on a power of 2 ranks, got 3"):
        ModelSizes.of(EXPERTS, 3, toy=True)


def test_sizes_of_real_models():
    large = ModelSizes.of("qwen3.5-397b-a17b", 4)
    assert (large.gdn_layers, large.attention_layers, large.vocab_rank) == (45, 15, 62080)
    assert large.attention == (8, 1, 256, 64)  # two key heads, each on two of the ranks
    dense = ModelSizes.of(DENSE, 1, layers=5)
    assert dense.is_attention == (False, False, False, True, False) and dense.attention.qkv_rows == 56 * 256
    with pytest.raises(ValueError, match="layers: expected 1 to 64, or None for all, got 65"):
        ModelSizes.of(DENSE, 1, layers=65)
    with pytest.raises(ValueError, match="rank: expected 0 to 1, got 2"):
        ModelWeights.random(DENSE, rank=2, tp=2, toy=True)
