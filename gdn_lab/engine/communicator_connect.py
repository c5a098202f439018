"""Connect the joined ranks by a variant's name, or by the fastest variant for each size."""

import torch
from torch import Tensor

from .communicator import Communicator, Grouped
from .communicator_choice import ADD_NORM, DEFAULT, SUM, Choice
from .communicator_variants import VARIANTS, variants_on
from .symmetric import PeerPointers, TorchSymmetric

FASTEST = "fastest"


def connect(name: str, joined: Communicator, *, rows: int, hidden: int, choice: Choice = DEFAULT) -> Communicator:
    """A Communicator of all ranks that sums with one variant, or, as "fastest", with the fastest for each size.

    joined: what ranks.start() gives a function; returned as it is where there is one rank. rows, hidden: of the largest
    sum that must not be refused. choice: of "fastest" on GPUs; CPUs have gloo alone.
    ValueError: an unknown name, or one of another device.
    """
    known = variants_on(joined.device.type)
    if name not in (*known, FASTEST):
        raise ValueError(f"communicator: {name!r} is not one of {', '.join(known)} and {FASTEST}, which are here")
    if joined.size == 1:
        return joined
    if name == FASTEST and len(known) > 1:
        return Fastest(joined, choice, rows=rows, hidden=hidden)
    if name in ("nccl", "gloo", FASTEST):
        return joined
    made = PeerPointers if VARIANTS[name].fused else TorchSymmetric
    return made(joined.device, rows=rows, hidden=hidden, two_shot=name.endswith("two-shot"))


class Fastest(Grouped):
    """Sums with the fastest variant for each size. Those that its choice names are connected when it is made.

    An x larger than rows · hidden goes to NCCL, as a prefill's does.
    """

    def __init__(self, joined: Communicator, choice: Choice, *, rows: int, hidden: int):
        super().__init__(joined.device)
        self.name, self.choice, self._largest = FASTEST, choice, rows * hidden
        names = {name for steps in choice.fastest.values() for _, name in steps} | {"nccl"}
        self._connected = {name: connect(name, joined, rows=rows, hidden=hidden) for name in sorted(names)}

    def _for(self, operation: str, x: Tensor) -> Grouped:
        name = self.choice.variant(operation, x.nbytes) if x.numel() <= self._largest else "nccl"
        return self._connected[name]

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._for(SUM, x).all_reduce(x)

    def all_reduce_add_norm(self, x, *arguments, **options) -> None:
        self._for(ADD_NORM, x).all_reduce_add_norm(x, *arguments, **options)

    def buffer(self, rows: int, hidden: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Symmetric memory if a variant of torch's is among the connected: the others take any memory."""
        torchs = [one for one in self._connected.values() if isinstance(one, TorchSymmetric)]
        return (torchs[0] if torchs else super()).buffer(rows, hidden, dtype)
