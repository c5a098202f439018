"""Prompt steps as they are captured (padded sequences in static buffers) and as they are launched: the same bits."""

import pytest
import torch
from test_served_model import LENGTHS, MODELS, build, prompts, start

from gdn_lab.engine.model_weights import ModelWeights


@pytest.fixture(scope="module", params=MODELS)
def weights(request):
    return ModelWeights.random(request.param, precision="bf16", toy=True)


def capturing(model, monkeypatch) -> list:
    """Make the model's prompt steps what they are on a GPU, but for the graph; return what is captured, as it comes."""
    captured = []

    def stand_in(run):
        run()  # as before a capture
        captured.append(run)
        return run

    monkeypatch.setattr(model.graphs, "eager", False)
    monkeypatch.setattr(model.graphs, "captured", stand_in)
    return captured


def memory(model):
    """Everything that prefill writes and later steps read; not the null slot and page, which padding may use."""
    pools = [part[1:] for pool in model.pools for part in (pool.state, pool.conv)]
    return [*pools, *model.cache.k, *model.cache.v]


@pytest.mark.parametrize("chunk", [None, 7])
def test_captured_and_launched_steps_leave_the_same_bits(weights, chunk, monkeypatch):
    first, left = [], []
    for graphs in (True, False):
        model = build(weights)
        captured = capturing(model, monkeypatch) if graphs else []
        first.append(start(model, prompts(), chunk))
        left.append(memory(model))
        assert bool(captured) == graphs
    assert torch.equal(*first) and all(map(torch.equal, *left))


def mixed(model):
    """Two requests decode, in 4 rows with padding, while the prompt of a third comes in two pieces."""
    each = prompts()
    start(model, each[:2])
    slot, pages, found = model.slots.acquire(), model.cache.acquire(5), []
    for begin, end, done in ((0, 9, []), (9, 20, [0])):
        arguments = [0, end - begin], [begin], [slot], [pages], done
        found.append(model.prefill(each[2][begin:end], *arguments, decoding=2).clone())
    return torch.cat(found)


def test_captured_and_launched_mixed_steps_agree(weights, monkeypatch):
    found, left = [], []
    for graphs in (True, False):
        model = build(weights, batch_sizes=(1, 4))
        captured = capturing(model, monkeypatch) if graphs else []
        found.append(mixed(model))
        left.append(memory(model))
        assert bool(captured) == graphs
    assert torch.equal(*found)
    for one, other in zip(*left, strict=True):
        torch.testing.assert_close(one, other, atol=0.02, rtol=0.02)


def test_each_size_has_one_graph_for_pieces_of_any_length(weights, monkeypatch):
    model = build(weights)
    captured = capturing(model, monkeypatch)
    slot, pages = model.slots.acquire(), model.cache.acquire(5)
    model.warm_prompts()
    count = len(captured)
    assert count == len(model._prompts)
    for length in (1, 5, 16, 33):
        model.prefill(torch.arange(length), [0, length], [0], [slot], [pages])
    assert len(captured) == count, "warm_prompts() has made every graph"


def test_what_is_run_before_a_capture_changes_nothing(weights, monkeypatch):
    model = build(weights)
    start(model, prompts()[:2])
    held = [part.clone() for part in (*memory(model), *model.buffers[:3])]

    class Stop(Exception):
        pass

    def captured(run):
        run()
        raise Stop

    capturing(model, monkeypatch)
    monkeypatch.setattr(model.graphs, "captured", captured)
    slot, pages = model.slots.acquire(), model.cache.acquire(5)
    with pytest.raises(Stop):
        model.prefill(prompts()[2], [0, LENGTHS[2]], [0], [slot], [pages], decoding=2)
    indices = model.buffers._fields.index("indices")
    assert model.buffers.indices.eq(-1).all(), "rows of a capture are padding"
    model.buffers.indices.copy_(held[len(memory(model)) + indices])
    assert all(map(torch.equal, (*memory(model), *model.buffers[:3]), held))
