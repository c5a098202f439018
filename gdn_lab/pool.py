"""The state pool: what a serving engine keeps for each request, in slots that requests take and give back.

Two memory orders of the recurrent state, both contiguous:

    VK (K-last)   [slots, HV, V, K]   a row of S, all K values of one v, is one run of memory
    KV            [slots, HV, K, V]   a column of S, all V values of one k, is one run of memory

Slot 0 is the null slot: never handed out, free for backends to scribble on for padding rows.
"""

import torch
from torch import Tensor

from .shapes import CONV_WINDOW, GDNShape

LAYOUTS = ("VK", "KV")
STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CONV_DTYPE = torch.bfloat16  # the window holds activations, which engines keep in bf16 whatever the state's dtype


class StatePool:
    """Recurrent state and convolution window of one GDN layer for `slots - 1` requests.

    shape: heads of the layer on this GPU. slots: slots allocated, slot 0 (the null slot) included; at least 2.
    layout: "VK" or "KV". dtype: float32, bfloat16 or float16 of the state. device: as torch takes it.

    state [slots, HV, V, K] (VK) or [slots, HV, K, V] (KV); conv [slots, conv_dim, 3] bf16. Both start as zeros.
    Raises ValueError for an unknown layout or dtype or too few slots.
    """

    def __init__(self, shape: GDNShape, slots: int, *, layout="VK", dtype=torch.bfloat16, device=None):
        if not isinstance(shape, GDNShape):
            raise ValueError(f"shape: expected a GDNShape, got {type(shape).__name__}")
        if type(slots) is not int or slots < 2:
            raise ValueError(f"slots: expected an int of at least 2 (slot 0 is the null slot), got {slots!r}")
        if layout not in LAYOUTS:
            raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
        if dtype not in STATE_DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(map(str, STATE_DTYPES))}, got {dtype}")
        self.shape, self.slots, self.layout, self.dtype = shape, slots, layout, dtype
        inner = (shape.head_v_dim, shape.head_k_dim) if layout == "VK" else (shape.head_k_dim, shape.head_v_dim)
        self.state = torch.zeros(slots, shape.num_v_heads, *inner, dtype=dtype, device=device)
        self.conv = torch.zeros(slots, shape.conv_dim, CONV_WINDOW, dtype=CONV_DTYPE, device=device)
        self.device = self.state.device
        self._free = list(range(slots - 1, 0, -1))  # handed out from the end: lowest slot first

    def __repr__(self):
        return (
            f"StatePool({self.slots} slots of {self.shape.num_v_heads} heads, {self.layout}, "
            f"{str(self.dtype).removeprefix('torch.')}, {self.device}, {self.nbytes / 1e6:.1f} MB, {self.free} free)"
        )

    @staticmethod
    def slot_nbytes(shape: GDNShape, dtype=torch.bfloat16) -> dict[str, int]:
        """Bytes of one slot in one layer: {"state": HV·V·K elements of dtype, "conv": conv_dim·3 of bf16}."""
        return {
            "state": shape.state_elements * dtype.itemsize,
            "conv": shape.conv_dim * CONV_WINDOW * CONV_DTYPE.itemsize,
        }

    @property
    def nbytes(self) -> int:
        """Bytes that state and convolution window occupy, the null slot included."""
        return self.slots * sum(self.slot_nbytes(self.shape, self.dtype).values())

    @property
    def free(self) -> int:
        """Slots that acquire() can still hand out."""
        return len(self._free)

    def acquire(self, n: int) -> Tensor:
        """Hands out n slots, zeroed: int32 [n] on the pool's device. RuntimeError if fewer than n are free."""
        if type(n) is not int or n < 0:
            raise ValueError(f"n: expected an int of at least 0, got {n!r}")
        if n > self.free:
            raise RuntimeError(
                f"the pool is full: acquire({n}) with {self.free} of {self.slots - 1} slots free; "
                "release slots first or build the pool with more"
            )
        taken = [self._free.pop() for _ in range(n)]
        indices = torch.tensor(taken, dtype=torch.int32, device=self.device)
        self.state[indices] = 0
        self.conv[indices] = 0
        return indices

    def release(self, indices: Tensor) -> None:
        """Takes slots back; negative entries (padding) are passed over.

        ValueError, with nothing released, if one is out of range, twice in the list, or not handed out.
        """
        given = [slot for slot in self._slots_of(indices) if slot >= 0]
        if len(set(given)) < len(given):
            raise ValueError(f"indices: expected each slot once, got {given}")
        idle = sorted(set(given) & ({0} | set(self._free)))
        if idle:
            raise ValueError(f"indices: expected slots that were handed out, got {idle}, free or the null slot")
        self._free.extend(reversed(given))

    def read(self, indices: Tensor) -> Tensor:
        """The state of the given slots, [n, HV, V, K] float32 whatever the pool stores; zeros for negative indices."""
        slots = torch.tensor(self._slots_of(indices), dtype=torch.int64, device=self.device)
        state = self.state[slots.clamp(min=0)].to(torch.float32)
        state = state if self.layout == "VK" else state.transpose(-1, -2)
        return torch.where((slots >= 0)[:, None, None, None], state, 0.0).contiguous()

    def write(self, indices: Tensor, state: Tensor) -> None:
        """Stores state [n, HV, V, K], rounded to the pool's dtype; rows of negative indices are passed over."""
        slots = torch.tensor(self._slots_of(indices), dtype=torch.int64)
        expected = (len(slots), self.shape.num_v_heads, self.shape.head_v_dim, self.shape.head_k_dim)
        if state.shape != expected:
            raise ValueError(f"state: expected shape {list(expected)} ([n, HV, V, K]), got {list(state.shape)}")
        live = slots >= 0
        state = state if self.layout == "VK" else state.transpose(-1, -2)
        self.state[slots[live].to(self.device)] = state[live.to(state.device)].to(self.device, self.dtype)

    def to(self, *, layout=None, dtype=None, device=None) -> "StatePool":
        """A new pool with the same contents and the same slots handed out, in another layout, dtype or device."""
        layout, dtype, device = layout or self.layout, dtype or self.dtype, device or self.device
        other = StatePool(self.shape, self.slots, layout=layout, dtype=dtype, device=device)
        other.state.copy_(self.state if other.layout == self.layout else self.state.transpose(-1, -2))
        other.conv.copy_(self.conv)
        other._free = list(self._free)
        return other

    def _slots_of(self, indices: Tensor) -> list[int]:
        """indices [n] as Python ints, checked against the pool's range. Synchronises with a GPU."""
        if not isinstance(indices, Tensor) or indices.dim() != 1 or indices.dtype not in (torch.int32, torch.int64):
            seen = f"{indices.dtype} {list(indices.shape)}" if isinstance(indices, Tensor) else type(indices).__name__
            raise ValueError(f"indices: expected an int32 or int64 tensor [n], got {seen}")
        slots = indices.tolist()
        outside = [slot for slot in slots if slot >= self.slots]
        if outside:
            raise ValueError(f"indices: expected slots below {self.slots}, got {outside}")
        return slots
