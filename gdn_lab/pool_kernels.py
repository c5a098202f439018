"""StatePool.commit() on a GPU: two copies by index in Triton. pool.py imports this only where there is a GPU.

Rows with nothing accepted, and padding, are left out by the kernels themselves: the host never learns which they are.
"""

import torch
import triton
import triton.language as tl

BLOCK = 8192  # elements of a state that one program copies
CHANNELS = 512  # channels of a window that one program moves on


@triton.jit
def state_kernel(
    state, states, indices, accepted, states_row, ELEMENTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """state [slots, ELEMENTS], states [B, T, ELEMENTS] with rows states_row apart. Grid: [⌈ELEMENTS / BLOCK⌉ · B]."""
    BLOCKS: tl.constexpr = (ELEMENTS + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // BLOCKS).to(tl.int64)
    i = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(indices + row).to(tl.int64)
    count = tl.load(accepted + row).to(tl.int64)
    if slot >= 0:
        if count > 0:
            last = tl.load(states + row * states_row + (count - 1) * ELEMENTS + i, mask=i < ELEMENTS)
            tl.store(state + slot * ELEMENTS + i, last, mask=i < ELEMENTS)


@triton.jit
def window_kernel(
    conv, inputs, indices, accepted, inputs_row, inputs_channel,
    DIM: tl.constexpr, WINDOW: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """conv [slots, DIM, 3], inputs [B, DIM, T]. Grid: [⌈DIM / CHANNELS⌉ · B]. A thread moves its channels' three
    elements: all are read before any is written."""
    BLOCKS: tl.constexpr = (DIM + CHANNELS - 1) // CHANNELS
    row = (tl.program_id(0) // BLOCKS).to(tl.int64)
    c = tl.program_id(0) % BLOCKS * CHANNELS + tl.arange(0, CHANNELS)
    slot = tl.load(indices + row).to(tl.int64)
    count = tl.load(accepted + row)
    if slot >= 0:
        if count > 0:
            window = conv + (slot * DIM + c) * WINDOW
            fed = inputs + row * inputs_row + c * inputs_channel - WINDOW
            inside = c < DIM
            # Element p of the old window followed by the inputs, p = count, count + 1, count + 2; count is at least 1
            x0 = tl.load(tl.where(count < WINDOW, window + count, fed + count), mask=inside)
            x1 = tl.load(tl.where(count + 1 < WINDOW, window + count + 1, fed + count + 1), mask=inside)
            x2 = tl.load(fed + count + 2, mask=inside)
            tl.store(window, x0, mask=inside)
            tl.store(window + 1, x1, mask=inside)
            tl.store(window + 2, x2, mask=inside)


def commit(state, conv, indices, accepted, intermediate_states, draft_inputs) -> None:
    """What StatePool.commit() does, for checked arguments. draft_inputs: the last dimension contiguous."""
    rows, elements = len(indices), state[0].numel()
    if not rows:
        return
    with torch.cuda.device_of(state):
        state_kernel[(triton.cdiv(elements, BLOCK) * rows,)](
            state, intermediate_states, indices, accepted, intermediate_states.stride(0), elements, BLOCK, num_warps=4
        )
        window_kernel[(triton.cdiv(conv.shape[1], CHANNELS) * rows,)](
            conv, draft_inputs, indices, accepted, *draft_inputs.stride()[:2], conv.shape[1], conv.shape[2], CHANNELS,
            num_warps=4,
        )  # fmt: skip
