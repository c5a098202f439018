"""Deferred write-back on an NVIDIA GPU: whole periods of the ring, in CUDA graphs and eager, against the reference."""

import pytest
import torch
from against_reference import PADDING
from on_gpu import BF16, FP16, FP32, GPU, RANK
from tolerances import assert_close

from gdn_lab import StatePool, decode, reference
from gdn_lab.layer import Step, StepWeights
from gdn_lab.ops import make_inputs
from gdn_lab.tolerances import CORRECTIONS

pytestmark = pytest.mark.gpu

INDICES, LIVE = [3, PADDING, 7, 20, 19], [0, 2, 3, 4]
STEPS = 3  # in a graph


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("updates", [16, 32])
@pytest.mark.parametrize("dtype, io_dtype", [(BF16, BF16), (FP16, BF16), (FP32, BF16), (FP32, FP32), (FP16, FP16)])
def test_whole_periods(dtype, io_dtype, updates, captured):
    """NaN in every slot that no row names, and in the ring where nothing is pending."""
    pool = StatePool(RANK, 22, dtype=dtype, device=GPU)
    pool.reserve_ring(updates, key_dtype=io_dtype)
    for part in (pool.state, pool.ring.keys, pool.ring.corrections, pool.ring.log_decays):
        part.fill_(torch.nan)
    indices = torch.tensor(INDICES, dtype=torch.int32, device=GPU)
    state = torch.randn(len(LIVE), *pool.state.shape[1:], generator=torch.Generator().manual_seed(0)).mul(0.3).to(dtype)
    pool.write(indices[LIVE], state)
    steps = [
        make_inputs(RANK, 5, device=GPU, dtype=io_dtype, seed=step, strong_decay=step == 1) for step in range(STEPS)
    ]
    outputs = [torch.empty(5, RANK.num_v_heads, RANK.head_v_dim, dtype=io_dtype, device=GPU) for _ in steps]

    def run():
        for x, out in zip(steps, outputs, strict=True):
            decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend="triton/replay", out=out)

    if captured:
        ring = pool.ring
        parts = (pool.state, ring.keys, ring.corrections, ring.log_decays, ring.span, ring.arrivals)
        kept = [part.clone() for part in parts]
        run()  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        for part, was in zip(parts, kept, strict=True):
            part.copy_(was)
        run = graph.replay
    rounding = {FP32: 0.0, FP16: 2.0**-11, BF16: 2.0**-8}[dtype]
    for turn in range((2 * updates + 4) // STEPS):
        run()
        extra = (STEPS * (turn + 1)) ** 0.5 * (CORRECTIONS[dtype] + rounding)
        for x, out in zip(steps, outputs, strict=True):
            expected, state = reference.decode(*(t[LIVE] for t in x.arguments()), **x.gates(), state=state)
            assert_close("o", out[LIVE], expected, io_dtype, extra=extra)
            assert not out[1].any(), "a padding row's output is not zero"
        assert_close("state", pool.read(indices[LIVE]), state, dtype, extra=extra)
    pool.settle(indices)
    assert_close("settled state", pool.read(indices[LIVE]), state, dtype, extra=extra)
    assert pool.state[[4, 5, 6, 18, 21]].isnan().all()


def test_a_step_of_a_layer():
    step = Step(StepWeights.random("qwen3.5-397b-a17b", 8, toy=True, device=GPU), "replay", 5)
    for _ in range(18):
        assert step.check().right, step.wrong_parts
