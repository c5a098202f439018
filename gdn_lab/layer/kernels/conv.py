"""A decode step's causal convolution, and the copies before it, in Triton: one token a row, one launch each.

layer_reference.py says what they compute. Most of them last two or three microseconds, so their number counts, what
each waits for, and that they overlap. With OVERLAP a launch uses programmatic dependent launch (PDL; compute capability
9.0 and newer): before gdc_wait() it loads nothing that the kernel ahead of it wrote, and it lets the kernel after it be
set up as early as it can.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

CHANNELS = 256  # of a program


@triton.jit
def split_kernel(
    qkvz,
    ba,
    mixed_qkv,
    z,
    b,
    a,
    conv_dim,
    z_dim,
    heads,
    qkvz_row,
    ba_row,
    CHANNELS: tl.constexpr,
    HEADS: tl.constexpr,
):
    """One program copies CHANNELS channels of a row of [q, k, v | z] to mixed_qkv and z; a row's first also [b | a].

    All outputs are contiguous. Grid: [rows, ceil((conv_dim + z_dim) / CHANNELS)].
    """
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channels = block * CHANNELS + tl.arange(0, CHANNELS)
    values = tl.load(qkvz + row * qkvz_row + channels, mask=channels < conv_dim + z_dim, other=0.0)
    tl.store(mixed_qkv + row * conv_dim + channels, values, mask=channels < conv_dim)
    is_z = (channels >= conv_dim) & (channels < conv_dim + z_dim)
    tl.store(z + row * z_dim + channels - conv_dim, values, mask=is_z)
    if block == 0:
        head = tl.arange(0, HEADS)
        inside = head < heads
        tl.store(b + row * heads + head, tl.load(ba + row * ba_row + head, mask=inside), mask=inside)
        tl.store(a + row * heads + head, tl.load(ba + row * ba_row + heads + head, mask=inside), mask=inside)


@triton.jit
def convolve(
    row,
    block,
    mixed,
    window,
    weight,
    indices,
    out,
    conv_dim,
    mixed_row,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Take block `block` of CHANNELS channels of a row (64 bits); the other arguments as in conv_kernel."""
    channels = block * CHANNELS + tl.arange(0, CHANNELS)
    inside = channels < conv_dim
    slot = tl.load(indices + row).to(tl.int64)
    live = inside & (slot >= 0)
    # Only this kernel writes the window, in the step before, and weights never change: no need to wait for either.
    at = window + slot * conv_dim * (WIDTH - 1) + channels * (WIDTH - 1)
    first = tl.load(at, mask=live, other=0.0)
    second = tl.load(at + 1, mask=live, other=0.0)
    third = tl.load(at + 2, mask=live, other=0.0)
    taps = weight + channels * WIDTH
    total = first.to(tl.float32) * tl.load(taps, mask=inside, other=0.0).to(tl.float32)
    total += second.to(tl.float32) * tl.load(taps + 1, mask=inside, other=0.0).to(tl.float32)
    total += third.to(tl.float32) * tl.load(taps + 2, mask=inside, other=0.0).to(tl.float32)
    last_tap = tl.load(taps + 3, mask=inside, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    new = tl.load(mixed + row * mixed_row + channels, mask=live, other=0.0)
    total += new.to(tl.float32) * last_tap
    tl.store(out + row * conv_dim + channels, (total / (1.0 + tl.exp(-total))).to(out.dtype.element_ty), mask=inside)
    tl.store(at, second, mask=live)
    tl.store(at + 1, third, mask=live)
    tl.store(at + 2, new, mask=live)


@triton.jit
def conv_kernel(
    mixed,
    window,
    weight,
    indices,
    out,
    conv_dim,
    mixed_row,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program for CHANNELS channels of a row. mixed [rows, conv_dim] with row stride mixed_row; out contiguous.

    window [slots, conv_dim, WIDTH - 1]: the last inputs of each channel, the newest last, updated in place in the row's
    slot. weight [conv_dim, WIDTH] bf16. A padding row (a negative index) writes zeros and changes no window.
    Grid: [rows, ceil(conv_dim / CHANNELS)].
    """
    convolve(
        tl.program_id(0).to(tl.int64),
        tl.program_id(1),
        mixed,
        window,
        weight,
        indices,
        out,
        conv_dim,
        mixed_row,
        CHANNELS,
        WIDTH,
        OVERLAP,
    )


# ---- launches: arguments as in layer_reference.py's functions of the same names --------------------------------------


def split(qkvz, ba, mixed_qkv, z, b, a):
    """[q, k, v | z] and [b | a] -> mixed_qkv, z, b, a, each contiguous."""
    rows, conv_dim = mixed_qkv.shape
    z_dim, heads = z.shape[1], b.shape[1]
    split_kernel[(rows, triton.cdiv(conv_dim + z_dim, CHANNELS))](
        qkvz=qkvz,
        ba=ba,
        mixed_qkv=mixed_qkv,
        z=z,
        b=b,
        a=a,
        conv_dim=conv_dim,
        z_dim=z_dim,
        heads=heads,
        qkvz_row=qkvz.stride(0),
        ba_row=ba.stride(0),
        CHANNELS=CHANNELS,
        HEADS=triton.next_power_of_2(heads),
        num_warps=2,
    )


def conv_update(mixed, window, weight, indices, out, *, overlap=False):
    """The causal convolution's newest output of each row; updates the window in the row's slot."""
    rows, conv_dim = out.shape
    conv_kernel[(rows, triton.cdiv(conv_dim, CHANNELS))](
        mixed=mixed,
        window=window,
        weight=weight,
        indices=indices,
        out=out,
        conv_dim=conv_dim,
        mixed_row=mixed.stride(0),
        CHANNELS=CHANNELS,
        WIDTH=weight.shape[1],
        OVERLAP=overlap,
        num_warps=2,
        launch_pdl=overlap,
    )
