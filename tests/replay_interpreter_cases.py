"""Deferred write-back on the CPU, in Triton's interpreter, over several folds, against the reference.

Run by test_triton_interpreter.py in a process of its own, under TRITON_INTERPRET=1.
"""

from itertools import product

import pytest
import torch
from against_reference import PADDING, as_strided, check_decode, filled_pool, row_slots, same_bits
from isolation import reached
from tolerances import assert_close

from gdn_lab import GDNShape, StatePool, decode, prefill, reference, verify
from gdn_lab.backends import registry
from gdn_lab.backends.triton import backend, replay, replay_fold
from gdn_lab.ops import make_inputs
from gdn_lab.ring import drop
from gdn_lab.tolerances import CORRECTIONS

assert backend.INTERPRETED, "run under TRITON_INTERPRET=1"

REPLAY = "triton/replay"
TINY = GDNShape(1, 2, 16, 32)
C = 16
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
INDICES = [3, PADDING, 20, 4]
LIVE = [0, 2, 3]


def poisoned_pool(dtype, *, shape=TINY, slots=22, key_dtype=BF16, updates=C):
    """A pool with NaN everywhere in its states and its ring."""
    pool = StatePool(shape, slots, dtype=dtype)
    pool.reserve_ring(updates, key_dtype=key_dtype)
    for part in (pool.state, pool.ring.keys, pool.ring.corrections, pool.ring.log_decays):
        part.fill_(torch.nan)
    return pool


class Trajectory:
    """A pool and, beside it, the float64 states of the live rows from the same start."""

    def __init__(self, pool, indices, start_std=0.3):
        self.pool, self.indices = pool, indices
        inner = (pool.shape.num_v_heads, pool.shape.head_v_dim, pool.shape.head_k_dim)
        start = torch.randn(len(LIVE), *inner, generator=torch.Generator().manual_seed(0)) * start_std
        pool.write(indices[LIVE], start.to(pool.dtype))
        self.state = start.to(pool.dtype).double()

    def step(self, seed, *, io_dtype=BF16, strong_decay=False, backend=REPLAY, strides="packed", **options):
        """Take one step with random inputs; return the output and what the reference gives."""
        x = make_inputs(self.pool.shape, len(self.indices), dtype=io_dtype, seed=seed, strong_decay=strong_decay)
        arguments = as_strided(x, strides)
        o = decode(*arguments, **x.gates(), pool=self.pool, indices=self.indices, backend=backend, **options)
        expected, self.state = reference.decode(
            *(t[LIVE] for t in arguments), **x.gates(), state=self.state, **options
        )  # fmt: skip
        assert not o[1].any(), "a padding row's output is not zero"
        return o[LIVE], expected


def test_slots_start_at_phases_of_their_own():
    span = poisoned_pool(FP32).ring.span
    assert torch.equal(span[:, 0], span[:, 1]) and span[:, 0].tolist() == [slot % (C + 1) for slot in range(22)]


def steps_allowed(dtype, steps):
    """What `steps` steps may be off, relative to the largest element: each rounds its update, and a fold the state."""
    return steps**0.5 * (CORRECTIONS[dtype] + {FP32: 0.0, FP16: 2.0**-11, BF16: 2.0**-8}[dtype])


KINDS = [
    (BF16, BF16, False, C + 4),
    (BF16, BF16, True, 5),
    (FP16, BF16, False, 5),
    (FP32, BF16, True, 5),
    (FP32, FP32, False, 5),
    (FP16, FP16, True, 5),
]


@pytest.mark.parametrize("dtype, io_dtype, strong_decay, steps", KINDS)
def test_folds_from_mixed_phases(dtype, io_dtype, strong_decay, steps):
    """Every step's output and state, through a fold of each slot; slots that no row names keep their NaN."""
    pool = poisoned_pool(dtype, key_dtype=io_dtype)
    run = Trajectory(pool, torch.tensor(INDICES, dtype=torch.int64))
    phases = [C - 2, C - 3, C - 2]  # some rows fold together, some apart
    pool.ring.span[[3, 20, 4]] = torch.tensor(phases, dtype=torch.int32)[:, None]
    for step in range(steps):
        o, expected = run.step(step, io_dtype=io_dtype, strong_decay=strong_decay)
        extra = steps_allowed(dtype, step + 1)
        assert_close("o", o, expected, io_dtype, interpreted=True, extra=extra)
        assert_close("state", pool.read(run.indices[LIVE]), run.state, dtype, interpreted=True, extra=extra)
    assert pool.ring.span[[3, 20, 4]].tolist() == [[0, (phase + steps) % (C + 1)] for phase in phases]
    unnamed = [slot for slot in range(1, 22) if slot not in INDICES]
    assert pool.state[unnamed].isnan().all() and pool.ring.keys[unnamed].isnan().all()


