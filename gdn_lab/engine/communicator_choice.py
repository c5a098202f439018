"""Which variant sums fastest, by the size of the sum. Light to import: no torch."""

from bisect import bisect_left
from typing import NamedTuple

SUM, ADD_NORM = "all_reduce", "all_reduce_add_norm"  # the operations of rows


class Choice(NamedTuple):
    """The fastest variant of each operation: {operation: [(bytes of x up to which it holds, variant)]}, ascending.

    Above the last size the sum goes to NCCL. source: where the times are from, half a sentence.
    """

    fastest: dict[str, list[tuple[int, str]]]
    source: str

    def variant(self, operation: str, nbytes: int) -> str:
        """The variant for an x of `nbytes`."""
        steps = self.fastest[operation]
        place = bisect_left([most for most, _ in steps], nbytes)
        return steps[place][1] if place < len(steps) else "nccl"


# H200, 2 and 4 GPUs, rows of 4,096: two shots of torch's are the fastest from 8 kB to 4.2 MB, or within 0.5 µs of it.
DEFAULT = Choice(
    {operation: [(8 << 20, "torch-two-shot")] for operation in (SUM, ADD_NORM)}, "two and four H200, in a CUDA graph"
)


def chosen(rows: list[dict], ranks: int, source: str) -> Choice:
    """The Choice of measured rows of `ranks` GPUs: the fastest variant at each size, held up to that size.

    rows: of the study all_reduce; those that were not timed do not count. ValueError if an operation was not timed.
    """
    fastest = {}
    for operation in (SUM, ADD_NORM):
        best: dict[int, dict] = {}
        for row in rows:
            if row.get("operation") == operation and row.get("ranks") == ranks and "median_us" in row:
                best[row["bytes"]] = min(best.get(row["bytes"], row), row, key=lambda each: each["median_us"])
        if not best:
            raise ValueError(f"rows: no {operation} was timed on {ranks} ranks, so none can be chosen")
        fastest[operation] = [(nbytes, best[nbytes]["variant"]) for nbytes in sorted(best)]
    return Choice(fastest, source)
