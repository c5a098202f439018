"""y = x Wᵀ in Triton for few rows: FP8 with block scales, or bf16.

As in experts_kernels.py the weight is the tensor cores' first operand, read from shared memory as it lies, and the
products of each 128 of K are scaled and added in float32. Few rows make few programs, so K is split among more of them:
each leaves its part in memory, and the last one to arrive adds the parts up in their order, so that results do not
depend on who was last. With `overlap` a program asks for its first weights before it waits for the kernel ahead, on
which they do not depend.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ...backends.base import KernelCase
from ..fp8 import Linear
from .experts_kernels import BLOCK, INTERPRETED, dot, narrow

AHEAD = 4  # blocks of K asked for before the wait
TILE = 64  # rows of a weight: what Hopper's tensor cores take at least
PROGRAMS = 176  # parts of K are made up to here: an H100 has 132 SMs


class Tiling(NamedTuple):
    """How linear_kernel is launched for one number of rows."""

    block_m: int  # rows of x of a program
    tile: int  # rows of the weight of a program
    split: int  # parts of K
    warps: int = 4
    stages: int = 4


@triton.jit(do_not_specialize=["M", "x_scale_row", "x_scale_group"])
def linear_kernel(
    x, x_scale, w, w_scale, parts, arrived, out, M, N, K, x_row, x_scale_row, x_scale_group, out_row,
    BLOCK_M: tl.constexpr, TILE: tl.constexpr, BLOCK_K: tl.constexpr, AHEAD: tl.constexpr, SPLIT: tl.constexpr,
    EVEN: tl.constexpr, FP8: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: TILE of N by BLOCK_M rows, one part of K. Grid: [ceil(N / TILE) · SPLIT, ceil(M / BLOCK_M)].

    x [M, K], FP8: e4m3 with x_scale [M, ceil(K / 128)] by strides; w [N, K], w_scale [ceil(N / 128), ceil(K / 128)];
    out [M, N] bf16, rows out_row apart. EVEN: K is a multiple of BLOCK_K. With SPLIT > 1 parts [SPLIT, M, N] float32,
    and arrived [tiles], zero before and after: how many programs of a tile have left their part.
    """
    tile = tl.program_id(0) // SPLIT
    part = tl.program_id(0) % SPLIT
    blocks = (K + BLOCK_K - 1) // BLOCK_K
    first = part * blocks // SPLIT
    end = (part + 1) * blocks // SPLIT
    ks = tl.arange(0, BLOCK_K)
    ns = tile * TILE + tl.arange(0, TILE)
    ms = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = ms < M
    w_rows = w + tl.minimum(ns, N - 1).to(tl.int64)[:, None] * K
    if OVERLAP:
        if not INTERPRETED:
            ahead = tl.minimum(first + tl.arange(0, AHEAD), end - 1)
            lines = (w_rows + ahead[None, :] * BLOCK_K).to(tl.int64)
            asm: tl.constexpr = "prefetch.global.L2 [$1]; mov.b32 $0, 0;"
            tl.inline_asm_elementwise(asm, "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1)
        gdc_wait()
        gdc_launch_dependents()
    w_at = w_rows + ks[None, :]  # [TILE, BLOCK_K], K contiguous
    x_at = x + ms.to(tl.int64)[None, :] * x_row + ks[:, None]  # [BLOCK_K, BLOCK_M], K contiguous
    x_s_at = x_scale + ms * x_scale_row
    w_s_at = w_scale + (tile * TILE // BLOCK) * blocks
    total = tl.zeros([TILE, BLOCK_M], tl.float32)
    if FP8:  # scales are loaded a block ahead: nothing waits for them
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
    tl.debug_barrier()  # all of the program's part is stored before it is counted
    mine = arrived + tile * tl.num_programs(1) + tl.program_id(1)
    before = tl.atomic_add(mine, 1, sem="acq_rel")
    if before == SPLIT - 1:
        tl.store(mine, 0)
        total = tl.zeros([TILE, BLOCK_M], tl.float32)
        for other in tl.static_range(SPLIT):
            # past the L1, which knows nothing of what other programs stored
            total += tl.load(part_at + (other * M).to(tl.int64) * N, mask=mask, other=0.0, cache_modifier=".cg")
        tl.store(out_at, narrow(total, tl.bfloat16, 7), mask=mask)


class Scratch(NamedTuple):
    """What a product split along K keeps between its programs; one for each weight, for any number of calls."""

    parts: torch.Tensor  # [split, M, N] float32
    arrived: torch.Tensor  # [tiles] int32, zero between calls

    @classmethod
    def of(cls, rows: int, weight: Linear) -> "Scratch | None":
        """For products of `rows` rows with `weight`; None: they need none."""
        N, K = weight.data.shape
        t = tiling(rows, N, K, weight.scale is not None)
        if t.split == 1:
            return None
        tiles = triton.cdiv(N, t.tile) * triton.cdiv(rows, t.block_m)
        device = weight.data.device
        return cls(torch.empty(t.split, rows, N, device=device), torch.zeros(tiles, dtype=torch.int32, device=device))


def linear(
    x: torch.Tensor, x_scale: torch.Tensor | None, weight: Linear, out: torch.Tensor, *, scratch: Scratch | None = None,
    overlap: bool = False,
) -> torch.Tensor:  # fmt: skip
    """out [M, N] bf16 = x Wᵀ. weight [N, K] FP8: x [M, K] e4m3 and x_scale [M, ceil(K / 128)] float32, of any strides,
    are what fp8.quantize_rows makes; bf16: x [M, K] bf16, x_scale is not read.

    scratch: Scratch.of(M, weight), made anew by default. overlap: programmatic dependent launch, from compute
    capability 9.0.
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
        x, scale, weight.data, w_scale, parts, arrived, out, M, N, K, x.stride(0), *scale.stride(), out.stride(0),
        t.block_m, t.tile, block_k, AHEAD, t.split, K % block_k == 0, fp8, overlap,
        num_warps=t.warps, num_stages=t.stages, launch_pdl=overlap,
    )  # fmt: skip
    return out


def tiling(M: int, N: int, K: int, fp8: bool) -> Tiling:
    """For M rows: small tiles, and as many parts of K as fill a GPU. Chosen by times on an H100."""
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
    """Whether linear() beats torch's product, on an H100: for few rows, for few columns, for a short sum; with more of
    each torch's larger tiles do, which read a large weight fewer times."""
    return M <= 16 or M <= 64 and N * K <= 1 << 24 or N <= 64 or K <= 1024


def kernel_cases() -> list[KernelCase]:
    """Every number of rows and parts that linear() takes, for resources.py."""
    cases = []
    for fp8 in (True, False):
        data, name = ("*fp8e4nv", "fp8") if fp8 else ("*bf16", "bf16")
        scale = "*fp32" if fp8 else "*bf16"
        types = dict.fromkeys(linear_kernel.arg_names, "i32") | {"x": data, "w": data, "x_scale": scale}
        types |= {"w_scale": scale, "parts": "*fp32", "arrived": "*i32", "out": "*bf16"}
        tilings = {tiling(M, N, 4096, fp8) for M in (16, 32, 64, 256) for N in (16, 2560, 1 << 17)}
        for t in sorted(tilings):
            for even in (True, False) if t.split == 1 else (True,):
                constants = dict(BLOCK_M=t.block_m, TILE=t.tile, BLOCK_K=128 if fp8 else 64, AHEAD=AHEAD)
                constants |= dict(SPLIT=t.split, EVEN=even, FP8=fp8, OVERLAP=True)
                label = f"linear {name} {t.block_m} x {t.tile} split {t.split}{'' if even else ' uneven'}"
                cases.append(KernelCase(label, linear_kernel, types, constants, t.warps, None, t.stages))
    return cases
