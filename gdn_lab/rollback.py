"""StatePool.commit() on checked arguments: the accepted part of a row's drafts becomes its state and its window."""

import functools

import torch

from .models import CONV_WINDOW


def commit(state, conv, indices, accepted, intermediate_states, draft_inputs) -> None:
    """Copy each row's last accepted state into its slot and shift its window. By index, without synchronising."""
    if kernels := _commit_kernels() if state.device.type == "cuda" else None:
        return kernels.commit(state, conv, indices, accepted, intermediate_states, draft_inputs)
    accepted = torch.where(indices >= 0, accepted, 0).long()
    # Rows that stay as they are write to the null slot: how many do need not be known here
    slots = torch.where(accepted > 0, indices, 0).long()
    row = torch.arange(len(indices), device=state.device)
    state.index_copy_(0, slots, intermediate_states[row, accepted - 1])
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
