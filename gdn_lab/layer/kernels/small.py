"""The small kernels around GDN at decode, in Triton: one token a row, one launch each.

layer_reference.py says what they compute. Most of them last two or three microseconds, so what counts is how many there
are, what each waits for, and that they overlap: with OVERLAP a launch is a programmatic dependent (compute capability
9.0 and newer). It then loads nothing that the kernel ahead of it wrote before gdc_wait(), and lets the kernel after it
be set up as soon as it can.

x_scale, the scales of an FP8 activation, is float32 [rows, groups of 128] with the token fastest in memory, as torch's
scaled product takes it.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ...backends.base import KernelCase
from ..fp8 import E4M3_MAX, SMALLEST_AMAX

GROUP = 128  # channels that share an FP8 scale
EPS = 1e-6
CHANNELS = 256  # of a program of conv_kernel and split_kernel


@triton.jit
def store_fp8(x, data_at, scale_at, mask, GROUP: tl.constexpr, MAX: tl.constexpr, SMALLEST: tl.constexpr):
    """Stores x [GROUPS, GROUP] float32 as e4m3 at data_at, and each group's scale at scale_at [GROUPS]."""
    amax = tl.max(tl.abs(x), axis=1)
    scale = tl.maximum(amax, SMALLEST) / MAX
    scaled = tl.minimum(tl.maximum(x / scale[:, None], -MAX), MAX)
    tl.store(data_at, scaled.to(tl.float8e4nv), mask=mask[:, None])
    tl.store(scale_at, scale, mask=mask)


