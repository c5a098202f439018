"""Memory that pools may take: of the GPU, or without one of the host."""

from typing import NamedTuple

from ..trace.limits import available
from .visible_gpus import free_bytes

POOLS_SHARE = 0.4  # of free GPU memory that pools may take


class Room(NamedTuple):
    """Bytes that pools may take, and where: "this GPU" or "this machine"."""

    nbytes: int
    where: str


def room_for_pools() -> Room:
    """POOLS_SHARE of the GPU's free memory; without a GPU what this process can still get of the host's.

    NVML is asked, not CUDA: `gdn-lab record` and `sweep` check parameters in a process that must leave no context on
    a GPU, or their own probe would find that GPU in use.
    """
    import torch

    if torch.cuda.is_available():
        return Room(int(POOLS_SHARE * (free_bytes() or torch.cuda.mem_get_info()[0])), "this GPU")
    return Room(available(), "this machine")
