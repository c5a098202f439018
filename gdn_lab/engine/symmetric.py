"""All-reduces over symmetric memory: torch's, and this workbook's kernels on peer pointers. NVLink, one host.

Symmetric memory is allocated and exchanged (a rendezvous) when a communicator is made, never within a graph capture.
Multicast is not used: torch reads the variable below when it first allocates.
"""

import os

import torch
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor, distributed

from . import all_reduce_launch
from .all_reduce_launch import HALVES, Norm, Peers, empty, refusal, scratch_elements
from .communicator import Grouped

os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
SHARED: dict[int, tuple] = {}  # {address of the storage: memory and torch's handle} of every buffer(), kept for good


def shared_by_all(elements: int, dtype: torch.dtype, device: torch.device):
    """(memory that all ranks can read and write, torch's handle with the addresses of all). Every rank calls it."""
    memory = symmetric_memory.empty(elements, dtype=dtype, device=device)
    return memory, symmetric_memory.rendezvous(memory, distributed.group.WORLD.group_name)


class TorchSymmetric(Grouped):
    """torch.ops.symm_mem: `two_shot`, or one shot. An x that is no buffer() is copied into one first."""

    def __init__(self, device, *, rows: int, hidden: int, two_shot: bool, dtype: torch.dtype = torch.bfloat16):
        super().__init__(device)
        self.name = "torch-two-shot" if two_shot else "torch-one-shot"
        self._two_shot, self._group = two_shot, distributed.group.WORLD.group_name
        self._copy = self.buffer(rows, hidden, dtype)

    def buffer(self, rows: int, hidden: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        memory, handle = shared_by_all(rows * hidden, dtype, self.device)
        SHARED[memory.untyped_storage().data_ptr()] = memory, handle
        return memory.view(rows, hidden)

    def all_reduce(self, x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in SHARED or not x.is_contiguous():
            if x.numel() > self._copy.numel():
                raise ValueError(f"x: made for up to {self._copy.numel()} elements, got {x.numel()}; take a buffer()")
            x = self._copy.view(-1)[: x.numel()].view(x.shape).copy_(x)
        if self._two_shot:
            torch.ops.symm_mem.two_shot_all_reduce_(x.view(-1), "sum", self._group)
            return x
        return torch.ops.symm_mem.one_shot_all_reduce(x.view(-1), "sum", self._group).view(x.shape)


class PeerPointers(Grouped):
    """The kernels of all_reduce_kernels.py: `two_shot`, or one shot. Residual and norm are part of the same launch.

    rows, hidden: the largest x. Sums above that are refused. x may be any tensor of 16-byte aligned rows.
    """

    def __init__(self, device, *, rows: int, hidden: int, two_shot: bool):
        super().__init__(device)
        if self.size & (self.size - 1):
            raise ValueError(f"ranks: the kernels on peer pointers sum over a power of 2, got {self.size}; use nccl")
        self.name = "two-shot" if two_shot else "one-shot"
        self._launch = all_reduce_launch.two_shot if two_shot else all_reduce_launch.one_shot
        self.peers = self._meet(scratch_elements(rows, hidden, self.size))

    def _meet(self, capacity: int) -> Peers:
        """Share scratches, and wait until all are EMPTY."""
        scratch, handle = shared_by_all(HALVES * capacity, torch.int16, self.device)
        empty(scratch)
        addresses = torch.tensor(list(handle.buffer_ptrs), dtype=torch.int64, device=self.device)
        counter = torch.zeros(1, dtype=torch.int32, device=self.device)
        torch.cuda.synchronize(self.device)
        self.barrier()
        count = torch.cuda.get_device_properties(self.device).multi_processor_count
        self._handle = handle  # keeps the peers' memory mapped
        return Peers(self.rank, self.size, scratch.view(HALVES, capacity), addresses, counter, count)

    def fits(self, x: Tensor) -> bool:
        """Whether all_reduce() takes x."""
        return refusal(x, self.peers) is None

    def all_reduce(self, x: Tensor) -> Tensor:
        self._launch(x, x, peers=self.peers)
        return x

    def all_reduce_add_norm(self, x, residual, weight, residual_out, y, y8=None, y_scale=None, *, add_norm) -> None:
        self._launch(x, y, peers=self.peers, norm=Norm(residual, weight, residual_out, y8, y_scale))
