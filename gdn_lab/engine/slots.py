"""State pools of all GDN layers, whose slots are handed out together: slot i is the same request in every layer."""

import torch

from ..backends.base import Ring
from ..models import CONV_WINDOW, GDNShape
from ..pool import CONV_DTYPE, StatePool
from ..ring import make_ring


class Slots:
    """Slots of the pools. pools: a StatePool for each layer, pieces of one tensor, so that a slot is zeroed at once.

    ring: updates that each slot's ring of deferred updates holds in each layer; 0: none.
    """

    def __init__(
        self, shape: GDNShape, layers: int, slots: int, *, layout: str, dtype: torch.dtype, device, ring: int = 0
    ):
        first = StatePool(shape, 2, layout=layout, dtype=dtype, device="meta")  # checks all but slots
        if type(slots) is not int or slots < 2:
            raise ValueError(f"slots: expected an int of at least 2 (slot 0 is the null slot), got {slots!r}")
        self._state = torch.zeros(layers, slots, *first.state.shape[1:], dtype=dtype, device=device)
        self._conv = torch.zeros(layers, slots, shape.conv_dim, CONV_WINDOW, dtype=CONV_DTYPE, device=device)
        self.pools = tuple(
            StatePool(shape, slots, layout=layout, dtype=dtype, device=device, memory=memory)
            for memory in zip(self._state, self._conv, strict=True)
        )
        self.slots, self._span = slots, None
        if ring:
            whole = make_ring(shape, layers * slots, ring, dtype=dtype, key_dtype=torch.bfloat16, device=device)
            pieces = zip(*(part.split(slots) for part in whole if part is not None), strict=True)
            for pool, piece in zip(self.pools, pieces, strict=True):
                pool.reserve_ring(ring, memory=Ring(*piece))
            self._span = whole.span.view(layers, slots, 2)
        self._free = list(range(slots - 1, 0, -1))  # handed out from the end: lowest slot first

    @property
    def free(self) -> int:
        """Slots that acquire() can still hand out."""
        return len(self._free)

    @property
    def slot_nbytes(self) -> int:
        """Bytes of one slot in all layers, its ring included."""
        ring = sum(pool.ring.nbytes for pool in self.pools if pool.ring)
        return (self._state.nbytes + self._conv.nbytes + ring) // self.slots

    def acquire(self) -> int:
        """Hand out a slot, zeroed in every layer. RuntimeError, one sentence, if none is free."""
        if not self._free:
            raise RuntimeError(
                f"the state pools are full: none of {self.slots - 1} slots is free; release one or build with more"
            )
        slot = self._free.pop()
        self._state[:, slot].zero_()
        self._conv[:, slot].zero_()
        if self._span is not None:
            self._span[:, slot, 0] = self._span[:, slot, 1]  # nothing is pending; the phase stays
        return slot

    def release(self, slot: int) -> None:
        """Take a slot back. ValueError if it was not handed out."""
        if slot in self._free or not 1 <= slot < self.slots:
            raise ValueError(f"slot: expected one that was handed out, got {slot!r}")
        self._free.append(slot)
