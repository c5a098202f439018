"""Stochastic rounding on an NVIDIA GPU: the kernels' bits are rounding.py's, in a CUDA graph too. make test-gpu."""

import pytest
import torch
from against_reference import PADDING, same_bits
from on_gpu import GPU, RANK, serving

from gdn_lab import StatePool, decode, rounding
from gdn_lab.backends.registry import refusal
from gdn_lab.ops import make_inputs

pytestmark = pytest.mark.gpu

ROUNDING = [variant for variant in serving("decode") if "decode" in variant.stochastic and variant.role == "ours"]
every = pytest.mark.parametrize(
    "variant, dtype",
    [(v, dtype) for v in ROUNDING for dtype in rounding.DTYPES],
    ids=lambda x: getattr(x, "name", str(x)),
)


def pool_of(slots, dtype, seed=3):
    return StatePool(RANK, slots, dtype=dtype, device=GPU, rounding="stochastic", seed=seed)


@every
@pytest.mark.parametrize("batch, rows", [(3, 8), (40, 16), (260, 16)])
def test_a_step_rounds_as_rounding_py(variant, dtype, batch, rows, monkeypatch):
    """From state zero both store u kᵀ; sums in another order decide few roundings otherwise. rows: of a tile."""
    from gdn_lab.backends.triton import recurrent

    monkeypatch.setattr(recurrent, "decode_tile", lambda heads, overlap: recurrent.Tile(rows, 1))
    states = []
    for backend in (variant.full_name, "torch/vk"):
        pool = pool_of(batch + 2, dtype)
        slots = pool.acquire(batch)
        slots[1] = PADDING
        x = make_inputs(RANK, batch, device=GPU)
        decode(*x.arguments(), **x.gates(), pool=pool, indices=slots, backend=backend)
        states.append(pool.state[3:].view(torch.int16).int())
        steps = pool.launch_state.rounding.steps
        assert (steps[1] == 1).all() and (steps[3 : batch + 1] == 1).all()
        if backend == variant.full_name:
            assert not steps[[0, 2, batch + 1]].any()
    assert (states[0] != states[1]).float().mean() < 0.01 and (states[0] - states[1]).abs().max() <= 1


@every
def test_unbiased_over_slots_and_steps(variant, dtype):
    """The same token from the same state in 400 slots: the mean of the stored states is float32's state."""
    batch = 400
    inputs = make_inputs(RANK, 1, device=GPU)
    x = [part.expand(batch, *part.shape[1:]).contiguous() for part in inputs.arguments()]
    pool, exact = pool_of(batch + 1, dtype), StatePool(RANK, 2, dtype=torch.float32, device=GPU)
    decode(*x, **inputs.gates(), pool=pool, indices=pool.acquire(batch), backend=variant.full_name)
    decode(*inputs.arguments(), **inputs.gates(), pool=exact, indices=exact.acquire(1), backend=variant.full_name)
    stored, expected = pool.state[1:].double(), exact.state[1].double()
    spacing = (stored.amax(0) - stored.amin(0)).clamp(min=1e-30)
    means = ((stored - expected) / spacing).mean(0)[stored.amax(0) > stored.amin(0)]
    assert means.numel() > 100_000 and means.abs().max() < 6 * 0.5 / batch**0.5
    assert abs(means.mean()) < 5 * 0.5 / (batch * means.numel()) ** 0.5


@pytest.mark.parametrize("variant", ROUNDING, ids=lambda variant: variant.name)
def test_beyond_the_largest_float16_it_stays(variant):
    pool = pool_of(3, torch.float16)
    slots = pool.acquire(2)
    x = make_inputs(RANK, 2, device=GPU)
    x.v[0] *= 1e7
    decode(*x.arguments(), **x.gates(), pool=pool, indices=slots, backend=variant.full_name)
    stored = pool.state[slots.long()]
    assert stored.isfinite().all() and (stored[0].abs() == 65504).any() and stored[1].abs().max() < 100


@every
def test_a_graph_draws_new_bits_in_each_replay(variant, dtype):
    pools = [pool_of(5, dtype) for _ in range(2)]
    slots, *_ = [pool.acquire(4) for pool in pools]
    x = make_inputs(RANK, 4, device=GPU, strong_decay=False)

    def step(pool):
        decode(*x.arguments(), **x.gates(), pool=pool, indices=slots, backend=variant.full_name)

    for _ in range(6):
        step(pools[0])
    step(pools[1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(pools[1])
    for _ in range(5):
        graph.replay()
    assert same_bits(pools[0].state, pools[1].state)
    assert (pools[1].launch_state.rounding.steps[1:] == 6).all()


def test_other_backends_refuse():
    for variant in serving("decode"):
        reason = refusal(variant.full_name, RANK, layout=variant.layout, device=GPU, stochastic=True)
        assert (reason is None) == ("decode" in variant.stochastic), variant
