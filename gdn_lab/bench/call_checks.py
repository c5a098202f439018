"""The part of the check before timing that is about memory: strides, slots that a call does not name, padding rows.

Each case is called on a small pool with q, k, v, a and b as views of packed tensors, once as it is, and once with a
padding row (index -1) among the others. All other rows are compared with the reference, and all other slots must stay
as they were, bit for bit: among them the last one, which is slot -1 where indices count from the end, the memory before
slot 0, where slot -1 would lie, and that behind the last one. A padding row's output is undefined, and the null slot is
the backend's.
"""

import torch

from ..pool import StatePool
from ..tolerances import merged
from .pools import random_pools

STRIDED, UNTOUCHED, PADDING = "strided inputs", "untouched slots", "padding row"
CALL_KINDS = (STRIDED, UNTOUCHED, PADDING)
MOST_ROWS = {"cuda": 32, "cpu": 4}  # of such a call, besides the padding row


def check_calls(sweep, point, cases) -> dict:
    """Return {case: {kind: Check}} of what is wrong. sweep: a Sweep; its pools are exchanged meanwhile."""
    wrong, pools = {}, sweep.pools
    try:
        for padded in (False, True) if cases else ():
            for case, found in _check_call(sweep, point, cases, padded).items():
                wrong[case] = wrong.get(case, {}) | found
    finally:
        sweep.pools = pools
    return wrong


def _check_call(sweep, point, cases, padded: bool) -> dict:
    """Make one call of each case, with a padding row or without."""
    live = min(point.batch, sweep.call_rows, MOST_ROWS[sweep.device.type])
    point = point._replace(batch=live + padded)
    slots = _slots(live, padded, sweep.device, sweep.seed)
    layouts = {sweep.pool_layout(case) for case in cases}
    options = {"dtype": sweep.dtype, "io_dtype": sweep.io_dtype, "device": sweep.device, "seed": sweep.seed}
    sweep.pools = random_pools(sweep.shape, 2 * live + 3, layouts, **options)
    memory = {layout: guarded(pool) for layout, pool in sweep.pools.items()}
    sweep.reserve(point)
    inputs, start = sweep.strided_inputs(point), next(iter(sweep.pools.values())).read(slots)
    parts = [part for rows in _live_rows(slots) for part in sweep.reference(inputs, start, rows)]
    wrong = {}
    for case in cases:
        layout = sweep.pool_layout(case)
        sweep.pools[layout].write(slots, start)
        before = memory[layout].clone()
        out = sweep.run_case(case, point, inputs, slots, start, parts)
        if out is None:
            continue
        if padded:
            out[sweep.tokens_of(inputs, live // 2)] = 0
        check = merged([sweep.compare(case, part, out, slots, start) for part in parts])
        changed = changed_slots(before, memory[layout], slots)
        found = {PADDING if padded else STRIDED: check} if not check.right else {}
        if changed:
            found[PADDING if padded else UNTOUCHED] = check._replace(right=False)
        wrong |= {case: found} if found else {}
    return wrong


def _slots(live: int, padded: bool, device, seed: int) -> torch.Tensor:
    """Draw different slots, int32, from 1 to the last but one; where `padded`, with -1 in the middle."""
    order = (torch.randperm(2 * live + 1, generator=torch.Generator().manual_seed(seed)) + 1)[:live].tolist()
    if padded:
        order.insert(live // 2, -1)
    return torch.tensor(order, dtype=torch.int32, device=device)


def _live_rows(slots: torch.Tensor) -> list[list[int]]:
    """Split the rows that are no padding into runs of consecutive ones, as the reference of prefill takes them."""
    runs = [[]]
    for row, slot in enumerate(slots.tolist()):
        if slot < 0:
            runs.append([])
        else:
            runs[-1].append(row)
    return [rows for rows in runs if rows]


def guarded(pool: StatePool) -> torch.Tensor:
    """Move a pool's state between two more slots in memory, and return that memory, [1 + slots + 1, …]."""
    memory = torch.cat([pool.state[-1:], pool.state, pool.state[:1]])
    pool.state = memory[1:-1]
    pool.launch_state = pool.launch_state._replace(data=pool.state)
    return memory


def changed_slots(before: torch.Tensor, after: torch.Tensor, slots: torch.Tensor) -> list[int]:
    """Return the slots that differ in some bit and are neither named nor the null.

    The memory before slot 0 is slot -1, that behind the last one has the number after its.
    """
    bits = torch.int32 if before.itemsize == 4 else torch.int16
    differs = (before.view(bits) != after.view(bits)).flatten(1).any(1).tolist()
    named = {0, *(slot for slot in slots.tolist() if slot >= 0)}
    return [number - 1 for number, changed in enumerate(differs) if changed and number - 1 not in named]
