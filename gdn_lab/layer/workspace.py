"""Memory for the buffers of layers that run one after the other."""

import math

import torch
from torch import Tensor


class Workspace:
    """Buffers by name: asking again for a name gives the same memory, as much of it as the new shape needs.

    A layer that has a workspace of its own shares nothing. The layers of a model share one, and so do its batch sizes
    if the largest asks first: later requests are then views of what is there.
    """

    def __init__(self, device=None):
        self.device = torch.device(device or "cpu")
        self._memory: dict[str, Tensor] = {}
        self._outgrown: list[Tensor] = []  # kept: captured CUDA graphs may use it

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Return a contiguous buffer: zeros when its memory is new, else whatever was left there."""
        nbytes = math.prod(shape) * dtype.itemsize
        memory = self._memory.get(name)
        if memory is None or len(memory) < nbytes:
            self._outgrown += [] if memory is None else [memory]
            memory = self._memory[name] = torch.zeros(nbytes, dtype=torch.uint8, device=self.device)
        return memory[:nbytes].view(dtype).view(shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(memory.nbytes for memory in (*self._memory.values(), *self._outgrown))
