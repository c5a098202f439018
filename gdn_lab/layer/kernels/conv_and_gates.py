"""One launch for two parts that do not depend on each other: in_proj ba, y Wᵀ of the normed input, and the convolution.

Each alone is too small to fill a GPU, and they last about as long as each other. With OVERLAP the product begins while
the kernel ahead, in_proj qkvz, still runs: its input was written one kernel earlier.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..fp8 import Linear
from .conv import convolve
from .projections import AHEAD, Scratch, multiply_tile, tiling

CHANNELS = 512  # of a program
BLOCK_K = 64


@triton.jit(do_not_specialize=["M", "products"])
def conv_and_gates_kernel(
    x,
    w,
    parts,
    arrived,
    ba,
    M,
    N,
    H,
    x_row,
    products,
    mixed,
    window,
    weight,
    indices,
    out,
    conv_dim,
    mixed_row,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The first `products` programs compute ba [M, N] = x wᵀ as linear_kernel does, x [M, H]; the others convolve
    as conv_kernel does. Grid: [products + rows · ceil(conv_dim / CHANNELS)].
    """
    program = tl.program_id(0)
    if program < products:
        row_blocks = (M + BLOCK_M - 1) // BLOCK_M
        of_row_block = products // row_blocks
        multiply_tile(
            program % of_row_block,
            program // of_row_block,
            row_blocks,
            x,
            x,
            w,
            w,
            parts,
            arrived,
            ba,
            M,
            N,
            H,
            x_row,
            0,
            0,
            N,
            BLOCK_M,
            TILE,
            BLOCK_K,
            AHEAD,
            SPLIT,
            EVEN,
            False,
            False,
        )
        if OVERLAP:
            gdc_wait()
            gdc_launch_dependents()
    else:
        blocks = (conv_dim + CHANNELS - 1) // CHANNELS
        block = program - products
        convolve(
            (block // blocks).to(tl.int64),
            block % blocks,
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


def conv_and_gates(
    x: torch.Tensor,
    ba_weight: torch.Tensor,
    ba: torch.Tensor,
    mixed: torch.Tensor,
    window: torch.Tensor,
    weight: torch.Tensor,
    indices: torch.Tensor,
    out: torch.Tensor,
    *,
    scratch: Scratch | None,
    overlap: bool = False,
) -> None:
    """Compute ba [M, N] = x ba_weightᵀ, bf16, and what conv_update() computes of the other arguments.

    scratch: Scratch.of(M, Linear(ba_weight)). overlap: programmatic dependent launch (PDL).
    """
    (M, H), N = x.shape, len(ba_weight)
    rows, conv_dim = out.shape
    t = tiling(M, N, H, fp8=False)
    parts, arrived = scratch or Scratch.of(M, Linear(ba_weight)) or (ba, ba)
    products = triton.cdiv(N, t.tile) * t.split * triton.cdiv(M, t.block_m)
    conv_and_gates_kernel[(products + rows * triton.cdiv(conv_dim, CHANNELS),)](
        x=x,
        w=ba_weight,
        parts=parts,
        arrived=arrived,
        ba=ba,
        M=M,
        N=N,
        H=H,
        x_row=x.stride(0),
        products=products,
        mixed=mixed,
        window=window,
        weight=weight,
        indices=indices,
        out=out,
        conv_dim=conv_dim,
        mixed_row=mixed.stride(0),
        BLOCK_M=t.block_m,
        TILE=t.tile,
        BLOCK_K=BLOCK_K,
        AHEAD=AHEAD,
        SPLIT=t.split,
        EVEN=H % BLOCK_K == 0,
        CHANNELS=CHANNELS,
        WIDTH=weight.shape[1],
        OVERLAP=overlap,
        num_warps=t.warps,
        num_stages=t.stages,
        launch_pdl=overlap,
    )
