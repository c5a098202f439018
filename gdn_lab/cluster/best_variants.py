"""What the rows of a sweep say of each point: the fastest variant, what it saves, its share of the bandwidth."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from ..backends.registry import VARIANTS

TIMERS = ("cuda_graph_replay", "cupti_kernel")  # the first that a point was timed with counts; a CPU's ranks nothing


class Best(NamedTuple):
    """Of one point. saving: share of the best baseline's time that the variant saves; None without a baseline."""

    variant: str
    median_us: float
    saving: float | None
    share_of_roof: float | None


def best_by_point(rows: Iterable[dict]) -> dict[str, Best]:
    """{"batch 64" or "batch 4, 2 tokens": Best} of a job's rows of kernels that were timed in place and are right."""
    found = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row.get("status") == "ok" and row.get("backend") and row.get("indexing", "in_place") == "in_place":
            found[_point(row)][row["timer"]][f"{row['backend']}/{row['variant']}"] = row
    points = {}
    for point, by_timer in sorted(found.items()):
        timed = next((by_timer[timer] for timer in TIMERS if timer in by_timer), None)
        if timed:
            points[_named(point)] = _best(timed)
    return points


def _point(row: dict) -> tuple:
    return row.get("batch") or 0, row.get("tokens") or 0, str(row.get("workload") or "")


def _named(point: tuple) -> str:
    batch, tokens, workload = point
    if workload:
        return workload
    return f"batch {batch}" + (f", {tokens} tokens" if tokens > 1 else "")


def _best(timed: dict[str, dict]) -> Best:
    name = min(timed, key=lambda each: timed[each]["median_us"])
    row = timed[name]
    baselines = [other["median_us"] for each, other in timed.items() if _role(each) == "baseline"]
    saving = 1 - row["median_us"] / min(baselines) if baselines else None
    return Best(name, row["median_us"], saving, row.get("share_of_roof"))


def _role(name: str) -> str | None:
    return VARIANTS[name].role if name in VARIANTS else None
