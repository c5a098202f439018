"""A step of training: what it minimises, which optimiser has which weight, and a CUDA graph of it."""

import pytest
import torch
import torch.nn.functional as F

from gdn_lab.trained.network import Network
from gdn_lab.trained.sizes import TINY
from gdn_lab.trained.training_plan import Plan
from gdn_lab.trained.training_step import EAGER, IGNORED, Step

pytestmark = pytest.mark.usefixtures("one_thread")


def batch(seed: int, device="cpu"):
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(300, (2, 64), generator=rng)
    targets = torch.where(torch.rand(2, 64, generator=rng) < 0.3, tokens.roll(-1, 1), IGNORED)
    return tokens.to(device), targets.to(device)


def network(device="cpu"):
    torch.manual_seed(0)
    return Network(TINY).to(device)


def test_the_loss_is_that_of_the_predicted_places():
    model, (tokens, targets) = network(), batch(1)
    with torch.no_grad():
        chosen = targets != IGNORED
        expected = F.cross_entropy(model(tokens)[chosen], targets[chosen])
    torch.testing.assert_close(Step(model, Plan())(tokens, targets, 1e-3), expected)


def test_every_weight_has_one_optimiser():
    model = network()
    muon, adam = Step(model, Plan()).optimizers
    of = [[id(x) for group in each.param_groups for x in group["params"]] for each in (muon, adam)]
    assert sorted(of[0] + of[1]) == sorted(id(x) for x in model.parameters())
    names = {name for name, x in model.named_parameters() if id(x) in of[0]}
    kinds = ("in_proj_qkvz.weight", "in_proj.weight", "out_proj.weight", "up.weight", "down.weight")
    assert names and all(name.endswith(kinds) for name in names)


@pytest.mark.gpu
def test_a_graph_takes_the_steps_that_eager_kernels_take():
    losses = []
    for graph in (False, True):
        step = Step(network("cuda"), Plan(graph=graph))
        losses.append([float(step(*batch(i, "cuda"), 1e-3)) for i in range(EAGER + 6)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