@triton.jit
def add_norm_kernel(
    x, residual, weight, residual_out, y, y8, y_scale, hidden, x_row, scale_group,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, QUANTIZE: tl.constexpr, OVERLAP: tl.constexpr,
    EPS: tl.constexpr, MAX: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    """One program: a row. x [rows, hidden] with row stride x_row, residual, residual_out, y [rows, hidden] contiguous.

    With QUANTIZE the row is stored as FP8 too: y8 [rows, hidden] and y_scale.
    """
    row = tl.program_id(0).to(tl.int64)
    # [groups, GROUP] of the row
    groups = tl.arange(0, BLOCK // GROUP)
    inside = groups < tl.cdiv(hidden, GROUP)
    columns = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    mask = columns < hidden
    gain = 1.0 + tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_wait()
    total = tl.load(x + row * x_row + columns, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(residual + row * hidden + columns, mask=mask, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_launch_dependents()
    tl.store(residual_out + row * hidden + columns, total.to(residual_out.dtype.element_ty), mask=mask)
    mean_square = tl.sum(tl.sum(total * total, axis=1)) / hidden
    normed = total * tl.rsqrt(mean_square + EPS) * gain
    tl.store(y + row * hidden + columns, normed.to(y.dtype.element_ty), mask=mask)
    if QUANTIZE:
        store_fp8(
            normed, y8 + row * hidden + columns, y_scale + groups * scale_group + row, inside, GROUP, MAX, SMALLEST
        )


@triton.jit
def quantize_kernel(
    x, x8, x_scale, groups, x_row, scale_group,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, OVERLAP: tl.constexpr, MAX: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    """One program: GROUPS groups of 128 of a row. x [rows, groups · 128] with row stride x_row, x8 contiguous."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    inside = group < groups
    columns = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    if OVERLAP:
        gdc_wait()
    values = tl.load(x + row * x_row + columns, mask=inside[:, None], other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_launch_dependents()
    at = x8 + row * groups * GROUP + columns
    store_fp8(values, at, x_scale + group * scale_group + row, inside, GROUP, MAX, SMALLEST)


@triton.jit
def split_kernel(
    qkvz, ba, mixed_qkv, z, b, a, conv_dim, z_dim, heads, qkvz_row, ba_row,
    CHANNELS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """One program: CHANNELS channels of a row of [q, k, v | z], copied to mixed_qkv and z; the first of a row also
    copies [b | a]. Everything it writes is contiguous."""
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
def conv_kernel(
    mixed, window, weight, indices, out, conv_dim, mixed_row,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: CHANNELS channels of a row. mixed [rows, conv_dim] with row stride mixed_row; out contiguous.

    window [slots, conv_dim, WIDTH - 1]: the last inputs of each channel, the newest last; moved on in place, in the
    row's slot. weight [conv_dim, WIDTH] bf16. A padding row (a negative index) puts out zeros and moves no window.
    """
    row = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channels < conv_dim
    slot = tl.load(indices + row).to(tl.int64)
    live = inside & (slot >= 0)
    # The window is this kernel's own of the step before, and weights never change: neither needs the kernel ahead.
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
def gated_norm_kernel(
    o, z, weight, y, y8, y_scale, heads, z_row, scale_group,
    HEADS: tl.constexpr, V: tl.constexpr, QUANTIZE: tl.constexpr, OVERLAP: tl.constexpr, EPS: tl.constexpr,
    MAX: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    """One program: HEADS heads of a row. o [rows, heads, V] contiguous; z [rows, heads, V] with row stride z_row.

    y [rows, heads · V], or with QUANTIZE only y8 and y_scale: V is a group of 128, so a head has a scale of its own.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    inside = head < heads
    columns = head[:, None] * V + tl.arange(0, V)[None, :]
    gain = tl.load(weight + tl.arange(0, V)).to(tl.float32)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    values = tl.load(o + row * heads * V + columns, mask=inside[:, None], other=0.0).to(tl.float32)
    gate = tl.load(z + row * z_row + columns, mask=inside[:, None], other=0.0).to(tl.float32)
    rms = tl.rsqrt(tl.sum(values * values, axis=1) / V + EPS)
    normed = values * rms[:, None] * gain[None, :] * (gate / (1.0 + tl.exp(-gate)))
    at = row * heads * V + columns
    if QUANTIZE:
        store_fp8(normed, y8 + at, y_scale + head * scale_group + row, inside, V, MAX, SMALLEST)
    else:
        tl.store(y + at, normed.to(y.dtype.element_ty), mask=inside[:, None])


@triton.jit
def silu_mul_kernel(
    gate_up, y, y8, y_scale, groups, gate_up_row, scale_group,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, QUANTIZE: tl.constexpr, OVERLAP: tl.constexpr, MAX: tl.constexpr,
    SMALLEST: tl.constexpr,
):  # fmt: skip
    """One program: GROUPS groups of 128 of a row. gate_up [rows, 2 · width], the gate first, with row stride
    gate_up_row; y [rows, width], or with QUANTIZE only y8 and y_scale; width = groups · 128."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    inside = group < groups
    columns = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    at = gate_up + row * gate_up_row + columns
    gate = tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32)
    up = tl.load(at + groups * GROUP, mask=inside[:, None], other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    at = row * groups * GROUP + columns
    if QUANTIZE:
        store_fp8(product, y8 + at, y_scale + group * scale_group + row, inside, GROUP, MAX, SMALLEST)
    else:
        tl.store(y + at, product.to(y.dtype.element_ty), mask=inside[:, None])


# ---- launches: arguments as in layer_reference.py's functions of the same names --------------------------------------


def add_norm(x, residual, weight, residual_out, y, y8=None, y_scale=None, *, overlap=False):
    """residual_out = x + residual; y = RMSNorm(that) · (1 + weight); y8, y_scale: the same as FP8."""
    rows, hidden = residual.shape
    quantize = y8 is not None
    add_norm_kernel[(rows,)](
        x, residual, weight, residual_out, y, y8 if quantize else y, y_scale if quantize else y, hidden, x.stride(0),
        y_scale.stride(1) if quantize else 0, triton.next_power_of_2(hidden), GROUP, quantize, overlap, EPS, E4M3_MAX,
        SMALLEST_AMAX, num_warps=8, launch_pdl=overlap,
    )  # fmt: skip


def quantize(x, x8, x_scale, *, overlap=False):
    """x [rows, N] -> x8, x_scale. N is a multiple of 128."""
    rows, columns = x.shape
    groups = columns // GROUP
    quantize_kernel[(rows, triton.cdiv(groups, 8))](
        x, x8, x_scale, groups, x.stride(0), x_scale.stride(1), 8, GROUP, overlap, E4M3_MAX, SMALLEST_AMAX,
        num_warps=4, launch_pdl=overlap,
    )  # fmt: skip


def split(qkvz, ba, mixed_qkv, z, b, a):
    """[q, k, v | z] and [b | a] -> mixed_qkv, z, b, a, each contiguous."""
    rows, conv_dim = mixed_qkv.shape
    z_dim, heads = z.shape[1], b.shape[1]
    split_kernel[(rows, triton.cdiv(conv_dim + z_dim, CHANNELS))](
        qkvz, ba, mixed_qkv, z, b, a, conv_dim, z_dim, heads, qkvz.stride(0), ba.stride(0),
        CHANNELS, triton.next_power_of_2(heads), num_warps=2,
    )  # fmt: skip


def conv_update(mixed, window, weight, indices, out, *, overlap=False):
    """The causal convolution's next output for each row; the window of the row's slot moves on by one."""
    rows, conv_dim = out.shape
    conv_kernel[(rows, triton.cdiv(conv_dim, CHANNELS))](
        mixed, window, weight, indices, out, conv_dim, mixed.stride(0), CHANNELS, weight.shape[1], overlap,
        num_warps=2, launch_pdl=overlap,
    )  # fmt: skip


def gated_norm(o, z, weight, y=None, y8=None, y_scale=None, *, overlap=False):
    """RMSNorm(o) · weight · SiLU(z) of each head, as y or as y8 and y_scale."""
    rows, heads, V = o.shape
    quantize = y8 is not None
    per_program = min(8, triton.next_power_of_2(heads))
    gated_norm_kernel[(rows, triton.cdiv(heads, per_program))](
        o, z, weight, o if quantize else y, y8 if quantize else y, y_scale if quantize else y, heads, z.stride(0),
        y_scale.stride(1) if quantize else 0, per_program, V, quantize, overlap, EPS, E4M3_MAX, SMALLEST_AMAX,
        num_warps=4, launch_pdl=overlap,
    )  # fmt: skip


def silu_mul(gate_up, y=None, y8=None, y_scale=None, *, overlap=False):
    """SiLU(gate) · up of gate_up [rows, 2 · width], as y or as y8 and y_scale. width is a multiple of 128."""
    rows, groups = gate_up.shape[0], gate_up.shape[1] // 2 // GROUP
    quantize = y8 is not None
    silu_mul_kernel[(rows, triton.cdiv(groups, 4))](
        gate_up, gate_up if quantize else y, y8 if quantize else y, y_scale if quantize else y, groups,
        gate_up.stride(0), y_scale.stride(1) if quantize else 0, 4, GROUP, quantize, overlap, E4M3_MAX, SMALLEST_AMAX,
        num_warps=4, launch_pdl=overlap,
    )  # fmt: skip


def kernel_cases() -> list[KernelCase]:
    """Every compilation that a step of the largest model makes, for resources.py."""
    fixed = {"EPS": EPS, "MAX": E4M3_MAX, "SMALLEST": SMALLEST_AMAX, "GROUP": GROUP}

    def case(label, kernel, pointers, warps, **constants):
        types = dict.fromkeys(kernel.arg_names, "i32") | pointers
        constants |= {name: value for name, value in fixed.items() if name in kernel.arg_names}
        return KernelCase(f"layer {label}", kernel, types, constants, warps)

    def bf16(*names, **others):
        return dict.fromkeys(names, "*bf16") | others

    fp8 = {"y8": "*fp8e4nv", "y_scale": "*fp32"}
    cases = []
    for overlap in (False, True):
        how = "overlapped" if overlap else "serial"
        for quantized in (False, True):
            cases.append(case(
                f"add_norm {how} {'fp8' if quantized else 'bf16'}", add_norm_kernel,
                bf16("x", "residual", "weight", "residual_out", "y", **fp8), 8, BLOCK=4096, QUANTIZE=quantized,
                OVERLAP=overlap,
            ))  # fmt: skip
            cases.append(case(
                f"gated_norm {how} {'fp8' if quantized else 'bf16'}", gated_norm_kernel,
                bf16("o", "z", "weight", "y", **fp8), 4, HEADS=8, V=128, QUANTIZE=quantized, OVERLAP=overlap,
            ))  # fmt: skip
            cases.append(case(
                f"silu_mul {how} {'fp8' if quantized else 'bf16'}", silu_mul_kernel, bf16("gate_up", "y", **fp8), 4,
                GROUPS=4, QUANTIZE=quantized, OVERLAP=overlap,
            ))  # fmt: skip
        cases.append(case(
            f"quantize {how}", quantize_kernel, bf16("x", x8="*fp8e4nv", x_scale="*fp32"), 4, GROUPS=8, OVERLAP=overlap
        ))  # fmt: skip
        cases.append(case(
            f"conv {how}", conv_kernel, bf16("mixed", "window", "weight", "out", indices="*i32"), 2,
            CHANNELS=CHANNELS, WIDTH=4, OVERLAP=overlap,
        ))  # fmt: skip
    names = ("qkvz", "ba", "mixed_qkv", "z", "b", "a")
    return cases + [case("split", split_kernel, bf16(*names), 2, CHANNELS=CHANNELS, HEADS=64)]
