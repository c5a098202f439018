"""State pools of all GDN layers, whose slots are handed out together: slot i is the same request in every layer."""

import torch

from ..backends.base import Ring
from ..e4m3 import FP8
from ..models import CONV_WINDOW, GDNShape
from ..pool import CONV_DTYPE, StatePool
from ..ring import make_ring


class Slots:
    """Slots of the pools. pools: a StatePool for each layer, pieces of one tensor, so that a slot is zeroed at once.

    ring: updates that each slot's ring of deferred updates holds in each layer; 0: none. Layers run one after the
    other, so that those of an FP8 state share the operands. Each rounds with random bits of its own, which go on from
    one request of a slot to the next.
    """

    def __init__(
        self, shape: GDNShape, layers: int, slots: int, *, layout: str, dtype: torch.dtype, device, ring: int = 0
    ):
        first = StatePool(shape, 2, layout=layout, dtype=dtype, device="meta")  # checks all but slots
        if type(slots) is not int or slots < 2:
            raise ValueError(f"slots: expected an int of at least 2 (slot 0 is the null slot), got {slots!r}")
        self._state = torch.zeros(layers, slots, *first.state.shape[1:], dtype=dtype, device=device)
        self._conv = torch.zeros(layers, slots, shape.conv_dim, CONV_WINDOW, dtype=CONV_DTYPE, device=device)
        self._zeroed, memories = [self._state, self._conv], zip(self._state, self._conv, strict=True)
        if dtype is FP8:
            scales = torch.zeros(layers, slots, shape.num_v_heads, shape.head_v_dim, device=device)
            self._zeroed, memories = [*self._zeroed, scales], zip(self._state, self._conv, scales, strict=True)
        self.pools = tuple(
            StatePool(shape, slots, layout=layout, dtype=dtype, device=device, memory=memory, seed=layer)
            for layer, memory in enumerate(memories)
        )
        self.slots, self._ring = slots, None
        if ring:
            options = {"dtype": dtype, "key_dtype": torch.bfloat16, "device": device}
            self._ring = make_ring(shape, slots, ring, **options, layers=layers)
            *parts, operands = self._ring
            for pool, piece in zip(self.pools, zip(*(part.split(slots) for part in parts), strict=True), strict=True):
                pool.reserve_ring(ring, memory=Ring(*piece, operands))
        self._free = list(range(slots - 1, 0, -1))  # handed out from the end: lowest slot first

    @property
    def free(self) -> int:
        """Slots that acquire() can still hand out."""
        return len(self._free)

    @property
    def slot_nbytes(self) -> int:
        """Bytes of one slot in all layers, its ring included, but not the operands."""
        ring = self._ring._replace(operands=None).nbytes if self._ring else 0
        return (sum(part.nbytes for part in self._zeroed) + ring) // self.slots

    def acquire(self) -> int:
        """Hand out a slot, zeroed in every layer. RuntimeError, one sentence, if none is free."""
        if not self._free:
            raise RuntimeError(
                f"the state pools are full: none of {self.slots - 1} slots is free; release one or build with more"
            )
        slot = self._free.pop()
        for part in self._zeroed:
            part[:, slot] = 0
        if self._ring is not None:
            span = self._ring.span.view(-1, self.slots, 2)[:, slot]
            span[:, 0] = span[:, 1]  # nothing is pending; the phase stays
        return slot

    def release(self, slot: int) -> None:
        """Take a slot back. ValueError if it was not handed out."""
        if slot in self._free or not 1 <= slot < self.slots:
            raise ValueError(f"slot: expected one that was handed out, got {slot!r}")
        self._free.append(slot)
