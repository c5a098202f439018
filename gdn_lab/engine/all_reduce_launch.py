"""Launches of the all-reduce kernels, and the scratch that each rank needs for them."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..layer.fp8 import BLOCK, E4M3_MAX, SMALLEST_AMAX
from ..reference import NORM_EPS
from .all_reduce_kernels import ADD, EMPTY, RECEIVE, SEND, one_shot_kernel, two_shot_kernel

FLOATS = {torch.bfloat16: triton.language.bfloat16, torch.float16: triton.language.float16}
HALVES = 2
WARPS_PER_SM = 16  # all programs of a launch run at once, since they wait for each other: 128 registers a thread
ELEMENTS_PER_WARP = 1024


class Norm(NamedTuple):
    """The add_norm() that follows an all-reduce: its arguments but for x and y."""

    residual: Tensor
    weight: Tensor
    residual_out: Tensor
    y8: Tensor | None = None
    y_scale: Tensor | None = None


class Peers(NamedTuple):
    """One rank's view of all scratches. scratch: its own, int16 [2, capacity], EMPTY all over before the first call.

    addresses: int64 [size], on the device, of each rank's scratch as this rank's GPU sees it. counter: int32 [1], zero.
    size is a power of 2. multiprocessors: of the GPU.
    """

    rank: int
    size: int
    scratch: Tensor
    addresses: Tensor
    counter: Tensor
    multiprocessors: int

    @property
    def capacity(self) -> int:
        return self.scratch.shape[1]


def scratch_elements(rows: int, hidden: int, size: int) -> int:
    """Elements of half a scratch that both kernels fit into, a multiple of 16: RANKS · rows rows, padded to owners."""
    owned = -(-rows // size)
    return max(size * rows, size * owned + rows) * hidden


def empty(scratch: Tensor) -> None:
    """Mark all of a scratch as not yet written."""
    scratch.fill_(EMPTY.value)


def refusal(x: Tensor, peers: Peers) -> str | None:
    """One sentence on why the kernels cannot sum x, or None."""
    if x.ndim != 2 or x.dtype not in FLOATS:
        return f"x: expected [rows, hidden] of bfloat16 or float16, got {list(x.shape)} {x.dtype}"
    rows, hidden = x.shape
    if hidden % BLOCK or x.stride(1) != 1 or x.stride(0) % 8:
        return (
            f"x: expected rows of a multiple of {BLOCK} elements, 16-byte aligned, got strides {x.stride()}, {hidden}"
        )
    if scratch_elements(rows, hidden, peers.size) > peers.capacity:
        most = peers.capacity // (scratch_elements(peers.size, hidden, peers.size) // peers.size)
        return f"x: the scratch holds {most} rows of {hidden}, got {rows}; ask for more with `rows` or use NCCL"
    return None


def one_shot(x, y, *, peers: Peers, norm: Norm | None = None, stages=(SEND, ADD)) -> None:
    """y = sum of x over ranks; with `norm`, residual_out and y as add_norm() of the sum. y may be x. Not for PDL."""
    _launch(one_shot_kernel, x, y, peers, norm, stages)


def two_shot(x, y, *, peers: Peers, norm: Norm | None = None, stages=(SEND, RECEIVE)) -> None:
    """As one_shot(), with fewer bytes over the link for three ranks and more."""
    _launch(two_shot_kernel, x, y, peers, norm, stages)


def _launch(kernel, x, y, peers, norm, stages) -> None:
    if problem := refusal(x, peers):
        raise ValueError(problem)
    if not x.shape[0]:
        return
    warps = num_warps(x.shape[1], peers.size)
    programs = peers.multiprocessors * (WARPS_PER_SM // warps)
    kernel[(min(x.shape[0], programs),)](**_arguments(x, y, peers, norm, stages), num_warps=warps)


def num_warps(hidden: int, ranks: int) -> int:
    """Warps of a program, which holds a row of each rank."""
    return min(max(4, ranks * triton.next_power_of_2(hidden) // ELEMENTS_PER_WARP), WARPS_PER_SM)


def _arguments(x: Tensor, y: Tensor, peers: Peers, norm: Norm | None, stages) -> dict:
    """Keyword arguments of a kernel."""
    rows, hidden = x.shape
    quantize = norm is not None and norm.y8 is not None
    return dict(
        x=x.view(torch.int16),
        residual=norm.residual if norm else y,
        weight=norm.weight if norm else y,
        residual_out=norm.residual_out if norm else y,
        y=y,
        y8=norm.y8 if quantize else y,
        y_scale=norm.y_scale if quantize else y,
        scratches=peers.addresses,
        scratch=peers.scratch,
        counter=peers.counter,
        rank=peers.rank,
        rows=rows,
        hidden=hidden,
        x_row=x.stride(0),
        scale_group=norm.y_scale.stride(1) if quantize else 0,
        capacity=peers.capacity,
        RANKS=peers.size,
        FLOAT=FLOATS[x.dtype],
        NORM=norm is not None,
        BLOCK=triton.next_power_of_2(hidden),
        GROUP=BLOCK,
        QUANTIZE=quantize,
        EPS=NORM_EPS,
        MAX=E4M3_MAX,
        SMALLEST=SMALLEST_AMAX,
        FIRST=stages[0].value,
        LAST=stages[1].value,
    )
