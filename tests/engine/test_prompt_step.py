"""Prompt steps as they are captured (padded sequences in static buffers) and as they are launched: the same bits."""

import pytest
import torch
from test_served_model import LENGTHS, MODELS, build, prompts, start

from gdn_lab.engine import prompt_step
from gdn_lab.engine.model_weights import ModelWeights


@pytest.fixture(scope="module", params=MODELS)
def weights(request):
    return ModelWeights.random(request.param, precision="bf16", toy=True)


def memory(model):
    """Everything that prefill writes and later steps read; not the null slot and page, which padding may use."""
    pools = [part[1:] for pool in model.pools for part in (pool.state, pool.conv)]
    return [*pools, *model.cache.k, *model.cache.v]


@pytest.mark.parametrize("chunk", [None, 7])
def test_captured_and_launched_steps_leave_the_same_bits(weights, chunk, monkeypatch):
    captured = build(weights)
    first = start(captured, prompts(), chunk)
    steps = list(captured._prompts.values())
    assert any(step.replay for step in steps)
    monkeypatch.setattr(prompt_step, "MOST_PIECES", 0)
    launched = build(weights)
    assert torch.equal(start(launched, prompts(), chunk), first)
    assert not any(step.replay for step in launched._prompts.values())
    assert all(map(torch.equal, memory(captured), memory(launched)))


def test_each_size_has_one_graph_for_pieces_of_any_length(weights, monkeypatch):
    model, captured = build(weights), []

    def counted(run):
        captured.append(run)
        return run

    monkeypatch.setattr(model.graphs, "captured", counted)
    slot, pages = model.slots.acquire(), model.cache.acquire(5)
    model.warm_prompts()
    count = len(captured)
    assert count == len(model._prompts)
    for length in (1, 5, 16, 33):
        model.prefill(torch.arange(length), [0, length], [0], [slot], [pages])
    assert len(captured) == count, "warm_prompts() has made every graph"


def test_what_is_run_before_a_capture_changes_nothing(weights, monkeypatch):
    """On a GPU StepGraphs runs the step before it captures it; here too, with the rows that such a run has."""
    model = build(weights)
    held = [part.clone() for part in memory(model)]

    class Stop(Exception):
        pass

    def captured(run):
        run()
        raise Stop

    monkeypatch.setattr(model.graphs, "captured", captured)
    slots, pages = [model.slots.acquire() for _ in LENGTHS], [model.cache.acquire(5) for _ in LENGTHS]
    bounds = [sum(LENGTHS[:n]) for n in range(len(LENGTHS) + 1)]
    with pytest.raises(Stop):
        model.prefill(torch.cat(prompts()), bounds, [0] * 3, slots, pages)
    assert all(map(torch.equal, memory(model), held))
