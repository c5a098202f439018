"""The state pool: slots handed out and taken back, one logical layout whatever is stored, 64-bit offsets."""

import math

import numpy
import pytest
import torch
from against_reference import PADDING, filled_pool, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tolerances import assert_close

from gdn_lab import GDNShape, StatePool, decode, reference
from gdn_lab.backends.base import State
from gdn_lab.ops import make_inputs

SHAPE = GDNShape(1, 2, 3, 5)
FORMS = [(layout, dtype) for layout in ("VK", "KV") for dtype in (torch.float32, torch.bfloat16, torch.float16)]
every_form = pytest.mark.parametrize("layout, dtype", FORMS, ids=lambda x: str(x).removeprefix("torch."))
FULL_SLOT = GDNShape(16, 64)  # 2^20 elements a slot


def int32(*slots):
    return torch.tensor(slots, dtype=torch.int32)


class Slots(RuleBasedStateMachine):
    """A pool beside a dictionary of what each handed-out slot must hold, [HV, V, K] float32."""

    def __init__(self):
        super().__init__()
        self.pool = StatePool(SHAPE, 6, layout="KV", dtype=torch.bfloat16)
        self.held = {}
        self.seed = 0

    def random_state(self, n):
        self.seed += 1
        state = torch.randn(n, 2, 5, 3, generator=torch.Generator().manual_seed(self.seed))
        return state.to(torch.bfloat16).float()

    @rule(n=st.integers(0, 3))
    def acquire(self, n):
        if n > self.pool.free:
            with pytest.raises(RuntimeError, match="the pool is full"):
                self.pool.acquire(n)
            return
        slots = self.pool.acquire(n)
        assert slots.dtype == torch.int32 and slots.shape == (n,)
        assert not set(slots.tolist()) & {0, *self.held} and len(set(slots.tolist())) == n
        self.held |= {slot: torch.zeros(2, 5, 3) for slot in slots.tolist()}

    @precondition(lambda self: self.held)
    @rule(data=st.data(), pad=st.booleans(), dtype=st.sampled_from([torch.int32, torch.int64]))
    def release(self, data, pad, dtype):
        given_back = data.draw(st.lists(st.sampled_from(sorted(self.held)), min_size=1, unique=True))
        self.pool.release(torch.tensor(given_back + [PADDING] * pad, dtype=dtype))
        for slot in given_back:
            del self.held[slot]

    @rule(slot=st.integers(0, 5))
    def release_of_an_idle_slot_is_refused(self, slot):
        if slot in self.held:
            return
        some = sorted(self.held)[:1]
        with pytest.raises(ValueError, match="handed out"):
            self.pool.release(int32(*some, slot))  # nothing is released, the good one neither: see the invariant

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def write(self, data):
        slots = data.draw(st.lists(st.sampled_from(sorted(self.held)), min_size=1, unique=True))
        state = self.random_state(len(slots) + 1)
        self.pool.write(int32(*slots, PADDING), state)
        self.held |= dict(zip(slots, state, strict=False))
        self.pool.conv[slots] = 1.0

    @rule()
    def overwrite_what_nobody_holds(self):
        idle = sorted({0, 1, 2, 3, 4, 5} - set(self.held))
        self.pool.state[idle] = torch.nan
        self.pool.conv[idle] = torch.nan

    @rule(layout=st.sampled_from(["VK", "KV"]))
    def convert(self, layout):
        self.pool = self.pool.to(layout=layout)

    @invariant()
    def every_held_slot_is_as_it_was_left(self):
        assert self.pool.free == 5 - len(self.held)
        slots = sorted(self.held)
        state = self.pool.read(int32(*slots, PADDING))
        assert state.dtype == torch.float32 and state.shape == (len(slots) + 1, 2, 5, 3) and not state[-1].any()
        assert all(same_bits(state[i], self.held[slot]) for i, slot in enumerate(slots))
        assert torch.isfinite(self.pool.conv[slots]).all()


Slots.TestCase.settings = settings(max_examples=40, stateful_step_count=20)
test_slots = Slots.TestCase


@every_form
def test_what_is_allocated(layout, dtype):
    pool = StatePool(SHAPE, 7, layout=layout, dtype=dtype)
    assert pool.state.shape == ((7, 2, 5, 3) if layout == "VK" else (7, 2, 3, 5)) and pool.state.is_contiguous()
    assert pool.conv.shape == (7, 2 * 3 + 2 * 5, 3) and pool.conv.dtype == torch.bfloat16
    assert pool.state.dtype == pool.dtype == dtype and not pool.state.any() and not pool.conv.any()
    assert pool.free == 6 and pool.layout == layout and pool.device == torch.device("cpu")
    assert pool.nbytes == pool.state.nbytes + pool.conv.nbytes
    one = StatePool.slot_nbytes(SHAPE, dtype)
    assert (7 * one["state"], 7 * one["conv"]) == (pool.state.nbytes, pool.conv.nbytes)
    assert "7 slots" in repr(pool) and layout in repr(pool) and "6 free" in repr(pool)


def test_a_slot_of_the_largest_model_costs_two_megabytes():
    assert StatePool.slot_nbytes(GDNShape.from_model("qwen3.5-397b-a17b")) == {"state": 2**21, "conv": 12288 * 3 * 2}


@every_form
def test_logical_layout_of_read_and_write(layout, dtype):
    """[n, HV, V, K]: element (v, k) lies at [v, k] of a VK slot and at [k, v] of a KV one."""
    pool = StatePool(SHAPE, 4, layout=layout, dtype=dtype)
    state = torch.arange(30.0).view(1, 2, 5, 3)
    pool.write(int32(2), state)
    assert pool.state[2, 1, 4, 0] == 27.0 if layout == "VK" else pool.state[2, 1, 0, 4] == 27.0
    assert torch.equal(pool.read(int32(2)), state)
    assert not pool.state[[0, 1, 3]].any()


