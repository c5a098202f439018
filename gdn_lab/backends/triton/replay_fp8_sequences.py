"""Verify and prefill on an FP8 pool: on copies of the states, by verify.py's kernels in bf16, prefill.py's in float32.

A state is rounded to FP8 once, to nearest, whatever the number of tokens. The copies weigh little beside the arithmetic
of a prompt: there is one for each sequence, not for each token.
"""

import torch

from ...e4m3 import draft_dtype
from ..base import State
from . import prefill, verify
from .replay_fp8_copies import copied, stored


def verify_launch(call):
    """Return the launch function of verify for a call (base.Call)."""
    dtype = draft_dtype(call.state_dtype)
    launch_copies = verify.verify_launch(call._replace(state_dtype=dtype))

    def launch(q, k, v, a, b, *, state, indices, update_state, **options):
        copies = State(copied(state, indices, dtype), state.intermediate)
        launch_copies(q, k, v, a, b, state=copies, indices=numbered(indices), update_state=update_state, **options)
        if update_state:
            stored(copies.data, state, indices)

    return launch


def prefill_launch(call):
    """Return the launch function of prefill for a call (base.Call). Empty sequences keep the bits of their state."""
    launch_copies = prefill.prefill_launch(call._replace(state_dtype=torch.float32))

    def launch(q, k, v, a, b, *, state, indices, cu_seqlens, **options):
        copies = State(copied(state, indices, torch.float32))
        launch_copies(q, k, v, a, b, state=copies, indices=numbered(indices), cu_seqlens=cu_seqlens, **options)
        stored(copies.data, state, indices, cu_seqlens)

    return launch


def numbered(indices: torch.Tensor) -> torch.Tensor:
    """Return the rows 0, 1, … of copies of the slots in `indices` [n], -1 for padding."""
    return torch.where(indices < 0, -1, torch.arange(len(indices), dtype=indices.dtype, device=indices.device))
