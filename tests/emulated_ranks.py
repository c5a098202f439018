"""Several ranks in one process: scratches are tensors of the same memory, kernels' stages run one after the other."""

import torch

from gdn_lab.engine.all_reduce_kernels import ADD, RECEIVE, SEND
from gdn_lab.engine.all_reduce_launch import HALVES, Peers, empty, one_shot, scratch_elements, two_shot

STAGES = {one_shot: (SEND, ADD), two_shot: (SEND, ADD, RECEIVE)}


def emulated(ranks: int, rows: int, hidden: int, multiprocessors: int = 1) -> list[Peers]:
    """Peers of each rank, their scratches large enough for `rows`."""
    scratches = torch.empty(ranks, HALVES, scratch_elements(rows, hidden, ranks), dtype=torch.int16)
    empty(scratches)
    addresses = torch.tensor([scratch.data_ptr() for scratch in scratches])
    counters = torch.zeros(ranks, 1, dtype=torch.int32)
    return [Peers(rank, ranks, scratches[rank], addresses, counters[rank], multiprocessors) for rank in range(ranks)]


def everywhere(kernel, peers, xs, ys, norms) -> None:
    """The call of each rank: a stage of all ranks before the next stage of any."""
    for stage in STAGES[kernel]:
        for rank in peers:
            kernel(xs[rank.rank], ys[rank.rank], peers=rank, norm=norms[rank.rank], stages=(stage, stage))
