"""in_proj ba in the convolution's launch runs beside in_proj qkvz: they must share no memory."""

import torch

from gdn_lab.layer.gdn_layer import GDNLayer, Kernels
from gdn_lab.layer.kernels import elementwise
from gdn_lab.layer.weights import StepWeights
from gdn_lab.layer.workspace import Workspace
from gdn_lab.pool import StatePool

BATCH = 4


def test_scratch_is_not_shared_with_the_product_that_runs_at_the_same_time():
    weights = StepWeights.random("qwen3.5-397b-a17b", 8, toy=True, precision="bf16")
    sizes, indices = weights.sizes, torch.ones(BATCH, dtype=torch.int32)
    pool = StatePool(sizes.shape, 4)
    kernels = Kernels("triton/vk", elementwise, fused=True, overlap=True, torch_fp8=False)
    x, workspace = torch.zeros(BATCH, sizes.hidden, dtype=torch.bfloat16), Workspace()
    layers = [GDNLayer(weights.layer, kernels, pool, indices, x, x, workspace=workspace) for _ in range(2)]
    assert layers[0].joined
    qkvz, ba, out = layers[0].in_qkvz.scratch, layers[0].in_ba.scratch, layers[0].out.scratch
    addresses = [{part.untyped_storage().data_ptr() for part in scratch} for scratch in (qkvz, ba, out)]
    assert addresses[1].isdisjoint(addresses[0] | addresses[2])
    assert addresses[1] == {part.untyped_storage().data_ptr() for part in layers[1].in_ba.scratch}, "of all layers"
