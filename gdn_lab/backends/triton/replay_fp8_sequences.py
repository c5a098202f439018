"""Verify and prefill on an FP8 pool: on copies of the states, by verify.py's kernels in bf16, prefill.py's in float32.

A state is rounded to FP8 once, to nearest, whatever the number of tokens. The copies weigh little beside the arithmetic
of a prompt: there is one for each sequence, not for each token.
"""

import torch

from ...e4m3 import RowScaled, draft_dtype, quantised
from ..base import State
from . import prefill, verify


def verify_launch(call):
    """Return the launch function of verify for a call (base.Call)."""
    dtype = draft_dtype(call.state_dtype)
    launch_copies = verify.verify_launch(call._replace(state_dtype=dtype))

    def launch(q, k, v, a, b, *, state, indices, update_state, **options):
        slots, rows, before = copied(state, indices)
        copies = State(before.dequantised().to(dtype), state.intermediate)
        launch_copies(q, k, v, a, b, state=copies, indices=rows, update_state=update_state, **options)
        if update_state:
            state.data[slots], state.scales[slots] = quantised(copies.data).where(indices >= 0, before)

    return launch


def prefill_launch(call):
    """Return the launch function of prefill for a call (base.Call). Empty sequences keep the bits of their state."""
    launch_copies = prefill.prefill_launch(call._replace(state_dtype=torch.float32))

    def launch(q, k, v, a, b, *, state, indices, cu_seqlens, **options):
        slots, rows, before = copied(state, indices)
        copies = State(before.dequantised())
        launch_copies(q, k, v, a, b, state=copies, indices=rows, cu_seqlens=cu_seqlens, **options)
        changed = (indices >= 0) & (cu_seqlens[1:] > cu_seqlens[:-1])
        state.data[slots], state.scales[slots] = quantised(copies.data).where(changed, before)

    return launch


def copied(state: State, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, RowScaled]:
    """Return the slots of `indices` [n], the null slot for padding; the rows 0, 1, … of copies, -1 for padding; and a
    copy of the slots' state."""
    slots = indices.clamp(min=0).long()
    rows = torch.where(indices < 0, -1, torch.arange(len(indices), dtype=indices.dtype, device=indices.device))
    return slots, rows, RowScaled(state.data[slots], state.scales[slots])
