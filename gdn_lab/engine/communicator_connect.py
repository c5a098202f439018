"""Connect the joined ranks by a variant's name, or by the fastest variant for each size."""

import torch
from torch import Tensor

from .communicator import Grouped
from .communicator_choice import ADD_NORM, DEFAULT, SUM, Choice
from .communicator_variants import VARIANTS, variants_on
from .symmetric import PeerPointers, TorchSymmetric


def connect(name: str, device: torch.device, *, rows: int, hidden: int, choice: Choice = DEFAULT) -> Grouped:
    """A Communicator of the joined ranks that sums with one variant on `device`, or, as "fastest", with several.

    rows, hidden: of the largest sum that must not be refused. choice: of "fastest", which a CPU has not.
    ValueError: an unknown name, or one of another device.
    """
    known = [*variants_on(device.type), *(["fastest"] if device.type == "cuda" else [])]
    if name not in known:
        raise ValueError(f"communicator: {name!r} is not one of {', '.join(known)}, which {device.type} has")
    if name == "fastest":
        return Fastest(device, choice, rows=rows, hidden=hidden)
    if name in ("nccl", "gloo"):
        return Grouped(device)
    made = PeerPointers if VARIANTS[name].fused else TorchSymmetric
    return made(device, rows=rows, hidden=hidden, two_shot=name.endswith("two-shot"))


class Fastest(Grouped):
    """Sums with the fastest variant for each size. Those that its choice names are connected when it is made.

    An x larger than rows · hidden goes to NCCL, as a prefill's does.
    """

    def __init__(self, device: torch.device, choice: Choice, *, rows: int, hidden: int):
        super().__init__(device)
        self.name, self.choice, self._largest = "fastest", choice, rows * hidden
        names = {name for steps in choice.fastest.values() for _, name in steps} | {"nccl"}
        self._connected = {name: connect(name, device, rows=rows, hidden=hidden) for name in sorted(names)}

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
