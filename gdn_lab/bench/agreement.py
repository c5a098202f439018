"""Where the two timers of a GPU disagree: CUDA-graph replay against the time of the kernels by CUPTI."""

from typing import NamedTuple

from ..backends.registry import variant

TOLERANCE = 0.02  # relative to the time of the kernels
GAP_US = 0.6  # between two kernels of a replay, at most: a replay counts it, CUPTI does not
FROM_US = 5.0
REPLAY, KERNEL = "cuda_graph_replay", "cupti_kernel"
CASE_FIELDS = (
    "phase", "backend", "variant", "indexing", "mode", "state_dtype", "io_dtype", "batch", "tokens", "length",
    "ring_updates", "num_k_heads", "num_v_heads", "model", "tp",
)  # fmt: skip


class Disagreement(NamedTuple):
    """A case whose replay takes another time than its kernels.

    replay, kernel: its rows. relative: replay time over kernel time, less 1. spread: of single calls by CUPTI, from the
    20th to the 80th percentile, over their median.
    """

    replay: dict
    kernel: dict
    relative: float
    spread: float

    @property
    def name(self) -> str:
        return f"{self.replay['backend']}/{self.replay['variant']}"

    @property
    def varies(self) -> bool:
        """Tell whether single calls differ by more than the timers do.

        A replay averages over calls and CUPTI sees each of them, so the two medians can differ and both be right.
        """
        return self.spread > abs(self.relative)


def disagreements(rows) -> list[Disagreement]:
    """Find the cases whose two times, above FROM_US, differ by more than TOLERANCE and the gaps, largest first.

    rows: of sweeps over decode(), verify() or prefill(). Cases of several kernels are left out where the rows do not
    say how many: the gaps between them are then unknown.
    """
    timed = [row for row in rows if row.get("status") == "ok" and "part" not in row]
    replays = {_case(row): row for row in timed if row["timer"] == REPLAY}
    found = []
    for kernel in timed:
        replay = replays.get(_case(kernel)) if kernel["timer"] == KERNEL else None
        kernels = _kernels(kernel)
        if replay is None or kernels is None or min(replay["median_us"], kernel["median_us"]) < FROM_US:
            continue
        difference = replay["median_us"] - kernel["median_us"]
        gaps = kernels * GAP_US if difference > 0 else 0.0
        if abs(difference) > TOLERANCE * kernel["median_us"] + gaps:
            spread = (kernel["p80_us"] - kernel["p20_us"]) / kernel["median_us"]
            found.append(Disagreement(replay, kernel, difference / kernel["median_us"], spread))
    return sorted(found, key=lambda one: -abs(one.relative))


def _case(row: dict) -> tuple:
    return tuple(row.get(name) for name in CASE_FIELDS)


def _kernels(row: dict) -> int | None:
    """Kernels of one call, or None if the row does not say and it cannot be known."""
    if "kernels" in row:
        return row["kernels"]
    record = variant(f"{row['backend']}/{row['variant']}")
    in_place = row.get("indexing") == "in_place"
    alone = row["phase"] == "decode" and in_place and record.role != "eager" and not record.copies
    return 1 if alone else None
