"""y = x Wᵀ in Triton for few rows: FP8 with block scales, or bf16.

As in experts_kernels.py the weight is the tensor cores' first operand, read from shared memory as it lies, and the
products of each 128 of K are scaled and added in float32. Few rows make few programs, so K is split among more of them:
each writes its partial sum to memory, and the last one to finish adds them up in a fixed order, so results do not
depend on which was last. With `overlap` a program prefetches its first weights before it waits for the kernel ahead,
because they do not depend on it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ...backends.triton.device import prefetch_lines
from ..fp8 import Linear
from ..workspace import Workspace
from .experts_kernels import BLOCK, dot, narrow

AHEAD = 4  # blocks of K prefetched before the wait
TILE = 64  # rows of a weight: the least that Hopper's tensor cores take
PROGRAMS = 176  # K is split until there are so many programs: an H100 has 132 SMs


class Tiling(NamedTuple):
    """How linear_kernel is launched for one number of rows."""

    block_m: int  # rows of x in a program
    tile: int  # rows of the weight in a program
    split: int  # programs that share the sum over K
    warps: int = 4
    stages: int = 4


@triton.jit
def multiply_tile(
    program,
    row_block,
    row_blocks,
    x,
    x_scale,
    w,
    w_scale,
    parts,
    arrived,
    out,
    M,
    N,
    K,
    x_row,
    x_scale_row,
    x_scale_group,
    out_row,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    FP8: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Compute TILE of N by BLOCK_M rows over one part of K; arguments as in linear_kernel, program: of its grid."""
    tile = program // SPLIT
    part = program % SPLIT
    blocks = (K + BLOCK_K - 1) // BLOCK_K
    first = part * blocks // SPLIT
    end = (part + 1) * blocks // SPLIT
    ks = tl.arange(0, BLOCK_K)
    ns = tile * TILE + tl.arange(0, TILE)
    ms = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    live = ms < M
    w_rows = w + tl.minimum(ns, N - 1).to(tl.int64)[:, None] * K
    if OVERLAP:
        ahead = tl.minimum(first + tl.arange(0, AHEAD), end - 1)
        prefetch_lines((w_rows + ahead[None, :] * BLOCK_K).to(tl.int64))
        gdc_wait()
        gdc_launch_dependents()
    w_at = w_rows + ks[None, :]  # [TILE, BLOCK_K], K contiguous
    x_at = x + ms.to(tl.int64)[None, :] * x_row + ks[:, None]  # [BLOCK_K, BLOCK_M], K contiguous
    x_s_at = x_scale + ms * x_scale_row
    w_s_at = w_scale + (tile * TILE // BLOCK) * blocks
    total = tl.zeros([TILE, BLOCK_M], tl.float32)
    if FP8:  # scales are loaded a block ahead, so that no product waits for them
        x_s = tl.load(x_s_at + first * x_scale_group, mask=live, other=0.0)
        w_s = tl.load(w_s_at + first)
    for block in range(first, end):
        if EVEN:
            w_k = tl.load(w_at + block * BLOCK_K)
            x_k = tl.load(x_at + block * BLOCK_K, mask=live[None, :], other=0.0)
        else:
            there = block * BLOCK_K + ks < K
            w_k = tl.load(w_at + block * BLOCK_K, mask=there[None, :], other=0.0)
            x_k = tl.load(x_at + block * BLOCK_K, mask=live[None, :] & there[:, None], other=0.0)
        if FP8:
            total += dot(w_k, x_k, tl.zeros([TILE, BLOCK_M], tl.float32)) * (x_s * w_s)[None, :]
            following = tl.minimum(block + 1, end - 1)
            x_s = tl.load(x_s_at + following * x_scale_group, mask=live, other=0.0)
            w_s = tl.load(w_s_at + following)
        else:
            total = dot(w_k, x_k, total)
    mask = live[None, :] & (ns < N)[:, None]
    out_at = out + ms.to(tl.int64)[None, :] * out_row + ns[:, None]
    if SPLIT == 1:
        tl.store(out_at, narrow(total, tl.bfloat16, 7), mask=mask)
        return
    part_at = parts + ms.to(tl.int64)[None, :] * N + ns[:, None]
    tl.store(part_at + part.to(tl.int64) * M * N, total, mask=mask)
    tl.debug_barrier()  # the whole partial sum is stored before it is counted
    mine = arrived + tile * row_blocks + row_block
    before = tl.atomic_add(mine, 1, sem="acq_rel")
    if before == SPLIT - 1:
        tl.store(mine, 0)
        total = tl.zeros([TILE, BLOCK_M], tl.float32)
        for other in tl.static_range(SPLIT):
            # bypassing the L1, which may hold stale lines of what other programs stored
            total += tl.load(part_at + (other * M).to(tl.int64) * N, mask=mask, other=0.0, cache_modifier=".cg")
        tl.store(out_at, narrow(total, tl.bfloat16, 7), mask=mask)


@triton.jit(do_not_specialize=["M", "x_scale_row", "x_scale_group"])
def linear_kernel(
    x,
    x_scale,
    w,
    w_scale,
    parts,
    arrived,
    out,
    M,
    N,
    K,
    x_row,
    x_scale_row,
    x_scale_group,
    out_row,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    FP8: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program for TILE of N by BLOCK_M rows, one part of K. Grid: [ceil(N / TILE) · SPLIT, ceil(M / BLOCK_M)].

    x [M, K], FP8: e4m3 with x_scale [M, ceil(K / 128)] by strides; w [N, K], w_scale [ceil(N / 128), ceil(K / 128)];
    out [M, N] bf16, rows out_row apart. EVEN: K is a multiple of BLOCK_K. With SPLIT > 1 parts [SPLIT, M, N] float32
    take the partial sums, and arrived [tiles], zero before and after, counts the programs that wrote theirs.
    """
    multiply_tile(
        tl.program_id(0),
        tl.program_id(1),
        tl.num_programs(1),
        x,
        x_scale,
        w,
        w_scale,
        parts,
        arrived,
        out,
        M,
        N,
        K,
        x_row,
        x_scale_row,
        x_scale_group,
        out_row,
        BLOCK_M,
        TILE,
        BLOCK_K,
        AHEAD,
        SPLIT,
        EVEN,
        FP8,
        OVERLAP,
    )


class Scratch(NamedTuple):
    """Buffers of a product split along K, reused by all its calls."""

    parts: torch.Tensor  # [split, M, N] float32
    arrived: torch.Tensor  # [tiles] int32, zero between calls

    @classmethod
    def of(cls, rows: int, weight: Linear, workspace: Workspace | None = None, name: str = "") -> "Scratch | None":
        """Buffers for products of `rows` rows with `weight`, or None if they need none.

        Products that run one after the other may share a workspace: each waits for the one before it. One that does
        not wait has a name of its own.
        """
        N, K = weight.data.shape
        t = tiling(rows, N, K, weight.scale is not None)
        if t.split == 1:
            return None
        tiles = triton.cdiv(N, t.tile) * triton.cdiv(rows, t.block_m)
        take = (workspace or Workspace(weight.data.device)).take
        parts = take(f"{name}partial products", t.split, rows, N, dtype=torch.float32)
        return cls(parts, take(f"{name}arrived", tiles, dtype=torch.int32))


def linear(
    x: torch.Tensor,
    x_scale: torch.Tensor | None,
    weight: Linear,
    out: torch.Tensor,
    *,
    scratch: Scratch | None = None,
    overlap: bool = False,
) -> torch.Tensor:
    """Compute out [M, N] bf16 = x Wᵀ.

    weight [N, K] FP8: x [M, K] e4m3 and x_scale [M, ceil(K / 128)] float32, of any strides, as fp8.quantize_rows
    returns them; bf16: x [M, K] bf16, x_scale is not read. scratch: Scratch.of(M, weight), by default allocated here.
    overlap: programmatic dependent launch (PDL), from compute capability 9.0. ValueError for shapes that do not fit.
    """
    (M, K), N, fp8 = x.shape, len(weight.data), weight.scale is not None
    if K != weight.data.shape[1] or out.shape != (M, N):
        raise ValueError(
            f"x, weight, out: expected [M, K], [N, K], [M, N]; got {list(x.shape)}, {list(weight.data.shape)}, "
            f"{list(out.shape)}"
        )
    t = tiling(M, N, K, fp8)
    parts, arrived = scratch or Scratch.of(M, weight) or (out, out)
    scale, w_scale = (x_scale, weight.scale) if fp8 else (x, x)
    block_k = 128 if fp8 else 64
    linear_kernel[(triton.cdiv(N, t.tile) * t.split, triton.cdiv(M, t.block_m))](
        x=x,
        x_scale=scale,
        w=weight.data,
        w_scale=w_scale,
        parts=parts,
        arrived=arrived,
        out=out,
        M=M,
        N=N,
        K=K,
        x_row=x.stride(0),
        x_scale_row=scale.stride(0),
        x_scale_group=scale.stride(1),
        out_row=out.stride(0),
        BLOCK_M=t.block_m,
        TILE=t.tile,
        BLOCK_K=block_k,
        AHEAD=AHEAD,
        SPLIT=t.split,
        EVEN=K % block_k == 0,
        FP8=fp8,
        OVERLAP=overlap,
        num_warps=t.warps,
        num_stages=t.stages,
        launch_pdl=overlap,
    )
    return out


def tiling(M: int, N: int, K: int, fp8: bool) -> Tiling:
    """Return the tiling for M rows: small tiles, and K split until a GPU is full. Chosen by times on an H100."""
    block_k = 128 if fp8 else 64
    if N <= 64:
        return Tiling(16, 16, max(1, min(16 if M <= 64 else 8, K // block_k)))
    block_m = 16 if M <= 16 else 32 if M <= 64 else 64
    programs = triton.cdiv(N, TILE) * triton.cdiv(M, block_m)
    split = 1
    while split < 8 and programs * split * 2 <= PROGRAMS and K >= 2 * block_k * split * 2:
        split *= 2
    return Tiling(block_m, TILE, split)


def worth_it(M: int, N: int, K: int) -> bool:
    """Whether linear() is faster than torch's product, as on Hopper: for few rows, a small weight or a short sum.

    With more of each, torch's larger tiles are faster, because they read a large weight fewer times.
    """
    return M <= 16 or M <= 64 and N * K <= 1 << 24 or N * K <= 1 << 21 or N <= 64 or K <= 1024