@every_form
def test_write_rounds_to_nearest(layout, dtype):
    pool = StatePool(SHAPE, 3, layout=layout, dtype=dtype)
    state = torch.randn(1, 2, 5, 3, dtype=torch.float64)
    pool.write(torch.tensor([1]), state)
    assert torch.equal(pool.read(torch.tensor([1])), state.to(dtype).float())


@given(st.sampled_from(FORMS), st.lists(st.integers(1, 8), unique=True, max_size=8), st.integers(0, 99))
def test_reading_and_writing_back_changes_nothing(form, slots, seed):
    layout, dtype = form
    pool = filled_pool(SHAPE, 9, layout=layout, dtype=dtype, seed=seed)
    before = pool.state.clone()
    state = pool.read(torch.tensor(slots, dtype=torch.int64))
    assert same_bits(pool.state, before)
    pool.write(torch.tensor(slots, dtype=torch.int64), state)
    assert same_bits(pool.state, before)
    pool.write(torch.tensor(slots, dtype=torch.int64), state + 1)
    others = [slot for slot in range(9) if slot not in slots]
    assert same_bits(pool.state[others], before[others])
    assert not slots or not same_bits(pool.state, before)


@given(
    st.sampled_from(FORMS),
    st.sampled_from(["VK", "KV"]),
    st.sampled_from([None, torch.float32]),
    st.integers(0, 99),
    st.integers(0, 5),
)
def test_converting_there_and_back_is_exact(form, layout, dtype, seed, taken):
    """Through the other layout and through float32, which holds every bf16 and fp16 number; slots stay handed out."""
    pool = filled_pool(SHAPE, 9, layout=form[0], dtype=form[1], seed=seed)
    held = pool.acquire(taken)
    pool.write(held, torch.randn(taken, 2, 5, 3))
    there = pool.to(layout=layout, dtype=dtype)
    assert (there.layout, there.dtype) == (layout, dtype or pool.dtype)
    assert torch.equal(there.read(torch.arange(9)), pool.read(torch.arange(9)))
    back = there.to(layout=pool.layout, dtype=pool.dtype)
    assert same_bits(back.state, pool.state) and same_bits(back.conv, pool.conv)
    assert back.free == pool.free and back.acquire(2).tolist() == pool.acquire(2).tolist()
    back.state.fill_(7)
    assert not (pool.state == 7).all(), "a conversion shares memory with its source"


def test_acquired_slots_come_zeroed_and_lowest_first():
    pool = filled_pool(SHAPE, 5, layout="VK", dtype=torch.float32)
    others = pool.state[[0, 3, 4]].clone()
    slots = pool.acquire(2)
    assert slots.tolist() == [1, 2]
    assert not pool.state[[1, 2]].any() and not pool.conv[[1, 2]].any()
    assert same_bits(pool.state[[0, 3, 4]], others)
    pool.release(slots)
    assert pool.free == 4 and pool.acquire(4).unique().tolist() == [1, 2, 3, 4]


def test_released_slots_come_back_first_in_their_order():
    """A pool stays as packed as it can be, and which slots a request gets does not depend on chance."""
    pool = StatePool(SHAPE, 7)
    assert pool.acquire(4).tolist() == [1, 2, 3, 4]
    pool.release(int32(2, 3))
    assert pool.acquire(3).tolist() == [2, 3, 5]
    pool.release(int32(1, PADDING, 4))
    assert [pool.acquire(1).item() for _ in range(3)] == [1, 4, 6]


def test_a_full_pool_hands_out_nothing():
    pool = StatePool(SHAPE, 4)
    pool.acquire(2)
    with pytest.raises(RuntimeError, match=r"acquire\(2\) with 1 of 3 slots free; release slots first"):
        pool.acquire(2)
    assert pool.free == 1 and pool.acquire(1).tolist() == [3]


def lazy_pool(shape, slots, *, layout, dtype=torch.bfloat16):
    """A pool of many slots whose memory the system provides when it is first written: 4 GB of zeros cost nothing."""
    pool = StatePool(shape, 2, layout=layout, dtype=dtype)
    whole = (slots, *pool.state.shape[1:])
    pool.slots, pool.state = slots, torch.from_numpy(numpy.zeros(math.prod(whole), numpy.int16)).view(dtype).view(whole)
    pool.launch_state = State(pool.state)
    return pool


@pytest.mark.parametrize("layout", ["VK", "KV"])
def test_offsets_beyond_2_31_elements(layout):
    """Slot 2,048 begins at element 2^31; slots on both sides of it and the very last. int32 offsets would wrap."""
    pool = lazy_pool(FULL_SLOT, 2100, layout=layout)
    assert pool.state.numel() > 2**31
    indices = int32(2048, 1, PADDING, 2099, 2047)
    live = [0, 1, 3, 4]
    old = torch.randn(4, 64, 128, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    pool.write(indices[live], old)
    assert torch.equal(pool.read(indices[live]), old.float())
    x = make_inputs(FULL_SLOT, 5)
    o = decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend="torch")
    expected_o, expected = reference.decode(*(t[live] for t in x.arguments()), **x.gates(), state=old)
    assert_close("o", o[live], expected_o, torch.bfloat16)
    assert_close("state", pool.read(indices[live]), expected, torch.bfloat16)
    assert not pool.state[[2, 3, 2046, 2049, 2098]].any()
