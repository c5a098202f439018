"""Several ranks in one process: their scratches are tensors of the same memory.

everywhere() runs the stages of kernels one after the other; at_once() runs whole kernels on streams of their own.
"""

import torch

from .all_reduce_kernels import ADD, RECEIVE, SEND
from .all_reduce_launch import HALVES, Peers, empty, one_shot, scratch_elements, two_shot

# Integers apart: Triton specializes by whether an address is a multiple of 16 bytes. With one kernel for all ranks none
# is loaded while that of another rank waits for it: loading may wait for all that runs on the GPU.
ALIGNED = 4
STAGES = {one_shot: (SEND, ADD), two_shot: (SEND, ADD, RECEIVE)}


def emulated(ranks: int, rows: int, hidden: int, multiprocessors: int = 1, device=None) -> list[Peers]:
    """Peers of each rank, their scratches large enough for `rows`."""
    scratches = torch.empty(ranks, HALVES, scratch_elements(rows, hidden, ranks), dtype=torch.int16, device=device)
    empty(scratches)
    addresses = torch.tensor([scratch.data_ptr() for scratch in scratches], device=device)
    counters = torch.zeros(ranks, ALIGNED, dtype=torch.int32, device=device)[:, :1]
    return [Peers(rank, ranks, scratches[rank], addresses, counters[rank], multiprocessors) for rank in range(ranks)]


def everywhere(kernel, peers, xs, ys, norms) -> None:
    """The call of each rank: a stage of all ranks before the next stage of any."""
    for stage in STAGES[kernel]:
        for rank in peers:
            kernel(xs[rank.rank], ys[rank.rank], peers=rank, norm=norms[rank.rank], stages=(stage, stage))


def at_once(kernel, peers, xs, ys, norms, streams) -> None:
    """The call of each rank on a stream of its own: the kernels wait for each other, on one GPU."""
    torch.cuda.synchronize()
    for rank, stream in zip(peers, streams, strict=True):
        with torch.cuda.stream(stream):
            kernel(xs[rank.rank], ys[rank.rank], peers=rank, norm=norms[rank.rank])
    torch.cuda.synchronize()
