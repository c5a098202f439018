"""The decode step on a GPU: every part of every configuration against the float64 reference; replays of a graph."""

import pytest
import torch

from gdn_lab.layer import Step, StepWeights, made_for

pytestmark = pytest.mark.gpu

MODELS = ("qwen3.5-397b-a17b", "qwen3.5-35b-a3b", "qwen3.5-27b")


@pytest.fixture(
    scope="module", params=[(model, precision) for model in MODELS for precision in ("fp8", "bf16")], ids=str
)
def weights(request):
    model, precision = request.param
    return StepWeights.random(model, 8, precision=precision, device="cuda")


@pytest.mark.parametrize("batch", [1, 3, 64, 257])
@pytest.mark.parametrize("name", made_for("cuda"))
def test_every_part_is_right(weights, name, batch):
    from gdn_lab.layer.step_check import differences

    step = Step(weights, name, batch)
    for _ in range(2):  # the second time on what the first one left: states, windows, the experts' counters
        wrong = [difference for difference in differences(step) if not difference.right]
        assert not wrong


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("name", made_for("cuda"))
def test_replays_of_a_graph_give_what_an_eager_step_gives(weights, name, batch):
    """Bit for bit, also where launches overlap: no result depends on the order in which programs finish."""
    step = Step(weights, name, batch)
    state, window = step.pool.state.clone(), step.pool.conv.clone()

    def restore():
        step.pool.state.copy_(state)
        step.pool.conv.copy_(window)

    step()
    expected = step.out.clone(), step.pool.state.clone(), step.pool.conv.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(20):
        restore()
        step.out.fill_(torch.nan)
        graph.replay()
        for actual, right in zip((step.out, step.pool.state, step.pool.conv), expected, strict=True):
            assert torch.equal(actual, right)
