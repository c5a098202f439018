"""Deferred write-back of an FP8 state on the CPU, in Triton's interpreter, over folds, against the reference.

Run by test_triton_interpreter.py in a process of its own, under TRITON_INTERPRET=1.
"""

import pytest
import torch
from against_reference import PADDING, as_strided, same_bits
from isolation import reached
from tolerances import assert_close

from gdn_lab import GDNShape, StatePool, decode, prefill, reference, verify
from gdn_lab.backends import registry
from gdn_lab.backends.triton import backend, replay_fp8, replay_fp8_copies
from gdn_lab.e4m3 import FP8, LARGEST, as_stored, row_scales
from gdn_lab.ops import make_inputs
from gdn_lab.rounding import head_keys, random_bits, round_stochastically
from gdn_lab.tolerances import CORRECTIONS, LOGARITHMS, fp8_allowed

assert backend.INTERPRETED, "run under TRITON_INTERPRET=1"

REPLAY = "triton/replay-fp8"
TINY = GDNShape(1, 2, 32, 32)
C = 16
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
INDICES = [3, PADDING, 20, 4]
LIVE = [0, 2, 3]
SLOTS = [3, 20, 4]


def poisoned_pool(*, shape=TINY, slots=22, key_dtype=BF16, updates=C, seed=7):
    """A pool with NaN everywhere in its states, scales and ring."""
    pool = StatePool(shape, slots, dtype=FP8, seed=seed)
    pool.reserve_ring(updates, key_dtype=key_dtype)
    ring = pool.ring
    for part in (pool.state, pool.scales, ring.keys, ring.corrections, ring.log_decays, ring.operands.factors):
        part.fill_(torch.nan)
    return pool


class Steps:
    """A pool and, beside it, the float64 states of the live rows, taken from the pool after each fold.

    A fold rounds to 3 bits; between two folds the pool's arithmetic is as exact as that of a bf16 ring, which is what
    is checked, and each fold is checked to round to a neighbour.
    """

    def __init__(self, pool, start_std=0.3):
        self.pool, self.indices = pool, torch.tensor(INDICES, dtype=torch.int32)
        inner = (pool.shape.num_v_heads, pool.shape.head_v_dim, pool.shape.head_k_dim)
        start = torch.randn(len(LIVE), *inner, generator=torch.Generator().manual_seed(0)) * start_std
        pool.write(self.indices[LIVE], start)
        self.taken = 0
        self.state = pool.read(self.indices[LIVE]).double()

    def step(self, seed, *, io_dtype=BF16, strong_decay=False, strides="packed", **options):
        """Take one step with random inputs and check its output and the state."""
        x = make_inputs(self.pool.shape, len(INDICES), dtype=io_dtype, seed=seed, strong_decay=strong_decay)
        arguments = as_strided(x, strides)
        full = (self.pool.ring.span[SLOTS, 1] == self.pool.ring.updates - 1).tolist()
        calls = {**x.gates(), **options}
        o = decode(*arguments, **calls, pool=self.pool, indices=self.indices, backend=REPLAY)
        expected, after = reference.decode(*(t[LIVE] for t in arguments), **calls, state=self.state)
        assert not o[1].any(), "a padding row's output is not zero"
        self.taken += 1
        extra = 4 * self.taken**0.5 * CORRECTIONS[BF16]  # the interpreter cuts u to bf16: a whole unit
        assert_close("o", o[LIVE], expected, io_dtype, interpreted=True, extra=extra)
        actual = self.pool.read(self.indices[LIVE]).double()
        for row, folded in enumerate(full):
            if folded:
                error = (actual[row] - after[row]).abs()
                assert (error <= fp8_allowed(after[row]) + extra * after[row].abs().max()).all()
                assert error.max() > 0
                after[row] = actual[row]
            else:
                assert_close("state", actual[row], after[row], BF16, interpreted=True, extra=extra)
        self.state = after


KINDS = [(BF16, False, 6), (BF16, True, 4), (FP32, False, 4), (FP16, True, 4)]


