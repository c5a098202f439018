"""Sweep: cases timed in turns on pools so large that state comes from memory, as in serving.

Every call works on slots of its own, disjoint from those of the call before, until the pool is used up.
"""

from math import ceil

import torch

from ..pool import StatePool
from ..tolerances import Check
from ..trace import nvtx_range
from .roof import l2_bytes
from .rows import timing_fields
from .timers import TimerUnavailable, Timing, time_interleaved

STATE_STD = 0.1  # of the random state at the start: about what updates of unit v and k leave in a running one
L2_MULTIPLE = 4  # state touched before a slot comes up again, in L2 caches
MIN_REPLAY_US = 400  # a replay should last this long even at the roof, so that its start does not matter
POOLS_SHARE = 0.4  # of free GPU memory that pools may take


class Sweep:
    """Pools, and what is done with them for one batch size at a time.

    What is swept is said by a class made of this one:

        inputs(batch)                               what every case is given
        calls_of(case, inputs, index_sets, out)     a case's calls, without arguments: one for each set of indices
        check(batch)                                {case: Check}, each case held against the oracle
        bytes(batch, case=None)                     that a call must move; without a case, of the case that moves least
        bytes_formula(case)                         and what they are
    """

    def __init__(self, shape, cases, dtype, io_dtype, device, slots, seed, roof):
        self.shape, self.cases, self.dtype, self.io_dtype, self.device = shape, cases, dtype, io_dtype, device
        self.slots, self.seed, self.roof = slots, seed, roof
        layouts = {case.layout for case in cases}
        self.pools = {layout: StatePool(shape, slots, layout=layout, dtype=dtype, device=device) for layout in layouts}
        rng = torch.Generator(device).manual_seed(seed)
        for pool in self.pools.values():
            for part in pool.state.split(64):
                part.normal_(0, STATE_STD, generator=rng)

    def index_sets(self, batch: int) -> list[torch.Tensor]:
        """Slots of each call, int32 [B] each: a random order of all slots cut into calls, and over again."""
        order = torch.randperm(self.slots - 1, generator=torch.Generator().manual_seed(self.seed)) + 1
        sets = order.to(self.device, torch.int32).split(batch)[: (self.slots - 1) // batch]
        # copies, because FlashInfer needs indices to begin at a multiple of 32 bytes
        return [sets[call % len(sets)].clone() for call in range(self.calls(batch))]

    def calls(self, batch: int) -> int:
        """Calls in one replay: enough to go round several L2 caches, and to last."""
        if self.device.type == "cpu":
            return min(4, (self.slots - 1) // batch)
        at_roof_us = self.bytes(batch) / self.roof.gb_per_s / 1e3
        cold = ceil(L2_MULTIPLE * l2_bytes(self.device) / self.touched(batch, 1))
        long = min(1024, ceil(MIN_REPLAY_US / at_roof_us))
        return min(4096, max(cold, long, 16 if at_roof_us < 100 else 8))

    def touched(self, batch: int, calls: int) -> int:
        """Bytes of state that `calls` calls read, each slot once."""
        distinct = min(calls, (self.slots - 1) // batch)
        return distinct * batch * self.shape.state_elements * self.dtype.itemsize

    def l2(self, batch: int) -> str:
        if self.device.type == "cpu":
            return "not controlled"
        return "cold" if self.touched(batch, self.calls(batch)) >= L2_MULTIPLE * l2_bytes(self.device) else "warm"

    def time(self, batch, timer, samples, cases, checks, share) -> list[dict]:
        """Rows of the cases that are right, timed in turns; refusals with the reason if the timer cannot do it."""
        if not cases:
            share(1.0)
            return []
        inputs, index_sets = self.inputs(batch), self.index_sets(batch)
        out = torch.empty_like(inputs.v, memory_format=torch.contiguous_format)
        calls = {case.key: self.calls_of(case, inputs, index_sets, out) for case in cases}
        try:
            with nvtx_range(f"B = {batch}, {timer}"):  # a range to find it by in Nsight Systems
                timings = time_interleaved(calls, timer=timer, device=self.device, samples=samples, progress=share)
        except TimerUnavailable as error:
            refused = {"status": "refused", "timer": timer, "reason": str(error)}
            return [self.case_fields(case, batch, checks[case]) | refused for case in cases]
        self.check_finite(batch)
        return [
            self.case_fields(case, batch, checks[case]) | self.timing_fields(case, batch, timings[case.key])
            for case in cases
        ]

    def check_finite(self, batch: int) -> None:
        """RuntimeError if some variant has driven its state to NaN or infinity over the replays."""
        for layout, pool in self.pools.items():
            if not all(bool(torch.isfinite(part).all()) for part in pool.state.split(64)):
                raise RuntimeError(
                    f"the state of the {layout} pool is no longer finite after the calls at B = {batch}; times on it "
                    "mean nothing: run the variants one by one to find which it is"
                )

    def case_fields(self, case, batch: int, check: Check) -> dict:
        return {
            "backend": case.backend, "variant": case.variant, "indexing": case.indexing, "layout": case.layout,
            "batch": batch, "slots": self.slots, "max_abs_error": check.max_abs_error,
            "max_abs_error_state": check.max_abs_error_state,
        }  # fmt: skip

    def timing_fields(self, case, batch: int, timing: Timing) -> dict:
        nbytes, formula = self.bytes(batch, case), self.bytes_formula(case)
        return timing_fields(timing, nbytes, formula, self.roof, self.device, self.l2(batch))


def pool_slots(slots, shape, dtype, max_batch, cases, device) -> int:
    """Slots of each pool: 2 · B + 1 at least, so that consecutive calls share none."""
    least = 2 * max_batch + 1
    if slots is not None:
        if type(slots) is not int or slots < least:
            raise ValueError(
                f"slots: expected an int of at least {least} (2 · B + 1 for B = {max_batch}), got {slots!r}"
            )
        return slots
    if device.type == "cpu" or not cases:
        return max(least, 16)
    per_slot = StatePool.slot_nbytes(shape, dtype)
    wanted = max(2048, least, ceil(2 * L2_MULTIPLE * l2_bytes(device) / per_slot["state"]) + 1)
    torch.cuda.empty_cache()
    layouts = len({case.layout for case in cases})
    budget = int(POOLS_SHARE * torch.cuda.mem_get_info(device)[0])
    affordable = budget // (layouts * sum(per_slot.values())) - (max_batch + 1)  # the rest is scratch for gathering
    if affordable < least:
        size = sum(per_slot.values()) / 1e6
        raise ValueError(
            f"batches: B = {max_batch} needs {layouts} pools of {least} slots of {size:.1f} MB, more than "
            f"{POOLS_SHARE:.0%} of the GPU's free memory ({budget / 1e9:.1f} GB); choose smaller batches"
        )
    return min(wanted, affordable)
