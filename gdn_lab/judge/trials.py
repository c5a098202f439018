"""Trials: a description of one decode call, drawn at random or set by a check, that repeats on every machine."""

from dataclasses import dataclass, fields
from itertools import accumulate
from random import Random

import torch

from ..backends.base import dtype_name
from ..hard_inputs import KINDS
from ..models import GDNShape

RANDOM, LIMITS = "random", "gates at their limits"  # kinds besides those of hard_inputs.KINDS
STRIDES = ("packed", "contiguous", "wide", "odd", "apart")
PADDINGS = (-1, -7, -(2**31))
SCALES = (None, 1.0, 0.25, 0.0, -0.5)


@dataclass(frozen=True)
class Trial:
    """One decode call, or several that share their tensors.

    kind: of the inputs. state_std: of the state, where the kind says nothing. strong_decay: of random inputs.
    magnitude: of q and k, where the call normalises them (l2norm). padding: rows that are padding; padding_value:
    their index. calls: how many rows each of several calls takes, one after the other from the same tensors; empty: one
    call takes all. strides: of q, k, v, a, b. out: what `out` holds before, as a number; "v" if it is v, "allocated" if
    the call makes it. poison: NaN in all slots that no row names. spare: slots that no row names. seed: of all values.
    """

    shape: GDNShape
    batch: int
    state_dtype: torch.dtype
    io_dtype: torch.dtype
    index_dtype: torch.dtype
    kind: str = RANDOM
    strong_decay: bool = True
    state_std: float = 1.0
    magnitude: float = 1.0
    l2norm: bool = True
    scale: float | None = None
    padding: tuple[int, ...] = ()
    padding_value: int = -1
    calls: tuple[int, ...] = ()
    strides: str = "packed"
    out: str = "nan"
    poison: bool = False
    spare: int = 3
    seed: int = 0

    @property
    def slots(self) -> int:
        """Slots of the pool, the null slot included."""
        return max(2, self.batch + 1 + self.spare)

    def call_of(self, live_row: int | None) -> int | None:
        """Return which of the calls has a row, counted without padding; None if that is not known."""
        if live_row is None:
            return None
        row = [row for row in range(self.batch) if row not in self.padding][live_row]
        ends = accumulate(self.calls or (self.batch,))
        return next(n for n, end in enumerate(ends) if row < end)

    def __str__(self) -> str:
        HK, HV, K, V = self.shape.dims
        words = [f"B = {self.batch}", f"{HK} and {HV} heads of {K} and {V}", f"{dtype_name(self.state_dtype)} state"]
        words += [f"{dtype_name(self.io_dtype)} inputs", f"{dtype_name(self.index_dtype)} indices", self.kind]
        for field in fields(self)[6:]:
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name} {list(value) if isinstance(value, tuple) else value}")
        return ", ".join(words)


def random_of(seed: int, number: int) -> Random:
    """Return the generator that a call draws from: the same on every machine."""
    return Random(f"{seed}:{number}")


def drawn(random: Random, calls, *, most_rows: int = 9, together: int = 1) -> Trial:
    """Draw a trial in which everything may be special at once.

    calls: (shape, state dtype, io dtype, index dtype) of calls that the kernel takes. together: calls of the trial,
    which differ in their numbers of rows, their slots, their padding and all values.
    """
    shape, state_dtype, io_dtype, index_dtype = random.choice(calls)
    few = min(4, most_rows)
    batches = [random.randint(1, random.choice([few, most_rows])) for _ in range(together)]
    batch = sum(batches)
    kind = random.choice([RANDOM, RANDOM, LIMITS, *KINDS])
    l2norm = random.random() < 0.8
    magnitude = 1.0
    if kind == RANDOM and l2norm and random.random() < 0.3:
        magnitude = 10.0 ** random.uniform(-6, 3 if io_dtype == torch.float16 else 12)
    return Trial(
        shape,
        batch,
        state_dtype,
        io_dtype,
        index_dtype,
        kind=kind,
        strong_decay=random.random() < 0.5,
        state_std=random.choice([0.0, 0.1, 1.0, 1.0]),
        magnitude=magnitude,
        l2norm=l2norm,
        scale=random.choice(SCALES) if random.random() < 0.3 else None,
        padding=tuple(row for row in range(batch) if random.random() < 0.2),
        padding_value=random.choice(PADDINGS),
        calls=tuple(batches) if together > 1 else (),
        strides=random.choice(STRIDES),
        out=random.choice(["nan", "nan", "inf", "0", "allocated"]),
        poison=random.random() < 0.5,
        spare=random.randint(0, 3),
        seed=random.getrandbits(31),
    )
