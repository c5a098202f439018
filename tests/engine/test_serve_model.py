"""The serving loop on the real model at toy size."""

import pytest
import torch
from whole_model_reference import logits

from gdn_lab.engine.capacity import fill
from gdn_lab.engine.model_weights import ModelWeights
from gdn_lab.engine.requests import drawn
from gdn_lab.engine.serve import serve
from gdn_lab.engine.served_model import ServedModel
from gdn_lab.engine.speculation import Speculation

NEAR = 0.05  # of the largest logit, in standard deviations: what bf16 activations cannot tell apart
TIE = 0.01  # between two experts' logits: which one is taken depends on rounding, and changes what follows


@pytest.fixture(scope="module", params=["qwen3.5-35b-a3b", "qwen3.5-27b"])
def model(request):
    weights = ModelWeights.random(request.param, precision="bf16", device="cpu", toy=True)
    sizes = {"max_batch": 4, "slots": 5, "pages": 12, "page_size": 8, "max_length": 24, "prefill_tokens": 32}
    return ServedModel(weights, "torch", **sizes, batch_sizes=(1, 2, 4))


def assert_same(model, request, tokens, others):
    """Equal up to a token that rounding decides: both are nearly the most likely, or experts before it were tied."""
    where = next((n for n, pair in enumerate(zip(tokens, others, strict=True)) if pair[0] != pair[1]), None)
    if where is not None:
        before = torch.cat((torch.from_numpy(request.prompt), torch.tensor(tokens[:where], dtype=torch.int64)))
        exact = logits(model.weights, before, ties := [])[-1]
        least = exact[[tokens[where], others[where]]].min()
        assert exact.max() - least <= NEAR * exact.std() or min(ties, default=1) <= TIE


@pytest.mark.parametrize("prefill", ["steps", "chunked", "mixed"])
def test_tokens_are_those_of_each_request_alone(model, prefill):
    requests = drawn(9, 8, 6, vocab=model.vocab, spread=0.5, seed=3)
    together = serve(model, requests, 4, prefill=prefill, chunk=5)
    for request in requests:
        alone = serve(model, [request], 1).tokens[request.id]
        assert_same(model, request, together.tokens[request.id], alone)
    assert (model.slots.free, model.cache.free) == (4, 12) and fill(model, 24).requests == 4


def test_drafts_are_served(model):
    requests = drawn(6, 6, 8, vocab=model.vocab, spread=0.5, seed=4)
    served = serve(model, requests, 3, speculation=Speculation(3, 0.7, model.vocab))
    assert {len(served.tokens[request.id]) for request in requests} == {request.output_length for request in requests}
    assert {row["kind"] for row in served.steps} == {"prefill", "verify"}
    assert (model.slots.free, model.cache.free) == (4, 12)
