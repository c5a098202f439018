"""Pools so large that a sweep reads state from memory and not from the L2, as in serving.

Every call works on slots of its own, disjoint from those of the call before, until the pool is used up.
"""

from math import ceil

import torch

from ..pool import StatePool
from ..rounding import FP8
from .free_memory import POOLS_SHARE
from .roof import l2_bytes

STATE_STD = 0.1  # of the random state at the start: about what updates of unit v and k leave in a running one
L2_MULTIPLE = 4  # state touched before a slot is reused, in multiples of the L2 size
MIN_REPLAY_US = 400  # a replay should last this long even at the measured bandwidth, so that its start does not matter
STATE_PART = 64  # slots filled or checked at once, so that little memory is needed next to the pool


def random_pools(
    shape, slots: int, names, *, dtype, device, seed: int, io_dtype=torch.bfloat16
) -> dict[str, StatePool]:
    """Make pools by name, a layout or Case.pool, whose state is normal with standard deviation STATE_STD."""
    rng = torch.Generator(device).manual_seed(seed)
    pools = {name: StatePool(shape, slots, layout=name[:2], dtype=dtype, device=device) for name in names}
    for name, pool in pools.items():
        if ring := name[2:].removeprefix(", ring of "):
            pool.reserve_ring(int(ring), key_dtype=io_dtype)
        fill(pool, rng)
    return pools


def fill(pool: StatePool, rng: torch.Generator) -> None:
    """Fill every slot with random state of standard deviation STATE_STD."""
    if pool.scales is None:
        for part in pool.state.split(STATE_PART):
            part.normal_(0, STATE_STD, generator=rng)
        return
    for slots in torch.arange(pool.slots, device=pool.device).split(STATE_PART):
        shape = (len(slots), *pool.state.shape[1:])
        pool.write(slots, torch.empty(shape, device=pool.device).normal_(0, STATE_STD, generator=rng))


def is_finite(pool: StatePool) -> bool:
    """Tell whether the state, with what is pending, has no NaN and no infinity."""
    pending = pool.ring.corrections.split(STATE_PART) if pool.ring else ()
    scales = () if pool.scales is None else (pool.scales,)
    parts = (*pool.state.split(STATE_PART), *pending, *scales)
    return all(bool(torch.isfinite(part.float() if part.dtype is FP8 else part).all()) for part in parts)


def require_finite(pools: dict[str, StatePool], where: str) -> None:
    """Raise RuntimeError if some variant has driven its state to NaN or infinity. where: the point of the sweep."""
    for layout, pool in pools.items():
        if not is_finite(pool):
            raise RuntimeError(
                f"the state of the {layout} pool is no longer finite after the calls at {where}; times on it mean "
                "nothing: run the variants one by one to find which it is"
            )


def slot_sets(slots: int, batch: int, calls: int, *, device, seed: int) -> list[torch.Tensor]:
    """Draw the slots of each call, int32 [batch] each: a random order of all slots, cut into calls and repeated."""
    order = torch.randperm(slots - 1, generator=torch.Generator().manual_seed(seed)) + 1
    sets = order.to(device, torch.int32).split(batch)[: (slots - 1) // batch]
    # Copies, because FlashInfer needs indices that begin at a multiple of 32 bytes.
    return [sets[call % len(sets)].clone() for call in range(calls)]


def state_touched(shape, dtype, slots: int, batch: int, calls: int) -> int:
    """Bytes of state that `calls` calls read, each slot counted once."""
    distinct = min(calls, (slots - 1) // batch)
    return distinct * batch * shape.state_elements * dtype.itemsize


def calls_in_a_replay(shape, dtype, slots: int, batch: int, *, device, call_us: float) -> int:
    """Choose the calls of one replay: enough to touch L2_MULTIPLE L2 caches, and to last MIN_REPLAY_US.

    call_us: the shortest that a call can take, at the measured bandwidth.
    """
    if device.type == "cpu":
        return min(4, (slots - 1) // batch)
    cold = ceil(L2_MULTIPLE * l2_bytes(device) / state_touched(shape, dtype, slots, batch, 1))
    long = min(1024, ceil(MIN_REPLAY_US / call_us))
    return min(4096, max(cold, long, 16 if call_us < 100 else 8))


def l2_state(nbytes: int, device) -> str:
    """Say where calls that touch `nbytes` read from: "cold" (memory), "warm" (partly L2), "not controlled" (a CPU)."""
    if device.type == "cpu":
        return "not controlled"
    return "cold" if nbytes >= L2_MULTIPLE * l2_bytes(device) else "warm"


def pool_slots(slots, shape, dtype, max_batch, cases, device) -> int:
    """Choose the slots of each pool, at least 2 · B + 1 so that consecutive calls share none.

    slots: taken if it is enough, or None. Raises ValueError if it is not, or if the GPU lacks the memory.
    """
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
    layouts = len({case.pool for case in cases})
    budget = int(POOLS_SHARE * torch.cuda.mem_get_info(device)[0])
    affordable = budget // (layouts * sum(per_slot.values())) - (max_batch + 1)  # the rest is scratch for gathering
    if affordable < least:
        size = sum(per_slot.values()) / 1e6
        raise ValueError(
            f"batches: B = {max_batch} needs {layouts} pools of {least} slots of {size:.1f} MB, more than "
            f"{POOLS_SHARE:.0%} of the GPU's free memory ({budget / 1e9:.1f} GB); choose smaller batches"
        )
    return min(wanted, affordable)
