"""The experts' kernels on an NVIDIA GPU, at the models' sizes, eager, overlapped and in a CUDA graph."""

import pytest
import torch
from conftest import HAS_GPU
from experts_against_reference import assert_near, check_linear, check_steps, random_weights, tokens

from gdn_lab.layer.experts import Experts, reference, route_reference

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)
OVERLAPS = [False, True] if HAS_GPU and torch.cuda.get_device_capability(GPU) >= (9, 0) else [False]
both_precisions = pytest.mark.parametrize("precision", ["fp8", "bf16"])


@both_precisions
@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("batch", [1, 7, 32, 256, 512])
def test_a_rank_of_eight(batch, fused, overlap, precision):
    """A quarter of the 397B model's experts, so that there are as many tokens an expert at a quarter of the batch."""
    weights = random_weights(4096, 128, 128, precision, device=GPU)
    check_steps(weights, 10, batch, fused=fused, overlap=overlap)


@both_precisions
@pytest.mark.parametrize("hidden, inner, top_k", [(2048, 32, 8), (3072, 64, 8), (2048, 256, 10), (2048, 512, 8)])
@pytest.mark.parametrize("batch", [2, 65])
def test_other_models(hidden, inner, top_k, batch, precision):
    weights = random_weights(hidden, 64, inner, precision, device=GPU)
    check_steps(weights, top_k, batch, overlap=OVERLAPS[-1], logits_dtype=torch.float32)


@both_precisions
def test_one_expert_with_many_tokens(precision):
    bias = torch.zeros(128)
    bias[77] = 100
    check_steps(random_weights(2048, 128, 128, precision, device=GPU), 8, 100, bias=bias, overlap=OVERLAPS[-1])


@pytest.mark.parametrize("fused", [True, False])
def test_replays_of_a_graph_repeat_to_the_bit(fused):
    """Each replay builds its lists anew, in another order, and keeps nothing of the step before."""
    weights = random_weights(2048, 128, 128, "fp8", device=GPU)
    run = Experts(weights, 8, 64, fused=fused, overlap=OVERLAPS[-1])
    x, logits, quantized = tokens(weights, 64, 0)
    out = torch.empty_like(x)

    def step():
        run.route(logits)
        run.routed(x, *quantized)
        run.shared(x, *quantized)
        run.combine(x, out)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for seed in (0, 1, 0):
        new_x, new_logits, new_quantized = tokens(weights, 64, seed)
        for old, new in zip((x, logits, *quantized), (new_x, new_logits, *new_quantized), strict=True):
            old.copy_(new)
        graph.replay()
        first = out.clone()
        for _ in range(20):
            graph.replay()
            assert torch.equal(out, first)
        ids, _ = route_reference(logits, 8)
        assert torch.equal(run.ids, ids)
        assert_near(out, reference(x, weights, run.ids, run.weights, quantized), True)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("fp8", [True, False])
@pytest.mark.parametrize("n, k", [(2560, 4096), (4096, 1024), (16, 4096), (128, 1088)])
@pytest.mark.parametrize("m", [1, 48, 256])
def test_linear(m, n, k, fp8, overlap):
    check_linear(m, n, k, GPU, fp8=fp8, overlap=overlap)
