"""Deferred write-back of an FP8 state on an NVIDIA GPU: whole periods of the ring, in CUDA graphs and eager."""

import pytest
import torch
from against_reference import PADDING, same_bits
from isolation import reached
from on_gpu import BF16, CAPABILITY, FP16, FP32, FULL, GPU, RANK
from prefill_against_reference import bounds_of
from tolerances import assert_close

from gdn_lab import StatePool, decode, prefill, reference
from gdn_lab.backends.registry import VARIANTS
from gdn_lab.ops import make_inputs
from gdn_lab.rounding import FP8
from gdn_lab.tolerances import CORRECTIONS, FP8_READ, PREFILL, fp8_allowed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(CAPABILITY < (9, 0), reason="FP8 products need 9.0 or newer")]

REPLAY = "triton/replay-fp8"
INDICES, LIVE = [3, PADDING, 7, 20, 19], [0, 2, 3, 4]
SLOTS = [INDICES[row] for row in LIVE]


def poisoned_pool(shape, updates, key_dtype, slots=22, seed=5):
    """A pool with NaN in every slot and in the ring, and random states in SLOTS."""
    pool = StatePool(shape, slots, dtype=FP8, device=GPU, seed=seed)
    pool.reserve_ring(updates, key_dtype=key_dtype)
    ring = pool.ring
    for part in (pool.state, pool.scales, ring.keys, ring.corrections, ring.log_decays, ring.operands.factors):
        part.fill_(torch.nan)
    states = torch.randn(len(SLOTS), *pool.state.shape[1:], generator=torch.Generator().manual_seed(0)).mul(0.3)
    pool.write(torch.tensor(SLOTS), states)
    return pool


def parts_of(pool):
    """Every tensor that a step changes."""
    *ring, operands = pool.ring
    return [pool.state, pool.scales, pool.launch_state.rounding.steps, *ring, *operands]


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("updates", [16, 32])
@pytest.mark.parametrize("io_dtype", [BF16, FP32, FP16], ids=str)
def test_whole_periods(io_dtype, updates, captured):
    """Each step against the reference of the state before it; a fold rounds each element to a neighbour."""
    pool = poisoned_pool(RANK, updates, io_dtype)
    indices = torch.tensor(INDICES, dtype=torch.int32, device=GPU)
    x = make_inputs(RANK, 5, device=GPU, dtype=io_dtype)
    out = torch.empty(5, RANK.num_v_heads, RANK.head_v_dim, dtype=io_dtype, device=GPU)

    def run():
        decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend=REPLAY, out=out)

    if captured:
        kept = [part.clone() for part in parts_of(pool)]
        run()  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        for part, was in zip(parts_of(pool), kept, strict=True):
            part.copy_(was)
        run = graph.replay
    folds = 0
    for step in range(updates + 6):
        new = make_inputs(RANK, 5, device=GPU, dtype=io_dtype, seed=step, strong_decay=step % 3 == 1)
        for name in ("mixed_qkv", "a", "b"):
            getattr(x, name).copy_(getattr(new, name))
        before, full = pool.read(indices[LIVE]), (pool.ring.span[SLOTS, 1] == updates - 1).tolist()
        run()
        arguments = [t[LIVE] for t in x.arguments()]
        o, after = reference.decode(*arguments, **x.gates(), state=before)
        assert_close("o", out[LIVE], o, io_dtype, extra=FP8_READ)
        assert not out[1].any(), "a padding row's output is not zero"
        error = (pool.read(indices[LIVE]).cpu().double() - after).abs()
        largest = after.abs().flatten(1).amax(1)[:, None, None, None]
        rounding = torch.tensor(full)[:, None, None, None] * fp8_allowed(after)
        assert (error <= rounding + (2 * CORRECTIONS[FP8] + FP8_READ) * largest).all()
        folds += sum(full)
    assert pool.launch_state.rounding.steps[SLOTS].sum() == folds >= len(SLOTS)
    assert pool.state[[4, 5, 6, 18, 21]].float().isnan().all() and pool.scales[[4, 5, 6, 18, 21]].isnan().all()


def test_the_same_seed_gives_the_same_bits_in_any_batch():
    """Alone or beside other rows, with other tiles."""
    states = []
    for rows in ([0], [0, 2, 3, 4]):
        pool = poisoned_pool(FULL, 16, BF16)
        pool.ring.span[SLOTS] = 14
        for step in range(3):
            x = make_inputs(FULL, 5, device=GPU, seed=step)
            indices = torch.tensor([INDICES[row] for row in rows], dtype=torch.int32, device=GPU)
            decode(*(t[rows] for t in x.arguments()), **x.gates(), pool=pool, indices=indices, backend=REPLAY)
        states.append(pool.state[3].clone())
    assert same_bits(*states)


@pytest.mark.parametrize("io_dtype", [BF16, FP32], ids=str)
def test_settling_rounds_what_is_pending_to_nearest(io_dtype):
    pool = poisoned_pool(RANK, 16, io_dtype)
    indices = torch.tensor(INDICES, dtype=torch.int32, device=GPU)
    pool.ring.span[SLOTS] = 4
    pool.ring.span[18] = 4  # nothing is pending
    for step in range(3):
        x = make_inputs(RANK, 5, device=GPU, dtype=io_dtype, seed=step)
        decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend=REPLAY)
    before, stored = pool.read(indices[LIVE]), pool.state.clone()
    pool.settle(indices)
    assert (pool.ring.span[SLOTS, 0] == pool.ring.span[SLOTS, 1]).all()
    error = (pool.read(indices[LIVE]) - before).abs()
    assert (error <= 0.51 * fp8_allowed(before) + CORRECTIONS[FP8] * before.abs().max()).all()
    assert not same_bits(pool.state[SLOTS], stored[SLOTS])
    assert pool.state[[4, 5, 6, 18, 21]].float().isnan().all() and pool.scales[[4, 5, 6, 18, 21]].isnan().all()


def test_prefill_then_decode():
    pool = poisoned_pool(RANK, 16, BF16)
    indices = torch.tensor(SLOTS, dtype=torch.int32, device=GPU)
    start = pool.read(indices)
    lengths = [70, 0, 3, 130]
    x = make_inputs(RANK, sum(lengths), device=GPU, seed=1, strong_decay=False)
    options = {**x.gates(), "cu_seqlens": bounds_of(lengths, device=GPU)}
    kept = pool.state[7].clone(), pool.scales[7].clone()
    o = prefill(*x.arguments(), **options, pool=pool, indices=indices, backend="triton")
    expected, states = reference.prefill(*x.arguments(), **options, state=start)
    assert_close("o", o, expected, BF16, extra=PREFILL)
    read = pool.read(indices).cpu().double()
    largest = states.abs().flatten(1).amax(1)[:, None, None, None]
    assert ((read - states).abs() <= 0.51 * fp8_allowed(states) + PREFILL * largest).all()
    assert same_bits(pool.state[7], kept[0]) and torch.equal(pool.scales[7], kept[1])
    step = make_inputs(RANK, 4, device=GPU, seed=2)
    o = decode(*step.arguments(), **step.gates(), pool=pool, indices=indices)
    expected, _ = reference.decode(*step.arguments(), **step.gates(), state=read)
    assert_close("o", o, expected, BF16, extra=FP8_READ)


@pytest.mark.parametrize("phase", ["decode", "verify", "prefill"])
def test_isolation(phase):
    """NaN in one row changes no bit of another."""
    assert not reached(VARIANTS[REPLAY], phase, RANK, FP8, GPU)