def test_float32_keeps_its_accuracy_after_one_strong_decay():
    """A sum of log decays since then is no difference of two large ones."""
    pool = poisoned_pool(FP32, key_dtype=FP32)
    run = Trajectory(pool, torch.tensor(INDICES, dtype=torch.int32), start_std=100.0)
    drop(pool.ring, torch.tensor(INDICES).clamp(min=0))
    for step in range(4):
        o, expected = run.step(step, io_dtype=FP32, strong_decay=step == 1)
        error = (pool.read(run.indices[LIVE]) - run.state).abs().max() / run.state.abs().max()
        assert error < 3e-6
        assert_close("o", o, expected, FP32, interpreted=True)


@pytest.mark.parametrize("full", [True, False], ids=["fold", "read"])
@pytest.mark.parametrize("strides", ["contiguous", "wide", "odd", "apart"])
def test_strides_of_a_pending_row(full, strides):
    """Both kernels: rows whose ring is full and rows whose ring is not."""
    pool = poisoned_pool(FP32)
    run = Trajectory(pool, torch.tensor(INDICES, dtype=torch.int32))
    pool.ring.span[[3, 20, 4]] = torch.tensor([C - 2, C - 2] if full else [4, 4], dtype=torch.int32)
    for step in range(3):
        o, expected = run.step(step, strides=strides, strong_decay=True)
        assert_close("o", o, expected, BF16, interpreted=True)
    assert_close("state", pool.read(run.indices[LIVE]), run.state, FP32, interpreted=True)


@pytest.mark.parametrize("full", [True, False], ids=["fold", "read"])
def test_scale_no_norm_and_out(full):
    pool = poisoned_pool(FP32, key_dtype=FP32)
    run = Trajectory(pool, torch.tensor(INDICES, dtype=torch.int32), start_std=0.01)
    pool.ring.span[[3, 20, 4]] = torch.tensor([C - 1, C - 1] if full else [4, 4], dtype=torch.int32)
    for step in range(2):
        o, expected = run.step(step, io_dtype=FP32, scale=0.5, use_qk_l2norm=False)
        assert_close("o", o, expected, FP32, interpreted=True)


@pytest.mark.parametrize("rows, parts", [(16, 1), (32, 2), (64, 8)])
def test_tiles(monkeypatch, rows, parts):
    """V is not K, and a head has several tiles, so that a tile that mixes them up shows."""
    tiles = replay.ReplayTiles(rows, 2, 1, parts)
    monkeypatch.setattr(replay, "replay_tiles", lambda *_: tiles)
    registry.launch_for.cache_clear()
    pool = poisoned_pool(FP32, shape=GDNShape(1, 2, 16, 64))
    run = Trajectory(pool, torch.tensor(INDICES, dtype=torch.int32))
    pool.ring.span[20] = C - 1
    for step in range(3):
        o, expected = run.step(step)
        assert_close("o", o, expected, BF16, interpreted=True)
    assert_close("state", pool.read(run.indices[LIVE]), run.state, FP32, interpreted=True)
    registry.launch_for.cache_clear()


@pytest.mark.parametrize("rows", [1, 19])
def test_rows_with_a_full_ring_begin_first(rows):
    """Rows change places in groups, also where padding is among them; each is taken once and moves on once."""
    rng = torch.Generator().manual_seed(rows)
    indices = torch.randperm(21, generator=rng)[:rows].to(torch.int32) + 1
    pool = poisoned_pool(FP32, shape=GDNShape(1, 2, 16, 32), key_dtype=FP32)
    live = torch.rand(rows, generator=rng) < 0.8
    live[0] = True
    phases = torch.where(torch.rand(22, generator=rng) < 0.4, C, torch.randint(0, C, (22,), generator=rng))
    pool.ring.span[:] = phases[:, None]
    before = pool.ring.span.clone()
    slots = indices[live].long()
    state = torch.randn(len(slots), 2, 32, 16, generator=rng).double()
    pool.write(slots, state.float())
    indices[~live] = PADDING
    for step in range(3):
        x = make_inputs(pool.shape, rows, dtype=FP32, seed=step)
        o = decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend=REPLAY)
        expected, state = reference.decode(*(t[live] for t in x.arguments()), **x.gates(), state=state)
        assert_close("o", o[live], expected, FP32, interpreted=True)
        assert_close("state", pool.read(indices[live]), state, FP32, interpreted=True)
        assert not o[~live].any() and not pool.ring.arrivals.any()
    assert torch.equal(pool.ring.span[slots, 1], (before[slots, 1] + 3) % (C + 1))
    others = [slot for slot in range(22) if slot not in slots.tolist()]
    assert torch.equal(pool.ring.span[others], before[others])


