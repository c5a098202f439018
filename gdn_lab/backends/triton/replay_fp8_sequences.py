"""Prefill on an FP8 pool: the sequences' states are copied out as float32, taken by prefill.py's kernels, and rounded.

A sequence's state is rounded once, to nearest, whatever its length. The copies weigh little beside the arithmetic of a
prompt: there is one for each sequence, not for each token.
"""

import torch

from ...e4m3 import RowScaled, quantised
from ..base import State
from . import prefill


def prefill_launch(call):
    """Return the launch function of prefill for a call (base.Call). Empty sequences keep the bits of their state."""
    launch_float32 = prefill.prefill_launch(call._replace(state_dtype=torch.float32))

    def launch(q, k, v, a, b, *, state, indices, cu_seqlens, **options):
        slots = indices.clamp(min=0).long()
        before = RowScaled(state.data[slots], state.scales[slots])
        copies = State(before.dequantised())
        rows = torch.where(indices < 0, -1, torch.arange(len(indices), dtype=indices.dtype, device=indices.device))
        launch_float32(q, k, v, a, b, state=copies, indices=rows, cu_seqlens=cu_seqlens, **options)
        changed = (indices >= 0) & (cu_seqlens[1:] > cu_seqlens[:-1])
        state.data[slots], state.scales[slots] = quantised(copies.data).where(changed, before)

    return launch
