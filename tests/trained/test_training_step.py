"""A step of training: what it minimises, which weights decay, and a CUDA graph of it."""

import pytest
import torch
import torch.nn.functional as F

from gdn_lab.trained.network import Network
from gdn_lab.trained.sizes import Sizes
from gdn_lab.trained.training_plan import Plan
from gdn_lab.trained.training_step import EAGER, IGNORED, Step

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Sizes(hidden=64, num_k_heads=1, num_v_heads=2, head_dim=32, attn_heads=2, attn_kv_heads=1, attn_dim=32, ffn=128)


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


def test_matrices_decay_and_the_rest_does_not():
    model = network()
    matrices, others = Step(model, Plan()).optimizer.param_groups
    assert matrices["weight_decay"] > 0 == others["weight_decay"]
    assert sorted(map(id, matrices["params"] + others["params"])) == sorted(map(id, model.parameters()))
    assert all(x.dim() == 2 for x in matrices["params"]) and any(x is model.embedding for x in others["params"])


@pytest.mark.gpu
def test_a_graph_takes_the_steps_that_eager_kernels_take():
    losses = []
    for graph in (False, True):
        step = Step(network("cuda"), Plan(graph=graph))
        losses.append([float(step(*batch(i, "cuda"), 1e-3)) for i in range(EAGER + 6)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
