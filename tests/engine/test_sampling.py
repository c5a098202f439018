"""How tokens are drawn: distributions against softmax by hand, draws that depend on seed and position alone."""

import pytest
import torch
from test_served_model import LENGTHS, build, enter, prompts

from gdn_lab.engine.model_weights import ModelWeights
from gdn_lab.engine.requests import drawn, sampled
from gdn_lab.engine.sampling import GREEDY, Sampling, sampling_rows
from gdn_lab.engine.sampling_reference import exponentials, kept, sample
from gdn_lab.engine.serve import serve

LOGITS = torch.tensor([2.0, 0.5, 1.0, 1.0, -1.0, -4.0, 0.0, 1.5])
DRAWS = 20_000


def draws(one, positions=None):
    """Tokens of DRAWS rows that differ in seed, or in position alone."""
    seeds = range(DRAWS) if positions is None else [one.seed] * DRAWS
    rows = sampling_rows([one._replace(seed=seed) for seed in seeds])
    tokens = torch.zeros(DRAWS, dtype=torch.int64)
    positions = torch.full((DRAWS,), 7, dtype=torch.int32) if positions is None else positions
    sample(LOGITS.expand(DRAWS, -1), tokens, rows, positions)
    return tokens


def allowed(one):
    """Which tokens may be drawn, by the definition, one token after the other."""
    order = LOGITS.argsort(descending=True, stable=True).tolist()
    left = [t for t in order if not one.top_k or LOGITS[t] >= LOGITS[order[min(one.top_k, len(order)) - 1]]]
    p = (LOGITS[left] / one.temperature).softmax(0)
    few = next(n for n in range(1, len(left) + 1) if p[:n].sum() >= one.top_p - 1e-6 or n == len(left))
    return [t for t in left if LOGITS[t] >= LOGITS[left[few - 1]]]


@pytest.mark.parametrize("by", ["seed", "position"])
@pytest.mark.parametrize(
    "one",
    [
        Sampling(1.0),
        Sampling(0.5),
        Sampling(2.0, top_k=1),
        Sampling(1.5, top_k=3),  # the third and fourth are alike: both stay
        Sampling(1.0, top_p=0.6),
        Sampling(1.0, top_k=6, top_p=0.9),
        Sampling(1.0, top_k=100, top_p=0.01),
    ],
)
def test_tokens_are_drawn_with_their_probability(one, by):
    tokens = draws(one, torch.arange(DRAWS, dtype=torch.int32) if by == "position" else None)
    left = allowed(one)
    assert kept(LOGITS[None], sampling_rows([one]))[0].nonzero()[:, 0].tolist() == sorted(left)
    assert set(tokens.tolist()) <= set(left)
    p = (LOGITS[left].double() / one.temperature).softmax(0)
    counts = tokens.bincount(minlength=len(LOGITS))[left]
    chi2 = ((counts - DRAWS * p) ** 2 / (DRAWS * p)).sum()
    assert chi2 < 30, "of at most 7 degrees of freedom: p below 1e-4"


def test_exponentials_of_a_large_vocabulary():
    """Mean and variance 1, and the smallest of n is exponential with mean 1 / n."""
    E = exponentials(torch.arange(64), torch.full((64,), 3), 248_320).double()
    assert abs(E.mean() - 1) < 0.001 and abs(E.var() - 1) < 0.005 and (E > 0).all()
    assert 0.6 < E.min(1).values.mean() * 248_320 < 1.6


def test_greedy_rows_keep_their_token():
    tokens = torch.tensor([5, 5])
    sample(LOGITS.expand(2, -1), tokens, sampling_rows([GREEDY, Sampling(1.0, top_k=1)]), torch.zeros(2))
    assert tokens.tolist() == [5, 0]


@pytest.mark.parametrize(
    "wrong, name",
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_values_out_of_range_are_refused(wrong, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        Sampling(**{"temperature": 1.0} | wrong).check()


@pytest.fixture(scope="module")
def weights():
    return ModelWeights.random("qwen3.5-27b", precision="bf16", toy=True)


def serving(weights, sampling):
    return build(weights, max_batch=4, slots=5, pages=64, sampling=sampling)


def test_greedy_requests_get_the_same_bits_from_a_model_that_can_draw(weights):
    found = []
    for sampling in (False, True):
        model = serving(weights, sampling)
        slots, pages = [model.slots.acquire() for _ in LENGTHS], [model.cache.acquire(5) for _ in LENGTHS]
        bounds = [sum(LENGTHS[:n]) for n in range(len(LENGTHS) + 1)]
        first = model.prefill(torch.cat(prompts()), bounds, [0] * 3, slots, pages, sampling=[GREEDY] * 3)
        enter(model, slots, pages, LENGTHS, first)
        found.append(torch.stack([first] + [model.decode(3).clone() for _ in range(5)]))
    assert torch.equal(*found)


def test_a_request_draws_the_same_tokens_in_any_company(weights):
    requests = drawn(5, 5, 4, vocab=512, seed=3, spread=0.4)
    mixed = sampled(requests, Sampling(0.8, top_k=50, top_p=0.95, seed=11))
    mixed[2] = requests[2]  # greedy, among those that draw
    served = serve(serving(weights, True), mixed, 4)
    alone = serving(weights, True)
    for one in mixed:
        assert served.tokens[one.id] == serve(alone, [one], 1).tokens[one.id]
    greedy = serve(serving(weights, False), requests, 4).tokens
    assert served.tokens[2] == greedy[2]
    differs = [served.tokens[one.id] != greedy[one.id] for one in mixed]
    assert sum(differs) >= 3, "draws of a flat distribution"


def test_a_request_that_draws_needs_a_model_that_can(weights):
    (one,) = sampled(drawn(1, 4, 3, vocab=512), Sampling(1.0))
    (row,) = serve(serving(weights, False), [one], 1).requests
    assert row["outcome"] == "refused" and "make it with sampling=True" in row["reason"]
