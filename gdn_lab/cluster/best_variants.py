"""What the rows of a sweep say of each point: the fastest variant, what it saves, its share of the bandwidth."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from ..backends.registry import VARIANTS

TIMERS = ("cuda_graph_replay", "cupti_kernel")  # the first that a point was timed with counts; a CPU's ranks nothing


WORK = (  # fields of what was asked of a kernel, where a job's rows differ in them
    *("phase", "mode", "part", "model", "tp", "num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim"),
    *("state_dtype", "io_dtype", "rounding", "shortcut", "length", "precision", "skew", "sweep"),
)
OPTIONS = ("ring_updates", "configuration", "l2")  # of how a kernel did it: named where one variant's rows differ


class Best(NamedTuple):
    """Of one point. saving: share of the best baseline's time that the variant saves; None without a baseline."""

    variant: str
    median_us: float
    saving: float | None
    share_of_roof: float | None


def best_by_point(rows: Iterable[dict]) -> dict[str, Best]:
    """{"batch 64" or "batch 4, 2 tokens, mode output": Best} of a job's rows of kernels timed in place and right."""
    return {
        point: _best(next(by_timer[timer] for timer in TIMERS if timer in by_timer))
        for point, by_timer in timed_by_point(rows).items()
    }


def timed_by_point(rows: Iterable[dict]) -> dict[str, dict[str, dict[str, dict]]]:
    """{point: {timer: {variant: row}}} of a job's rows of kernels that were timed in place by a GPU and are right.

    Rows of different work are different points. ring_updates and other OPTIONS of a variant are in its name.
    """
    rows = [row for row in rows if _counts(row)]
    work = _telling(rows, WORK, [_size(row) for row in rows])
    by_variant = defaultdict(list)
    for row in rows:
        by_variant[_variant(row)].append(row)
    points = defaultdict(lambda: defaultdict(dict))
    for variant, some in by_variant.items():
        options = _telling(some, OPTIONS, [(_size(row), row["timer"], *_values(row, work)) for row in some])
        for row in some:
            named = ", ".join([variant, *_named(row, options)])
            points[_size(row), _values(row, work)][row["timer"]][named] = row
    return {", ".join(_shown(size, work, values)): dict(points[size, values]) for size, values in sorted(points)}


def _counts(row: dict) -> bool:
    timed = row.get("status") == "ok" and row.get("backend") and row.get("timer") in TIMERS
    return bool(timed) and row.get("indexing", "in_place") == "in_place"


def _telling(rows: list[dict], names: Iterable[str], apart: list[tuple]) -> list[str]:
    """The names of fields that tell rows apart which are not yet by `apart` and the names before."""
    found = []
    for name in names:
        further = [(*each, _text(row, name)) for each, row in zip(apart, rows, strict=True)]
        if len(set(further)) > len(set(apart)):
            found.append(name)
            apart = further
    return found


def _size(row: dict) -> tuple[int, int, str]:
    return row.get("batch") or 0, row.get("tokens") or 0, str(row.get("workload") or "")


def _text(row: dict, name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value)


def _values(row: dict, names: list[str]) -> tuple[str, ...]:
    return tuple(_text(row, name) for name in names)


def _named(row: dict, names: list[str]) -> list[str]:
    return [f"{name} {text}" for name in names if (text := _text(row, name))]


def _shown(size: tuple[int, int, str], work: list[str], values: tuple[str, ...]) -> list[str]:
    """The words that name a point."""
    batch, tokens, workload = size
    first = [workload] if workload else [f"batch {batch}"] + [f"{tokens} tokens"] * (tokens > 1)
    return first + [f"{name} {text}" for name, text in zip(work, values, strict=True) if text]


def _variant(row: dict) -> str:
    return f"{row['backend']}/{row['variant']}"


def _best(timed: dict[str, dict]) -> Best:
    name = min(timed, key=lambda each: timed[each]["median_us"])
    row = timed[name]
    baselines = [other["median_us"] for other in timed.values() if _role(_variant(other)) == "baseline"]
    saving = 1 - row["median_us"] / min(baselines) if baselines else None
    return Best(name, row["median_us"], saving, row.get("share_of_roof"))


def _role(name: str) -> str | None:
    return VARIANTS[name].role if name in VARIANTS else None
