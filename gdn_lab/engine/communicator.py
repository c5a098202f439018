"""What a model needs of other tensor-parallel ranks: sums on the device, and a few words on the host.

A model calls a Communicator and does not know how many ranks there are. Alone is the one of a single GPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, distributed


class Communicator(ABC):
    """One rank of `size`. Every rank makes the same calls in the same order, with the same shapes.

    name: as rows and tables show it. all_reduce, all_reduce_add_norm and all_gather can be captured in a CUDA graph
    once each was called with the same shape outside of one.
    """

    name: str
    rank: int = 0
    size: int = 1
    device: torch.device

    @abstractmethod
    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of x [rows, hidden] over ranks, the same bits on each. It may be x itself, overwritten."""

    def all_reduce_add_norm(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        residual_out: Tensor,
        y: Tensor,
        y8: Tensor | None = None,
        y_scale: Tensor | None = None,
        *,
        add_norm: Callable,
    ) -> None:
        """residual_out = residual + sum of x over ranks; y = RMSNorm(residual_out) · (1 + weight).

        add_norm: of layer/kernels/norms.py or layer_reference.py, with these arguments; it runs after the all-reduce
        where the two are not one kernel. y8, y_scale: y as FP8.
        """
        add_norm(self.all_reduce(x), residual, weight, residual_out, y, y8, y_scale)

    def buffer(self, rows: int, hidden: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Memory [rows, hidden] for an x that all_reduce() takes without a copy. Every rank asks for it."""
        return torch.empty(rows, hidden, dtype=dtype, device=self.device)

    @abstractmethod
    def all_gather(self, x: Tensor) -> Tensor:
        """x of every rank side by side along the last dimension, in the order of ranks."""

    @abstractmethod
    def broadcast_object(self, value, source: int = 0):
        """The `value` of rank `source`, a picklable object of the host, on every rank."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait on the host until every rank is here."""

    def close(self) -> None:  # noqa: B027  most ranks share nothing that needs it
        """Give back what the ranks share. Nothing may be called after it."""


class Alone(Communicator):
    """The only rank: nothing is sent."""

    name = "alone"

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x

    def broadcast_object(self, value, source: int = 0):
        return value

    def barrier(self) -> None:
        pass


class Grouped(Communicator):
    """One rank of torch.distributed's default process group, joined before (ranks.join). Sums with its all_reduce.

    On a GPU that is NCCL's, on a CPU gloo's. The host's words always go over gloo.
    """

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self.name = distributed.get_backend()
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self._host = distributed.new_group(backend="gloo")

    def all_reduce(self, x: Tensor) -> Tensor:
        distributed.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        gathered = torch.empty(self.size, *x.shape, dtype=x.dtype, device=x.device)
        distributed.all_gather(list(gathered.unbind()), x.contiguous())
        return gathered.movedim(0, -2).flatten(-2)

    def broadcast_object(self, value, source: int = 0):
        values = [value]
        distributed.broadcast_object_list(values, src=source, group=self._host)
        return values[0]

    def barrier(self) -> None:
        distributed.barrier(group=self._host)
