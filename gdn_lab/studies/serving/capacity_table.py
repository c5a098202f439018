"""How many requests fit, calculated by engine/capacity.py: a line for each GPU and length. Imports no torch."""

import pandas

from ...engine.capacity import capacity
from ...models import FP8_RING, FP8_STATE, STATE_BYTES

# GB (10^9 bytes) of memory, as PyTorch reports it of an H100 ("80 GB") and an H200 ("141 GB"); of a B200 its datasheet.
GPUS = {"H100, 85 GB": 85, "H200, 150 GB": 150, "B200, 180 GB": 180}
LENGTHS = (1_024, 8_192, 65_536)
DRAFT_TOKENS = 4


def table(model: str, tp: int, precision: str) -> pandas.DataFrame:
    """Requests that fit by GPU and length: a column for each size of the state, and one with drafts."""
    lines = []
    for gpu, size in GPUS.items():
        for length in LENGTHS:
            options = {"gpu_bytes": size * 10**9, "tp": tp, "precision": precision, "length": length}
            fits = {
                f"{dtype} state": capacity(model, state_dtype=dtype, **options)
                for dtype in STATE_BYTES
                if dtype != "float16"  # as large as bfloat16
            }
            fits[f"{FP8_STATE} state"] = capacity(model, state_dtype=FP8_STATE, ring=FP8_RING, **options)
            drafts = capacity(model, draft_tokens=DRAFT_TOKENS, **options)
            lines.append(
                {"GPU": gpu, "tokens of a request": length}
                | {name: found.requests for name, found in fits.items()}
                | {f"bfloat16, T = {DRAFT_TOKENS}": drafts.requests, "limited by": fits["bfloat16 state"].limit}
            )
    return pandas.DataFrame(lines)


def caption(model: str, tp: int, precision: str) -> str:
    """What the table is of."""
    return (
        f"Requests that fit at once, calculated: {model}, tp {tp}, {precision} weights; {FP8_STATE}: with its scales "
        f"and a ring of {FP8_RING} updates; limited by: of bfloat16"
    )
