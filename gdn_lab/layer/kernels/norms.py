"""The norms, FP8 quantisation and gated SiLU of a decode step, in Triton: one token a row, one launch each.

layer_reference.py says what they compute. Most of them last two or three microseconds, so their number counts, what
each waits for, and that they overlap. With OVERLAP a launch uses programmatic dependent launch (PDL; compute capability
9.0 and newer): before gdc_wait() it loads nothing that the kernel ahead of it wrote, and it lets the kernel after it be
set up as early as it can.

x_scale, the scales of an FP8 activation, is float32 [rows, groups of 128] with the token fastest in memory, as torch's
scaled product takes it.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ...reference import NORM_EPS
from ..fp8 import BLOCK, E4M3_MAX, SMALLEST_AMAX


@triton.jit
def store_fp8(x, data_at, scale_at, mask, GROUP: tl.constexpr, MAX: tl.constexpr, SMALLEST: tl.constexpr):
    """Store x [GROUPS, GROUP] float32 as e4m3 at data_at, and each group's scale at scale_at [GROUPS]."""
    amax = tl.max(tl.abs(x), axis=1)
    scale = tl.maximum(amax, SMALLEST) / MAX
    scaled = tl.minimum(tl.maximum(x / scale[:, None], -MAX), MAX)
    tl.store(data_at, scaled.to(tl.float8e4nv), mask=mask[:, None])
    tl.store(scale_at, scale, mask=mask)


