"""Sweep of decode with and without a ring: kernels in place on a VK pool, variants that defer with each ring size."""

from ...bench.cases import Point, SweepOptions, cases_of, checked_batches
from ...bench.pools import pool_slots
from ...models import GDNShape
from ...rounding import FP8
from ..decode_kernels.sweep import DecodeSweep

VARIANTS = ("flashinfer/vk", "cutedsl/vk", "triton/vk", "triton/replay")
FP8_VARIANTS = ("triton/replay-fp8",)


def fewer_bytes_sweep(shape: GDNShape, batches, updates, *, variants=VARIANTS, slots=None, **options) -> list[dict]:
    """Time decode() of `variants` at each batch size, those with a ring at each of `updates`; return the rows.

    FP8_VARIANTS, whose state is in FP8, are timed after the others in the same process, by a sweep of their own.
    Rows as decode_sweep() makes them; those with a ring add ring_updates, and their bytes are costs.replay_bytes(). A
    replay goes through slots of all phases, so its median is over steps in which about B / (C + 1) rings are full.
    options: fields of bench.cases.SweepOptions. Errors as decode_sweep().
    """
    batches = checked_batches(batches)
    rows = _swept(shape, batches, updates, slots, SweepOptions(variants=variants, **options))
    return rows + _swept(
        shape, batches, updates, slots, SweepOptions(**options | {"variants": FP8_VARIANTS, "dtype": FP8})
    )


def _swept(shape, batches, updates, slots, options: SweepOptions) -> list[dict]:
    cases, refused = cases_of("decode", ["in_place"], shape, options)
    cases = [one for case in cases for one in (_rings(case, updates) if case.ring else [case])]
    slots = pool_slots(slots, shape, options.dtype, max(batches), cases, options.device)
    return DecodeSweep(shape, cases, refused, options, slots).run([[Point(batch) for batch in batches]])


def _rings(case, updates):
    return [case._replace(ring=number) for number in updates]
