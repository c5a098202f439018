"""y = x Wᵀ in Triton for decode's few rows, FP8 with block scales: torch's scaled GEMM, where that is missing.

As in experts_kernels.py the weight is the tensor cores' first operand, read from shared memory as it lies, and the
products of each 128 of K are scaled and added in float32. Few rows make few programs: K is split among more of them,
and a second kernel adds the parts up. With `overlap` a program asks for its first weights before it waits for the
kernel ahead, on which they do not depend.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .backends.base import KernelCase
from .experts_kernels import BLOCK, INTERPRETED, dot, narrow
from .fp8 import Linear

TILE = 64  # rows of a weight of a program: what Hopper's tensor cores take at least
AHEAD = 4  # blocks of K asked for before the wait
PROGRAMS = 264  # fill an H100's 132 SMs twice
WARPS, STAGES = 4, 4
SUM = 1024  # elements a program of sum_kernel


@triton.jit(do_not_specialize=["M", "x_scale_row", "x_scale_group"])
def linear_kernel(
    x, x_scale, w, w_scale, out, M, N, K, x_row, x_scale_row, x_scale_group, out_row,
    BLOCK_M: tl.constexpr, TILE: tl.constexpr, AHEAD: tl.constexpr, SPLIT: tl.constexpr, EVEN: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: TILE of N by BLOCK_M rows, one part of K. Grid: [ceil(N / TILE) · SPLIT, ceil(M / BLOCK_M)].

    x [M, K] e4m3; x_scale [M, ceil(K / 128)] by strides; w [N, K], w_scale [ceil(N / 128), ceil(K / 128)]. EVEN: K is a
    multiple of 128. SPLIT 1: out [M, N] bf16, rows out_row apart. Else out [SPLIT, M, N] float32.
    """
    tile = tl.program_id(0) // SPLIT
    part = tl.program_id(0) % SPLIT
    blocks = (K + BLOCK - 1) // BLOCK
    first = part * blocks // SPLIT
    end = (part + 1) * blocks // SPLIT
    ks = tl.arange(0, BLOCK)
    ns = tile * TILE + tl.arange(0, TILE)
    ms = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = ms < M
    w_rows = w + tl.minimum(ns, N - 1).to(tl.int64)[:, None] * K
    if OVERLAP:
        if not INTERPRETED:
            ahead = tl.minimum(first + tl.arange(0, AHEAD), end - 1)
            lines = (w_rows + ahead[None, :] * BLOCK).to(tl.int64)
            asm: tl.constexpr = "prefetch.global.L2 [$1]; mov.b32 $0, 0;"
            tl.inline_asm_elementwise(asm, "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1)
        gdc_wait()
        gdc_launch_dependents()
    w_at = w_rows + ks[None, :]  # [TILE, 128], K contiguous
    x_at = x + ms.to(tl.int64)[None, :] * x_row + ks[:, None]  # [128, BLOCK_M], K contiguous
    x_s_at = x_scale + ms * x_scale_row
    w_s_at = w_scale + (tile * TILE // BLOCK) * blocks
    total = tl.zeros([TILE, BLOCK_M], tl.float32)
    # Scales are loaded a block ahead: nothing waits for them
    x_s = tl.load(x_s_at + first * x_scale_group, mask=live, other=0.0)
    w_s = tl.load(w_s_at + first)
    for block in range(first, end):
        if EVEN:
            w_k = tl.load(w_at + block * BLOCK)
            x_k = tl.load(x_at + block * BLOCK, mask=live[None, :], other=0.0)
        else:
            there = block * BLOCK + ks < K
            w_k = tl.load(w_at + block * BLOCK, mask=there[None, :], other=0.0)
            x_k = tl.load(x_at + block * BLOCK, mask=live[None, :] & there[:, None], other=0.0)
        total += dot(w_k, x_k, tl.zeros([TILE, BLOCK_M], tl.float32)) * (x_s * w_s)[None, :]
        following = tl.minimum(block + 1, end - 1)
        x_s = tl.load(x_s_at + following * x_scale_group, mask=live, other=0.0)
        w_s = tl.load(w_s_at + following)
    mask = live[None, :] & (ns < N)[:, None]
    if SPLIT == 1:
        tl.store(out + ms.to(tl.int64)[None, :] * out_row + ns[:, None], narrow(total, tl.bfloat16, 7), mask=mask)
    else:
        tl.store(out + (part * M + ms).to(tl.int64)[None, :] * N + ns[:, None], total, mask=mask)


@triton.jit(do_not_specialize=["M"])
def sum_kernel(parts, out, M, N, out_row, SPLIT: tl.constexpr, SIZE: tl.constexpr, OVERLAP: tl.constexpr):
    """out [M, N] bf16 = the sum of parts [SPLIT, M, N] float32, in order. Grid: [ceil(N / SIZE), M]."""
    row = tl.program_id(1).to(tl.int64)
    ns = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    live = ns < N
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    total = tl.load(parts + row * N + ns, mask=live, other=0.0)
    for part in tl.static_range(1, SPLIT):
        total += tl.load(parts + (part * M + row) * N + ns, mask=live, other=0.0)
    tl.store(out + row * out_row + ns, narrow(total, tl.bfloat16, 7), mask=live)


def linear(
    x8: torch.Tensor, x_scale: torch.Tensor, weight: Linear, out: torch.Tensor, *, overlap: bool = False
) -> torch.Tensor:
    """out [M, N] bf16 = x Wᵀ. x8 [M, K] e4m3 and x_scale [M, ceil(K / 128)] float32, of any strides, are what
    fp8.quantize_rows makes; weight [N, K] in FP8. overlap: programmatic dependent launch, from compute capability 9.0.
    """
    if weight.scale is None:
        raise ValueError("weight: expected FP8 with scales, got bf16; torch.matmul takes that")
    (M, K), N = x8.shape, len(weight.data)
    if K != weight.data.shape[1] or out.shape != (M, N):
        raise ValueError(
            f"x8, weight, out: expected [M, K], [N, K], [M, N]; got {list(x8.shape)}, {list(weight.data.shape)}, "
            f"{list(out.shape)}"
        )
    block_m, split = tiling(M, N, K)
    parts = out if split == 1 else torch.empty(split, M, N, dtype=torch.float32, device=out.device)
    linear_kernel[(triton.cdiv(N, TILE) * split, triton.cdiv(M, block_m))](
        x8, x_scale, weight.data, weight.scale, parts, M, N, K, x8.stride(0), *x_scale.stride(), out.stride(0),
        block_m, TILE, AHEAD, split, K % 128 == 0, overlap, num_warps=WARPS, num_stages=STAGES, launch_pdl=overlap,
    )  # fmt: skip
    if split > 1:
        sum_kernel[(triton.cdiv(N, SUM), M)](
            parts, out, M, N, out.stride(0), split, SUM, overlap, num_warps=4, launch_pdl=overlap
        )
    return out


def tiling(M: int, N: int, K: int) -> tuple[int, int]:
    """(rows of a product, parts of K): as many parts as fill a GPU, of two blocks of K at least."""
    block_m = 16 if M <= 16 else 32 if M <= 32 else 64
    programs = triton.cdiv(N, TILE) * triton.cdiv(M, block_m)
    split = 1
    while split < 8 and programs * split < PROGRAMS and K >= 4 * 128 * split:
        split *= 2
    return block_m, split


def kernel_cases() -> list[KernelCase]:
    """Every number of rows and parts that linear() takes, for resources.py."""
    cases = []
    types = dict.fromkeys(linear_kernel.arg_names, "i32")
    types |= {"x": "*fp8e4nv", "w": "*fp8e4nv", "x_scale": "*fp32", "w_scale": "*fp32"}
    tilings = (16, 1, True), (16, 8, True), (32, 1, True), (64, 1, True), (64, 2, True), (64, 2, False)
    for block_m, split, even in tilings:
        constants = dict(BLOCK_M=block_m, TILE=TILE, AHEAD=AHEAD, SPLIT=split, EVEN=even, OVERLAP=True)
        pointers = types | {"out": "*bf16" if split == 1 else "*fp32"}
        label = f"linear rows {block_m} split {split}{'' if even else ' uneven'}"
        cases.append(KernelCase(label, linear_kernel, pointers, constants, WARPS, None, STAGES))
    types = dict.fromkeys(sum_kernel.arg_names, "i32") | {"parts": "*fp32", "out": "*bf16"}
    cases.append(KernelCase("linear sum 8", sum_kernel, types, dict(SPLIT=8, SIZE=SUM, OVERLAP=True), 4))
    return cases