def test_a_longer_ring():
    pool = poisoned_pool(FP32, updates=32)
    run = Trajectory(pool, torch.tensor(INDICES, dtype=torch.int32))
    pool.ring.span[20] = 30
    for step in range(5):
        o, expected = run.step(step)
        assert_close("o", o, expected, BF16, interpreted=True)
    assert_close("state", pool.read(run.indices[LIVE]), run.state, FP32, interpreted=True)


def test_the_models_head_size():
    pool = filled_pool(GDNShape(1, 2), 3, layout="VK", dtype=BF16)
    check_decode(pool, row_slots(1, 3), backend=REPLAY, interpreted=True)


def test_other_calls_see_what_is_pending():
    """decode elsewhere, verify, prefill and back again: each goes on from the true state."""
    pool = poisoned_pool(FP32, key_dtype=FP32)
    pool.state[0] = 0  # the null slot, which padding rows of other backends may read
    run = Trajectory(pool, torch.tensor(INDICES, dtype=torch.int32))
    for step, name in enumerate([REPLAY, REPLAY, "torch", REPLAY, "triton/vk", "auto"]):
        o, expected = run.step(step, io_dtype=FP32, backend=name)
        assert_close(f"o of {name}", o, expected, FP32, interpreted=True)
    run.step(6, io_dtype=FP32)
    x = make_inputs(TINY, 4, tokens=3, dtype=FP32, seed=7, strong_decay=False)
    o = verify(*x.arguments(), **x.gates(), pool=pool, indices=run.indices, backend="triton")
    expected, states = reference.verify(*(t[LIVE] for t in x.arguments()), **x.gates(), state=run.state)
    run.state = states[:, -1]
    assert_close("o of verify", o[LIVE], expected, FP32, interpreted=True)
    run.step(8, io_dtype=FP32)
    x = make_inputs(TINY, 9, dtype=FP32, seed=9, strong_decay=False)
    bounds = torch.tensor([0, 4, 5, 9], dtype=torch.int32)
    options = {**x.gates(), "cu_seqlens": bounds}
    o = prefill(*x.arguments(), **options, pool=pool, indices=run.indices[LIVE], backend="torch")
    expected, run.state = reference.prefill(*x.arguments(), **options, state=run.state)
    assert_close("o of prefill", o, expected, FP32)
    o, expected = run.step(10, io_dtype=FP32)
    assert_close("o", o, expected, FP32, interpreted=True)
    assert_close("state", pool.read(run.indices[LIVE]), run.state, FP32, interpreted=True)


@pytest.mark.parametrize("dtype, key_dtype", list(product([BF16, FP32], [BF16, FP32])))
def test_the_kernel_that_settles_agrees_with_pytorch(dtype, key_dtype):
    pool = poisoned_pool(dtype, key_dtype=key_dtype)
    run = Trajectory(pool, torch.tensor(INDICES, dtype=torch.int32))
    for step in range(3):
        run.step(step, io_dtype=key_dtype, strong_decay=True)
    before, expected = pool.state.clone(), pool.read(run.indices[LIVE])
    replay_fold.settle(pool.state, pool.ring, run.indices)
    assert_close("state", pool.state[run.indices[LIVE].long()], expected.double(), dtype, interpreted=True)
    others = [slot for slot in range(22) if slot not in INDICES]
    assert same_bits(pool.state[others], before[others])
    after = pool.state.clone()
    drop(pool.ring, run.indices.clamp(min=0).long())
    replay_fold.settle(pool.state, pool.ring, run.indices)
    assert same_bits(pool.state, after), "nothing is pending"


def test_auto_takes_the_ring_where_there_is_one():
    call = replay_call(ring=C)
    assert registry.serving("triton", call) == REPLAY
    assert registry.serving("triton", replay_call(ring=0)) == "triton/vk"
    assert registry.defers("triton", call) and not registry.defers("triton/vk", call)


def replay_call(ring):
    from gdn_lab.backends.base import Call

    return Call("decode", "VK", BF16, BF16, torch.int32, TINY, torch.device("cpu"), ring=ring, key_dtype=BF16)


def test_isolation():
    """NaN in one row changes no bit of another."""
    assert not reached(registry.VARIANTS[REPLAY], "decode", TINY, FP32)
