"""Deferred write-back of an FP8 state on the CPU, in Triton's interpreter, over folds, against the reference.

Run by test_triton_interpreter.py in a process of its own, under TRITON_INTERPRET=1.
"""

import pytest
import torch
from against_reference import PADDING, as_strided
from tolerances import assert_close

from gdn_lab import GDNShape, StatePool, decode, reference
from gdn_lab.backends.triton import backend
from gdn_lab.e4m3 import FP8
from gdn_lab.ops import make_inputs
from gdn_lab.tolerances import CORRECTIONS, fp8_allowed

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
        full = (self.pool.ring.span[SLOTS, 1] == self.pool.ring.updates).tolist()
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


@pytest.mark.parametrize("io_dtype, strong_decay, steps", [(BF16, False, C + 4), (BF16, True, 5), (FP32, False, 5)])
def test_folds_from_mixed_phases(io_dtype, strong_decay, steps):
    """Every step's output and state, through a fold of each slot; slots that no row names keep their NaN."""
    pool = poisoned_pool(key_dtype=io_dtype)
    run = Steps(pool)
    phases = [C - 2, C - 3, C - 2]  # some rows fold together, some apart
    pool.ring.span[SLOTS] = torch.tensor(phases, dtype=torch.int32)[:, None]
    for step in range(steps):
        run.step(step, io_dtype=io_dtype, strong_decay=strong_decay)
    assert pool.ring.span[SLOTS].tolist() == [[0, (phase + steps) % (C + 1)] for phase in phases]
    unnamed = [slot for slot in range(1, 22) if slot not in INDICES]
    assert pool.state[unnamed].float().isnan().all() and pool.scales[unnamed].isnan().all()
    assert pool.launch_state.rounding.steps[SLOTS].tolist() == [(phase + steps) // (C + 1) for phase in phases]
