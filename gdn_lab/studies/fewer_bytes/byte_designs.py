"""The designs that notebook 12 compares: what each moves in a step and keeps for a request, by formula."""

from typing import NamedTuple

import torch

from ...costs import decode_bytes, replay_bytes
from ...models import GDNShape, ring_nbytes, slot_nbytes
from ...rounding import FP8

SCALE_BYTES = 4  # of an FP8 state: one float32 for each of its rows, K elements


class Design(NamedTuple):
    """One way to keep and update the state. updates: C of its ring, 0 in place."""

    dtype: torch.dtype
    updates: int = 0

    @property
    def label(self) -> str:
        """ "bfloat16, ring of 16"."""
        how = f"ring of {self.updates}" if self.updates else "in place"
        return f"{str(self.dtype).removeprefix('torch.')}, {how}"

    def step_bytes(self, shape: GDNShape, batch: int) -> float:
        """Bytes of a step of `batch` rows, averaged over a whole period of the ring."""
        if not self.updates:
            return decode_bytes(shape, batch, self.dtype)
        return replay_bytes(shape, batch, self.updates, self.dtype)

    def slot_bytes(self, shape: GDNShape) -> int:
        """Bytes that one request keeps in one layer: state, scales, convolution window and ring."""
        ring = ring_nbytes(shape, self.updates, 2 if self.dtype in (torch.bfloat16, FP8) else 4)
        if self.dtype is FP8:  # what its kernels hand to each other, and the counter of folds
            HK, HV, K, _ = shape.dims
            ring += 6 * HK * K + 4 * HV * (2 * self.updates + 5) + 16
        return sum(slot_nbytes(shape, self.dtype.itemsize).values()) + self._scales(shape) + ring

    def _scales(self, shape: GDNShape) -> int:
        return shape.num_v_heads * shape.head_v_dim * SCALE_BYTES if self.dtype is FP8 else 0


IN_PLACE = Design(torch.bfloat16)
DESIGNS = (
    Design(torch.float32),
    IN_PLACE,
    Design(torch.float16),
    Design(torch.float32, 16),
    *(Design(torch.bfloat16, updates) for updates in (16, 32, 64)),
    Design(torch.float16, 16),
    Design(FP8, 16),
)