@pytest.mark.parametrize("io_dtype, strong_decay, steps", KINDS)
def test_folds_from_mixed_phases(io_dtype, strong_decay, steps):
    """Every step's output and state, through a fold of each slot; slots that no row names keep their NaN."""
    pool = poisoned_pool(key_dtype=io_dtype)
    run = Steps(pool)
    phases = [C - 2, C - 3, C - 2]  # some rows fold together, one apart
    pool.ring.span[SLOTS] = torch.tensor(phases, dtype=torch.int32)[:, None]
    for step in range(steps):
        run.step(step, io_dtype=io_dtype, strong_decay=strong_decay)
    assert pool.ring.span[SLOTS].tolist() == [[0, (phase + steps) % C] for phase in phases]
    unnamed = [slot for slot in range(1, 22) if slot not in INDICES]
    assert pool.state[unnamed].float().isnan().all() and pool.scales[unnamed].isnan().all()
    assert pool.launch_state.rounding.steps[SLOTS].tolist() == [(phase + steps) // C for phase in phases]


def test_a_fold_rounds_by_seed_slot_and_count():
    """The very bits that rounding.py gives, but where the sum over the ring lies next to a boundary."""
    pool = poisoned_pool(key_dtype=FP32, seed=11)
    run = Steps(pool)
    pool.ring.span[SLOTS] = C - 3
    pool.launch_state.rounding.steps[SLOTS] = torch.tensor([0, 5, 9], dtype=torch.int32)
    run.step(0, io_dtype=FP32)
    run.step(1, io_dtype=FP32)
    x = make_inputs(TINY, len(INDICES), dtype=FP32, seed=2, strong_decay=False)
    _, S = reference.decode(*(t[LIVE] for t in x.arguments()), **x.gates(), state=pool.read(run.indices[LIVE]))
    decode(*x.arguments(), **x.gates(), pool=pool, indices=run.indices, backend=REPLAY)
    S = S.float()
    assert torch.allclose(pool.scales[SLOTS], row_scales(S), rtol=0.02)
    counts = torch.tensor([1, 6, 10])
    bits = random_bits(head_keys(11, counts[:, None].expand(3, 2), torch.tensor(SLOTS), 2), 32, 32)
    expected = round_stochastically(S / pool.scales[SLOTS][..., None], FP8, bits)
    same = expected.view(torch.uint8) == pool.state[SLOTS].view(torch.uint8)
    assert same.float().mean() > 0.9, "u is in bf16, so that a few elements round elsewhere"
    assert pool.launch_state.rounding.steps[SLOTS].tolist() == counts.tolist()


@pytest.mark.parametrize("strides", ["contiguous", "wide", "odd", "apart"])
def test_strides(strides):
    pool = poisoned_pool()
    run = Steps(pool)
    pool.ring.span[SLOTS] = torch.tensor([[C - 2, C - 2], [4, 4], [C - 1, C - 1]], dtype=torch.int32)
    for step in range(2):
        run.step(step, strides=strides, strong_decay=True)


def test_scale_and_no_norm():
    pool = poisoned_pool(key_dtype=FP32)
    run = Steps(pool, start_std=0.01)
    pool.ring.span[SLOTS] = torch.tensor([[C - 2, C - 2], [4, 4], [C - 1, C - 1]], dtype=torch.int32)
    for step in range(2):
        run.step(step, io_dtype=FP32, scale=0.5, use_qk_l2norm=False)


@pytest.mark.parametrize("rows, heads, fold_rows, splits", [(32, 2, 16, 2), (64, 1, 32, 1), (16, 2, 16, 4)])
def test_tiles(monkeypatch, rows, heads, fold_rows, splits):
    """V is not K, and a head has several tiles, so that a tile that mixes them up shows."""
    tiles = replay_fp8.Fp8Tiles(rows, heads, 2, 4, rows, fold_rows, splits, 2, 1, 3)
    monkeypatch.setattr(replay_fp8, "fp8_tiles", lambda *_: tiles)
    registry.launch_for.cache_clear()
    pool = poisoned_pool(shape=GDNShape(2, 4, 32, 64))
    run = Steps(pool)
    pool.ring.span[20] = C - 2
    for step in range(2):
        run.step(step)
    registry.launch_for.cache_clear()


def test_a_longer_ring():
    pool = poisoned_pool(updates=32)
    run = Steps(pool)
    pool.ring.span[20] = 30
    for step in range(3):
        run.step(step)


def test_settling_rounds_what_is_pending_to_nearest():
    pool = poisoned_pool()
    run = Steps(pool)
    pool.ring.span[SLOTS] = 4
    run.step(0)
    run.step(1)
    before, stored = pool.read(run.indices[LIVE]), pool.state.clone()
    pool.settle(run.indices)
    assert torch.equal(pool.read(run.indices[LIVE]), as_stored(before, FP8))
    assert not same_bits(pool.state[3], stored[3]) and same_bits(pool.state[[1, 2, 5]], stored[[1, 2, 5]])


@pytest.mark.parametrize("key_dtype", [BF16, FP32])
def test_settling_by_a_kernel_as_on_a_gpu(key_dtype):
    pool = poisoned_pool(key_dtype=key_dtype)
    run = Steps(pool)
    pool.ring.span[SLOTS] = 4
    run.step(0, io_dtype=key_dtype)
    run.step(1, io_dtype=key_dtype)
    pool.ring.span[20] = 9  # nothing is pending
    before, stored = pool.read(run.indices[LIVE]), pool.state.clone()
    replay_fp8_copies.settle(pool.state, pool.scales, pool.ring, run.indices)
    pool.ring.span[:] = 0
    error = (pool.read(run.indices[LIVE]) - before).abs()
    assert (error <= 0.51 * fp8_allowed(before) + CORRECTIONS[FP8] * before.abs().max()).all()
    assert not same_bits(pool.state[3], stored[3]) and same_bits(pool.state[20], stored[20])
    assert same_bits(pool.state[[1, 2, 5]], stored[[1, 2, 5]]) and pool.scales[[1, 2, 5]].isnan().all()


def test_copies_are_stored_rounded_to_nearest():
    pool = poisoned_pool(key_dtype=FP32)
    run = Steps(pool)
    copies = replay_fp8_copies.copied(pool.launch_state, run.indices, FP32)
    assert torch.equal(copies[LIVE], pool.read(run.indices[LIVE]))
    copies[LIVE] = torch.randn(copies[LIVE].shape, generator=torch.Generator().manual_seed(1))
    copies[3, 1, 5, 0] = torch.nan
    kept = pool.state.clone(), pool.scales.clone()
    starts = torch.tensor([0, 3, 4, 4, 6])  # the row of slot 20 is empty
    replay_fp8_copies.stored(copies, pool.launch_state, run.indices, starts)
    copies[3, 1, 5] = torch.nan  # the whole row
    read = pool.read(run.indices[[0, 3]])
    assert torch.equal(read.isnan(), copies[[0, 3]].isnan())
    assert torch.equal(read.nan_to_num(7.0), as_stored(copies[[0, 3]], FP8).nan_to_num(7.0))
    others = [slot for slot in range(22) if slot not in (3, 4)]
    assert same_bits(pool.state[others], kept[0][others]) and same_bits(pool.scales[others], kept[1][others])


def test_prefill_then_decode():
    """Prefill goes on from the settled state and rounds its last; an empty sequence and padding change nothing."""
    pool = poisoned_pool(key_dtype=FP32)
    run = Steps(pool)
    pool.ring.span[SLOTS] = 4
    run.step(0, io_dtype=FP32)
    pool.settle(run.indices)  # as prefill does first
    kept = pool.state[20].clone(), pool.scales[20].clone()
    start = pool.read(run.indices[LIVE]).double()
    x = make_inputs(TINY, 12, dtype=FP32, seed=1, strong_decay=False)
    bounds = torch.tensor([0, 5, 8, 8, 12], dtype=torch.int32)
    o = prefill(*x.arguments(), **x.gates(), pool=pool, indices=run.indices, cu_seqlens=bounds, backend="triton")
    live = torch.tensor([0, 5, 5, 9], dtype=torch.int32)  # without the padding sequence
    tokens = [*range(5), *range(8, 12)]
    arguments = [t[tokens] for t in x.arguments()]
    expected, states = reference.prefill(*arguments, **x.gates(), cu_seqlens=live, state=start)
    assert_close("o", o[tokens], expected, FP32, interpreted=True, extra=LOGARITHMS)
    assert same_bits(pool.state[20], kept[0]) and torch.equal(pool.scales[20], kept[1])
    for row in (0, 2):
        actual = pool.read(run.indices[LIVE][row : row + 1])[0].double()
        error = (actual - states[row]).abs()
        assert (error <= 0.6 * fp8_allowed(states[row]) + LOGARITHMS * states[row].abs().max()).all()
    run.state = pool.read(run.indices[LIVE]).double()
    run.step(2, io_dtype=FP32)


def test_verify_commit_and_decode():
    """Verify starts from the settled state and leaves it; a committed state is what a step then goes on from."""
    pool = poisoned_pool(key_dtype=FP32)
    run = Steps(pool)
    pool.ring.span[SLOTS] = 4
    run.step(0, io_dtype=FP32)
    pool.settle(run.indices)  # as verify does first
    pool.reserve_drafts(4, 2)
    start, kept = pool.read(run.indices[LIVE]).double(), pool.state.clone()
    x = make_inputs(TINY, 4, tokens=2, dtype=FP32, seed=1, strong_decay=False)
    options = {**x.gates(), "pool": pool, "indices": run.indices, "backend": "triton"}
    keep = {"intermediate_states": pool.intermediate_states, "update_state": False}
    o = verify(*x.arguments(), **options, **keep)
    arguments = [t[LIVE] for t in x.arguments()]
    expected, after = reference.verify(*arguments, **x.gates(), state=start)
    assert_close("o", o[LIVE], expected, BF16, interpreted=True, extra=2 * CORRECTIONS[BF16])
    assert_close("states", pool.intermediate_states[LIVE], after, BF16, interpreted=True, extra=2 * CORRECTIONS[BF16])
    assert same_bits(pool.state, kept)
    pool.commit(run.indices, torch.tensor([1, 0, 0, 2]))
    assert torch.equal(pool.read(run.indices[:1]), as_stored(pool.intermediate_states[:1, 0].float(), FP8))
    assert torch.equal(pool.read(run.indices[2:3]).double(), start[1:2])
    run.state = pool.read(run.indices[LIVE]).double()
    run.step(2, io_dtype=FP32)
    verify(*x.arguments(), **options)
    assert same_bits(pool.state[[1, 2, 5]], kept[[1, 2, 5]]) and not same_bits(pool.state[20], kept[20])


def test_a_row_that_is_not_finite_stays_one():
    pool = poisoned_pool()
    run = Steps(pool)
    pool.ring.span[SLOTS] = C - 1
    pool.scales[3, 1, 5] = torch.nan
    x = make_inputs(TINY, len(INDICES), seed=0)
    decode(*x.arguments(), **x.gates(), pool=pool, indices=run.indices, backend=REPLAY)
    read = pool.read(run.indices[LIVE])
    assert read[0, 1, 5].isnan().all() and read.isnan().sum() == 32
    assert pool.state[[20, 4]].float().abs().max() <= LARGEST


def test_auto_takes_it():
    call = registry.Call("decode", "VK", FP8, BF16, torch.int32, TINY, torch.device("cpu"), None, True, C, BF16)
    assert registry.serving("triton", call) == REPLAY and registry.defers("triton", call)


def test_isolation():
    """NaN in one row changes no bit of another."""
    assert not reached(registry.VARIANTS[REPLAY], "decode", TINY, FP8)
