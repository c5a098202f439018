"""The check of notebook 00: one decode step of every variant, on a state of a dtype that it takes."""

import torch

from ...backends.registry import VARIANTS, refusal
from ...models import GDNShape
from ...report.timed import name_of
from ..decode_kernels.sweep import decode_sweep


def check_variants(shape: GDNShape, batch: int, *, dtype: torch.dtype, **options) -> list[dict]:
    """Return rows of decode_sweep() in place: of every variant with a state of `dtype`.

    A variant that does not take it but serves here with the first dtype of its own has rows of that one instead.
    options: as of decode_sweep().
    """
    sweep = {"batches": [batch], "indexings": ["in_place"]} | options
    rows = decode_sweep(shape, **sweep, dtype=dtype)
    own = {name: VARIANTS[name].state_dtypes[0] for name in _of_other_dtypes(rows, shape, dtype, options)}
    rows = [row for row in rows if name_of(row) not in own]
    for name, other in own.items():
        rows += decode_sweep(shape, **sweep | {"variants": [name]}, dtype=other)
    return rows


def _of_other_dtypes(rows: list[dict], shape, dtype, options) -> list[str]:
    device = torch.device(options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
    names = [name_of(row) for row in rows if row["status"] == "refused" and name_of(row) in VARIANTS]
    others = [name for name in names if dtype not in VARIANTS[name].state_dtypes]
    return [
        name
        for name in others
        if not refusal(name, shape, layout=VARIANTS[name].layout, dtype=VARIANTS[name].state_dtypes[0], device=device)
    ]
