"""Which rows are shown, in which order, and what they hold for.

A row is a dict as measure/results.py writes it. A variant is named "backend/variant"; `times` always means median_us.
"""

from collections import defaultdict

from ..backends.registry import BACKENDS
from .text import device_name

VARIANTS = (  # in the order of tables and figures
    "triton/vk", "triton/vk-serial", "triton/kv32", "triton/kv8", "flashinfer/vk", "cutedsl/vk", "torch/vk", "torch/kv",
    "fla/vk",
)  # fmt: skip
TIMER_ORDER = ("cuda_graph_replay", "host_clock", "cupti_kernel")  # the first that a set of rows has is shown


def name_of(row: dict) -> str:
    """ "backend/variant" of a row."""
    return f"{row['backend']}/{row['variant']}"


def timed(rows, *, indexing="in_place", timer=None) -> list[dict]:
    """The timed rows of one indexing (None: both) and one timer, by default the first of TIMER_ORDER that occurs."""
    rows = [row for row in rows if row.get("status") == "ok"]
    present = {row["timer"] for row in rows}
    timer = timer or next((name for name in TIMER_ORDER if name in present), None)
    return [row for row in rows if row["timer"] == timer and indexing in (None, row["indexing"])]


def series(rows) -> dict[str, list[dict]]:
    """Rows by variant, each sorted by batch; the variants in the order of VARIANTS."""
    groups = defaultdict(list)
    for row in rows:
        groups[name_of(row)].append(row)
    order = [name for name in VARIANTS if name in groups] + sorted(set(groups) - set(VARIANTS))
    return {name: sorted(groups[name], key=lambda row: row["batch"]) for name in order}


def times(rows) -> dict[str, dict[int, float]]:
    """{variant: {batch: median_us}} of rows that are already of one timer and indexing."""
    return {name: {row["batch"]: row["median_us"] for row in of} for name, of in series(rows).items()}


def held_for(what: str, rows, run=None) -> str:
    """What the figures of timed rows hold for, in one line: device, `what`, timer, counts, roof."""
    row, counts = rows[0], sorted({row["count"] for row in rows})
    said = [device_name(run)] if run else []
    said += [what, f"{row['timer']}, median of {'…'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}"]
    return " · ".join([*said, f"roof {row['roof_gb_per_s']:,.0f} GB/s measured (in-place read-modify-write)"])


def with_copies(rows) -> list[str]:
    """A note if rows, those that a figure draws, are also of variants whose calls copy the states by themselves."""
    copying = {f"{of.name}/{variant.name}" for of in BACKENDS.values() for variant in of.variants if variant.copies}
    names = sorted({name_of(row) for row in rows} & copying)
    return [f"{', '.join(names)}: with the gather and the scatter that its calls need."] if names else []


def not_timed(rows) -> list[str]:
    """What refused, one sentence for each reason, and what was wrong, one for each variant and batch."""
    refused, wrong = defaultdict(dict), {}
    for row in rows:
        if row.get("status") == "refused":
            if row["reason"] != f"has no {row.get('phase')} kernel":  # made for another phase: nothing to tell
                refused[row["reason"]][name_of(row)] = None
        elif row.get("status") == "wrong":
            error = "not finite" if row["max_abs_error"] is None else f"{row['max_abs_error']:.2g}"
            wrong[f"{name_of(row)} wrong at B = {row['batch']} (largest error {error}): not timed"] = None
    return [f"{', '.join(names)} refused: {reason}" for reason, names in refused.items()] + list(wrong)


def clock_prefix(rows) -> str:
    """What a title begins with: "CPU times: " where that is what they are, else nothing."""
    return "CPU times: " if any(row["timer"] == "host_clock" for row in timed(rows)) else ""