@triton.jit
def store_normed(
    total,
    gain,
    row,
    columns,
    mask,
    groups,
    residual_out,
    y,
    y8,
    y_scale,
    hidden,
    scale_group,
    GROUP: tl.constexpr,
    QUANTIZE: tl.constexpr,
    EPS: tl.constexpr,
    MAX: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    """Store a row `total` [groups, GROUP] at residual_out and its norm times `gain` at y; with QUANTIZE as FP8 too."""
    tl.store(residual_out + row * hidden + columns, total.to(residual_out.dtype.element_ty), mask=mask)
    mean_square = tl.sum(tl.sum(total * total, axis=1)) / hidden
    normed = total * tl.rsqrt(mean_square + EPS) * gain
    tl.store(y + row * hidden + columns, normed.to(y.dtype.element_ty), mask=mask)
    if QUANTIZE:
        inside = groups < tl.cdiv(hidden, GROUP)
        store_fp8(
            normed, y8 + row * hidden + columns, y_scale + groups * scale_group + row, inside, GROUP, MAX, SMALLEST
        )


@triton.jit
def add_norm_kernel(
    x,
    residual,
    weight,
    residual_out,
    y,
    y8,
    y_scale,
    hidden,
    x_row,
    scale_group,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    QUANTIZE: tl.constexpr,
    OVERLAP: tl.constexpr,
    EPS: tl.constexpr,
    MAX: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    """One program a row. x [rows, hidden] with row stride x_row; residual, residual_out, y [rows, hidden] contiguous.

    With QUANTIZE the row is also stored as FP8: y8 [rows, hidden] and y_scale. Grid: [rows].
    """
    row = tl.program_id(0).to(tl.int64)
    # [groups, GROUP] of the row
    groups = tl.arange(0, BLOCK // GROUP)
    columns = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    mask = columns < hidden
    gain = 1.0 + tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_wait()
    total = tl.load(x + row * x_row + columns, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(residual + row * hidden + columns, mask=mask, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_launch_dependents()
    store_normed(
        total,
        gain,
        row,
        columns,
        mask,
        groups,
        residual_out,
        y,
        y8,
        y_scale,
        hidden,
        scale_group,
        GROUP,
        QUANTIZE,
        EPS,
        MAX,
        SMALLEST,
    )


@triton.jit
def quantize_kernel(
    x,
    x8,
    x_scale,
    groups,
    x_row,
    scale_group,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    OVERLAP: tl.constexpr,
    MAX: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    """One program for GROUPS groups of 128 of a row. x [rows, groups · 128] with row stride x_row; x8 contiguous.

    Grid: [rows, ceil(groups / GROUPS)].
    """
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
def gated_norm_kernel(
    o,
    z,
    weight,
    y,
    y8,
    y_scale,
    heads,
    z_row,
    scale_group,
    HEADS: tl.constexpr,
    V: tl.constexpr,
    QUANTIZE: tl.constexpr,
    OVERLAP: tl.constexpr,
    EPS: tl.constexpr,
    MAX: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    """One program for HEADS heads of a row. o [rows, heads, V] contiguous; z [rows, heads, V] with row stride z_row.

    y [rows, heads · V], or with QUANTIZE only y8 and y_scale: V is a group of 128, so each head has its own scale.
    Grid: [rows, ceil(heads / HEADS)].
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
    gate_up,
    y,
    y8,
    y_scale,
    groups,
    gate_up_row,
    scale_group,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    QUANTIZE: tl.constexpr,
    OVERLAP: tl.constexpr,
    MAX: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    """One program for GROUPS groups of 128 of a row. gate_up [rows, 2 · width], the gate first, row stride gate_up_row.

    y [rows, width], or with QUANTIZE only y8 and y_scale; width = groups · 128. Grid: [rows, ceil(groups / GROUPS)].
    """
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
    """residual_out = x + residual; y = RMSNorm(residual_out) · (1 + weight); y8, y_scale: y as FP8."""
    rows, hidden = residual.shape
    quantize = y8 is not None
    add_norm_kernel[(rows,)](
        x=x,
        residual=residual,
        weight=weight,
        residual_out=residual_out,
        y=y,
        y8=y8 if quantize else y,
        y_scale=y_scale if quantize else y,
        hidden=hidden,
        x_row=x.stride(0),
        scale_group=y_scale.stride(1) if quantize else 0,
        BLOCK=triton.next_power_of_2(hidden),
        GROUP=BLOCK,
        QUANTIZE=quantize,
        OVERLAP=overlap,
        EPS=NORM_EPS,
        MAX=E4M3_MAX,
        SMALLEST=SMALLEST_AMAX,
        num_warps=8,
        launch_pdl=overlap,
    )


def quantize(x, x8, x_scale, *, overlap=False):
    """x [rows, N] -> x8, x_scale. N is a multiple of 128."""
    rows, columns = x.shape
    groups = columns // BLOCK
    quantize_kernel[(rows, triton.cdiv(groups, 8))](
        x=x,
        x8=x8,
        x_scale=x_scale,
        groups=groups,
        x_row=x.stride(0),
        scale_group=x_scale.stride(1),
        GROUPS=8,
        GROUP=BLOCK,
        OVERLAP=overlap,
        MAX=E4M3_MAX,
        SMALLEST=SMALLEST_AMAX,
        num_warps=4,
        launch_pdl=overlap,
    )


def gated_norm(o, z, weight, y=None, y8=None, y_scale=None, *, overlap=False):
    """RMSNorm(o) · weight · SiLU(z) of each head, as y or as y8 and y_scale."""
    rows, heads, V = o.shape
    quantize = y8 is not None
    per_program = min(8, triton.next_power_of_2(heads))
    gated_norm_kernel[(rows, triton.cdiv(heads, per_program))](
        o=o,
        z=z,
        weight=weight,
        y=o if quantize else y,
        y8=y8 if quantize else y,
        y_scale=y_scale if quantize else y,
        heads=heads,
        z_row=z.stride(0),
        scale_group=y_scale.stride(1) if quantize else 0,
        HEADS=per_program,
        V=V,
        QUANTIZE=quantize,
        OVERLAP=overlap,
        EPS=NORM_EPS,
        MAX=E4M3_MAX,
        SMALLEST=SMALLEST_AMAX,
        num_warps=4,
        launch_pdl=overlap,
    )


def silu_mul(gate_up, y=None, y8=None, y_scale=None, *, overlap=False):
    """SiLU(gate) · up of gate_up [rows, 2 · width], as y or as y8 and y_scale. width is a multiple of 128."""
    rows, groups = gate_up.shape[0], gate_up.shape[1] // 2 // BLOCK
    quantize = y8 is not None
    silu_mul_kernel[(rows, triton.cdiv(groups, 4))](
        gate_up=gate_up,
        y=gate_up if quantize else y,
        y8=y8 if quantize else y,
        y_scale=y_scale if quantize else y,
        groups=groups,
        gate_up_row=gate_up.stride(0),
        scale_group=y_scale.stride(1) if quantize else 0,
        GROUPS=4,
        GROUP=BLOCK,
        QUANTIZE=quantize,
        OVERLAP=overlap,
        MAX=E4M3_MAX,
        SMALLEST=SMALLEST_AMAX,
        num_warps=4,
        launch_pdl=overlap,
    )
