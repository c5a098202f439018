"""Parameters of studies that fill pools: a batch whose pools do not fit is refused before a run's folder is made."""

from typing import ClassVar

from pydantic import model_validator

from ..models import draft_nbytes, slot_nbytes
from .parameters import ModelParameters


class PoolParameters(ModelParameters):
    """Of studies with a `dtype` and `batch` or `batches`, whose sweep makes a pool of each layout.

    phase: of the sweep. gathers: whether it also gathers states, into another pool for each layout.
    """

    phase: ClassVar[str] = "decode"
    gathers: ClassVar[bool] = True

    @model_validator(mode="after")
    def _pools_fit(self):
        """ValueError with what the largest batch needs, what there is, and the largest batch that fits."""
        from ..bench.free_memory import room_for_pools

        name = "batches" if "batches" in type(self).model_fields else "batch"
        batch, room = max(self.batches) if name == "batches" else self.batch, room_for_pools()
        need = self.pools_nbytes(batch)
        if need <= room.nbytes:
            return self
        first, next_one = self.pools_nbytes(1), self.pools_nbytes(2)
        fits = 1 + (room.nbytes - first) // (next_one - first) if first <= room.nbytes else 0
        advice = f"the largest batch that fits is {fits:,}" if fits else "not even a batch of 1 fits"
        there_is = f"{room.where} has {_gb(room.nbytes)} for them"
        raise ValueError(f"{name}: the pools of B = {batch:,} need {_gb(need)}, {there_is}; {advice}")

    def pools_nbytes(self, batch: int) -> int:
        """Bytes of the smallest pools that a sweep at `batch` makes: for each layout 2 · batch + 1 slots.

        With `gathers` batch + 1 more, and of studies with draft tokens what verifying the most of them keeps.
        """
        slots = 2 * batch + 1 + (batch + 1 if self.gathers else 0)
        nbytes = slots * sum(slot_nbytes(self.shape, self.dtype.itemsize).values())
        tokens = max(self.tokens) if "tokens" in type(self).model_fields else 0
        nbytes += batch * sum(draft_nbytes(self.shape, tokens, self.dtype.itemsize).values())
        return self.layouts * nbytes

    @property
    def layouts(self) -> int:
        """Number of pool layouts among the variants chosen, by default all, that have a kernel of the phase."""
        from ..backends.registry import VARIANTS

        chosen = getattr(self, "backends", "all")
        records = [each for each in VARIANTS.values() if chosen == "all" or each.full_name in chosen]
        return len({each.layout for each in records if self.phase in each.phases})


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.0f} GB" if nbytes >= 10e9 else f"{nbytes / 1e9:,.2f} GB"
