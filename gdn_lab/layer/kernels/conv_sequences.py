"""The causal convolution of several tokens of a slot, for prefill and verify, in Triton.

layer_reference.py says what it computes. Inputs before a sequence's first token are in the slot's window.
"""

import triton
import triton.language as tl

CHANNELS = 256  # of a program
WIDTH = tl.constexpr(4)


@triton.jit
def conv_sequences_kernel(
    mixed,
    window,
    weight,
    indices,
    sequence,
    starts,
    out,
    drafts,
    conv_dim,
    mixed_row,
    draft_row,
    draft_channel,
    CHANNELS: tl.constexpr,
    DRAFTS: tl.constexpr,
):
    """One program for CHANNELS channels of a token. mixed [rows, conv_dim] with row stride mixed_row; out contiguous.

    window [slots, conv_dim, 3], the newest input last; weight [conv_dim, 4]; sequence [rows]: a token's entry of
    indices and starts, -1 for padding, which like a negative index gets zeros. DRAFTS: drafts [n, conv_dim, tokens]
    takes the inputs. Grid: [rows, ceil(conv_dim / CHANNELS)].
    """
    token = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channels < conv_dim
    row = tl.load(sequence + token)
    slot = tl.load(indices + tl.maximum(row, 0)).to(tl.int64)
    live = inside & (row >= 0) & (slot >= 0)
    at = token - tl.load(starts + tl.maximum(row, 0))  # in its sequence
    total = tl.zeros([CHANNELS], tl.float32)
    for back in tl.static_range(WIDTH):
        tap = tl.load(weight + channels * WIDTH + (WIDTH - 1 - back), mask=inside, other=0.0).to(tl.float32)
        here = tl.load(mixed + (token - back) * mixed_row + channels, mask=live & (at >= back), other=0.0)
        held = window + slot * conv_dim * (WIDTH - 1) + channels * (WIDTH - 1) + (WIDTH - 1 + at - back)
        old = tl.load(held, mask=live & (at < back), other=0.0)
        total += (here.to(tl.float32) + old.to(tl.float32)) * tap
        if DRAFTS:
            if back == 0:
                to = drafts + row.to(tl.int64) * draft_row + channels * draft_channel + at
                tl.store(to, here, mask=live)
    tl.store(out + token * conv_dim + channels, (total / (1.0 + tl.exp(-total))).to(out.dtype.element_ty), mask=inside)


@triton.jit
def windows_kernel(
    mixed,
    window,
    indices,
    starts,
    conv_dim,
    mixed_row,
    CHANNELS: tl.constexpr,
):
    """Make a slot's window the last 3 inputs of the old one followed by its sequence's. Grid: [n, channel blocks]."""
    row = tl.program_id(0)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    slot = tl.load(indices + row).to(tl.int64)
    live = (channels < conv_dim) & (slot >= 0)
    first = tl.load(starts + row).to(tl.int64)
    length = tl.load(starts + row + 1) - first
    held = window + slot * conv_dim * (WIDTH - 1) + channels * (WIDTH - 1)
    second = tl.load(held + 1, mask=live, other=0.0)
    third = tl.load(held + 2, mask=live, other=0.0)
    newest = mixed + (first + length - 1) * mixed_row + channels
    a = tl.load(newest - 2 * mixed_row, mask=live & (length > 2), other=0.0)
    a += tl.where(length == 1, second, 0.0) + tl.where(length == 2, third, 0.0)
    b = tl.load(newest - mixed_row, mask=live & (length > 1), other=0.0) + tl.where(length == 1, third, 0.0)
    c = tl.load(newest, mask=live & (length > 0), other=0.0)
    live &= length > 0
    tl.store(held, a.to(window.dtype.element_ty), mask=live)
    tl.store(held + 1, b.to(window.dtype.element_ty), mask=live)
    tl.store(held + 2, c, mask=live)


def conv_sequences(mixed, window, weight, indices, sequence, starts, out, drafts=None):
    """The convolution of every token; updates the windows, or stores the inputs in drafts where it is given."""
    rows, conv_dim = out.shape
    blocks = triton.cdiv(conv_dim, CHANNELS)
    conv_sequences_kernel[(rows, blocks)](
        mixed=mixed,
        window=window,
        weight=weight,
        indices=indices,
        sequence=sequence,
        starts=starts,
        out=out,
        drafts=out if drafts is None else drafts,
        conv_dim=conv_dim,
        mixed_row=mixed.stride(0),
        draft_row=0 if drafts is None else drafts.stride(0),
        draft_channel=0 if drafts is None else drafts.stride(1),
        CHANNELS=CHANNELS,
        DRAFTS=drafts is not None,
        num_warps=2,
    )
    if drafts is None:
        windows_kernel[(len(indices), blocks)](
            mixed=mixed,
            window=window,
            indices=indices,
            starts=starts,
            conv_dim=conv_dim,
            mixed_row=mixed.stride(0),
            CHANNELS=CHANNELS,
            num_warps=2,
        )
