"""StatePool.commit() on checked arguments: the accepted part of a row's drafts becomes its state and its window."""

import functools

import torch

from .models import CONV_WINDOW
from .ring import store


def drafts(pool, rows: int, intermediate_states, draft_inputs):
    """Return what StatePool.commit() was given, or the first rows of what the pool has reserved. ValueError."""
    if intermediate_states is None and draft_inputs is None:
        if pool.intermediate_states is None or len(pool.intermediate_states) < rows:
            held = "none" if pool.intermediate_states is None else str(len(pool.intermediate_states))
            raise ValueError(
                f"indices: expected at most as many rows as reserve_drafts() made room for ({held}), got {rows}; "
                "reserve more, or pass intermediate_states and draft_inputs"
            )
        return pool.intermediate_states[:rows], pool.draft_inputs[:rows]
    if intermediate_states is None or draft_inputs is None:
        missing = "draft_inputs" if draft_inputs is None else "intermediate_states"
        raise ValueError(
            f"{missing}: expected both or neither, got None; state and convolution window roll back together"
        )
    return intermediate_states, draft_inputs


def commit(state, conv, indices, accepted, intermediate_states, draft_inputs, scales=None) -> None:
    """Copy each row's last accepted state into its slot and shift its window. By index, without synchronising.

    scales: of an FP8 state's rows, which is rounded to nearest.
    """
    if kernels := _commit_kernels() if state.device.type == "cuda" and scales is None else None:
        return kernels.commit(state, conv, indices, accepted, intermediate_states, draft_inputs)
    accepted = torch.where(indices >= 0, accepted, 0).long()
    # Rows that stay as they are write to the null slot: how many do need not be known here
    slots = torch.where(accepted > 0, indices, 0).long()
    row = torch.arange(len(indices), device=state.device)
    last = intermediate_states[row, accepted - 1]
    if scales is None:
        state.index_copy_(0, slots, last)
    else:
        store(state, scales, slots, last, accepted > 0)
    inputs = torch.cat([conv[slots], draft_inputs], dim=-1)  # [B, conv_dim, 3 + T]
    window = accepted[:, None] + torch.arange(CONV_WINDOW, device=state.device)
    window = window[:, None, :].expand(-1, conv.shape[1], -1)
    conv.index_copy_(0, slots, inputs.gather(-1, window))


@functools.cache
def _commit_kernels():
    """pool_kernels.py, or None without Triton."""
    try:
        from . import pool_kernels
    except ImportError:
        return None
    return pool_kernels
