"""The model over prefill(), decode(), verify() and commit() says what the network says that was trained."""

import pytest
import torch
from small_network import SIZES, network_and_model

from gdn_lab.trained.inference import Kernels, Requests

T = 128
NEAR = 0.02  # of logits of about 3: inputs of decode() are rounded to bfloat16

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    network, model = network_and_model(tmp_path_factory.mktemp("checkpoint"))
    tokens = torch.randint(SIZES.vocab, (3, T), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, tokens, network(tokens)


@pytest.mark.parametrize("layout", ["VK", "KV"])
def test_prefill_and_decode(both, layout):
    model, tokens, expected = both
    requests = Requests(model, 3, Kernels(layout=layout))
    assert (requests.prefill(tokens[:, :70])[:, 0] - expected[:, 69]).abs().max() < NEAR
    for place in range(70, T):
        logits = requests.decode(tokens[:, place : place + 1])
        assert (logits[:, 0] - expected[:, place]).abs().max() < NEAR, place


def test_verify_and_commit_at_each_request_s_own_pace(both):
    model, tokens, expected = both
    requests = Requests(model, 3, Kernels())
    requests.prefill(tokens[:, :70])
    rng = torch.Generator().manual_seed(0)
    done = torch.full((3,), 70)
    for _ in range(10):
        accepted = torch.randint(0, 5, (3,), generator=rng)
        going = torch.rand(3, generator=rng) < 0.8
        places = done[:, None] + torch.arange(6)
        drafts = tokens.gather(1, places).masked_fill(torch.arange(6) >= accepted[:, None], 7)
        logits = requests.verify(drafts, going)
        requests.commit(accepted)
        wanted = torch.arange(6) < torch.where(going, accepted, 0)[:, None]
        right = expected.gather(1, places[:, :, None].expand(-1, -1, SIZES.vocab))
        assert ((logits - right) * wanted[:, :, None]).abs().max() < NEAR
        done += torch.where(going, accepted, 0)
        assert torch.equal(requests.length, done)
    assert done.min() > 80


def test_padding_rows_change_nothing_unless_they_are_unguarded(both):
    model, tokens, _ = both

    def last(**padding):
        requests = Requests(model, 3, Kernels(), **padding)
        requests.prefill(tokens[:, :70])
        for place in range(70, 90):
            logits = requests.decode(tokens[:, place : place + 1])
        return logits[:, 0]

    plain, guarded, unguarded = last(), last(padding=2), last(padding=2, unguarded=True)
    assert torch.allclose(plain, guarded, atol=1e-5)
    assert torch.allclose(plain[1:], unguarded[1:], atol=1e-5)
    assert (plain[0] - unguarded[0]).abs().max() > 0.1
