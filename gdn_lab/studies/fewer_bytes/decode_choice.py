"""Which decode a configuration runs: its own, or the one with deferred writes where recorded times say that it wins.

    decoding_on("NVIDIA H200", "best", heads=256 * 32)     # 256 requests of 32 value heads

Light to import: no torch.
"""

from functools import cache
from pathlib import Path

from ...backends.registry import VARIANTS
from ...layer.configurations import Configuration, configuration
from ...report.nearest import candidate_runs
from ...report.recorded import DATA, recorded_gpu

NOTEBOOK = "12_fewer_bytes"
TIMER = "cuda_graph_replay"


def times(rows: list[dict], dtype: str) -> dict[int, dict[str, float]]:
    """{batch x value heads: {"backend/variant": µs}} of graph replays, of rings as long as the variant's own."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        name = f"{row.get('backend')}/{row.get('variant')}"
        if row.get("timer") != TIMER or row.get("state_dtype") != dtype or "median_us" not in row:
            continue
        if name in VARIANTS and row.get("ring_updates", 0) in (0, VARIANTS[name].ring):
            found.setdefault(row["batch"] * row["num_v_heads"], {})[name] = row["median_us"]
    return found


def decoding(entry: Configuration, rows: list[dict], heads: int, dtype: str = "bfloat16") -> Configuration:
    """The configuration with its `deferred` decode if that took less time than its own at the nearest recorded work.

    heads: rows of a step x value heads on one GPU, what both times depend on. Compared at the largest recorded one that
    is no larger. Without such rows, or without `deferred`, the configuration stays as it is.
    """
    if not entry.deferred:
        return entry
    recorded = times(rows, dtype)
    both = [work for work, each in recorded.items() if work <= heads and {entry.gdn, entry.deferred} <= each.keys()]
    if not both:
        return entry
    at = recorded[max(both)]
    return entry.decoding_with(entry.deferred) if at[entry.deferred] < at[entry.gdn] else entry


def decoding_on(
    device_name: str, name: str | Configuration, heads: int, dtype: str = "bfloat16", data: Path = DATA
) -> Configuration:
    """The configuration `name` as decoding() has it for a GPU of this name; as it is where nothing is recorded."""
    entry, gpu = configuration(name), recorded_gpu(device_name, data)
    if gpu is None or not entry.deferred:
        return entry
    return decoding(entry, _recorded_rows(gpu, data), heads, dtype)


@cache
def _recorded_rows(gpu: str, data: Path) -> list[dict]:
    return [row for _, rows in candidate_runs(gpu, NOTEBOOK, data).values() for row in rows]
