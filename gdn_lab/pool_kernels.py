"""StatePool.commit() on a GPU: two copies by index in Triton. pool.py imports this only where there is a GPU.

The kernels themselves skip padding and rows with nothing accepted, so the host need not know which those are.
"""

import torch
import triton
import triton.language as tl

BLOCK = 8192  # elements of a state that one program copies
CHANNELS = 512  # channels of a window that one program shifts


@triton.jit
def state_kernel(state, states, indices, accepted, states_row, ELEMENTS: tl.constexpr, BLOCK: tl.constexpr):
    """Copy BLOCK elements of a row's last accepted state into its slot. Grid: [⌈ELEMENTS / BLOCK⌉ · B].

    state [slots, ELEMENTS]; states [B, T, ELEMENTS], states_row elements from one row to the next.
    """
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
    """Shift CHANNELS channels of a row's convolution window by its accepted tokens. Grid: [⌈DIM / CHANNELS⌉ · B].

    conv [slots, DIM, 3], inputs [B, DIM, T]. A thread has all three elements of its channels, and reads them before it
    writes any.
    """
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
    """Launch what StatePool.commit() does, for checked arguments. draft_inputs: the last dimension contiguous."""
    rows, elements = len(indices), state[0].numel()
    if not rows:
        return
    with torch.cuda.device_of(state):
        state_kernel[(triton.cdiv(elements, BLOCK) * rows,)](
            *(state, intermediate_states, indices, accepted),
            states_row=intermediate_states.stride(0),
            ELEMENTS=elements,
            BLOCK=BLOCK,
            num_warps=4,
        )
        window_kernel[(triton.cdiv(conv.shape[1], CHANNELS) * rows,)](
            *(conv, draft_inputs, indices, accepted),
            inputs_row=draft_inputs.stride(0),
            inputs_channel=draft_inputs.stride(1),
            DIM=conv.shape[1],
            WINDOW=conv.shape[2],
            CHANNELS=CHANNELS,
            num_warps=4,
        )
