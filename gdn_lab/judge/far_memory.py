"""A pool so large that offsets need 64 bits, with next to no memory in use on a CPU."""

import mmap
import resource
import sys
from contextlib import contextmanager

import torch

from ..pool import StatePool
from .attempt import Refused
from .making import Made

BEYOND = (2**31, 2**32)  # elements, before slots that the call names
MAP_NORESERVE = 0x4000  # Linux's; Python names it from 3.13 on
SPARE_BYTES = 4 << 30  # that a kernel may allocate on a CPU meanwhile: one that copies the pool fails, not the machine


@contextmanager
def far_pool(candidate, call):
    """Yield (Made, slots) of a call on a pool of more than 2^32 elements, with as much memory before it as 2^31.

    An offset of 32 bits then finds other memory of the pool's, or before it, and not another program's.
    """
    if candidate.record.ring:
        raise Refused("the ring of so many slots takes too much memory")
    shape, state_dtype, *_ = call
    slot = shape.state_elements
    slots = [1, *(elements // slot + 1 for elements in BEYOND)]
    before, inside = 2**31, (slots[-1] + 2) * slot
    names = dict(zip(("shape", "state_dtype", "io_dtype", "index_dtype"), call, strict=True))
    made = candidate.make(candidate.usual(**names, batch=len(slots)))
    with _zeros(before + inside, state_dtype, candidate.device) as memory:
        _move(made, memory[before:].view(slots[-1] + 2, *made.pool.state.shape[1:]), slots)
        yield made, slots


def _move(made: Made, state: torch.Tensor, slots: list[int]) -> None:
    """Have a call work on `state`, at `slots`."""
    pool = made.pool
    small = StatePool(pool.shape, 2, layout=pool.layout, dtype=pool.dtype, device=pool.device)
    for slot, old in zip(slots, made.old, strict=True):
        small.write(torch.tensor([1]), old[None])
        state[slot] = small.state[1]
    pool.state, pool.slots = state, len(state)
    pool.launch_state = pool.launch_state._replace(data=state)
    made.indices.copy_(torch.tensor(slots))
    made.memory = state


@contextmanager
def _zeros(elements: int, dtype: torch.dtype, device: torch.device):
    """Yield zeros; on a CPU pages that are not touched take no memory. Refused where there is not enough."""
    nbytes = elements * dtype.itemsize
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
        if free < nbytes + (2 << 30):
            raise Refused(f"needs {nbytes >> 30} GiB of GPU memory; {free >> 30} are free")
        yield torch.zeros(elements, dtype=dtype, device=device)
        return
    if sys.platform != "linux":
        raise Refused("on a CPU it can be told on Linux alone")
    try:
        pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OSError as error:
        raise Refused(f"this machine gives no {nbytes >> 30} GiB of memory, touched or not ({error})") from error
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + SPARE_BYTES, hard))
    try:
        yield torch.frombuffer(pages, dtype=dtype)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    """Bytes of this process's address space, the pages just mapped among them."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
