"""What sweep.html compares: rows of the same work, the fastest baseline, kernels in place."""

import json
from pathlib import Path

import pytest

from gdn_lab.cluster.best_variants import TIMERS, Best, best_by_point, timed_by_point

MEASURED = Path(__file__).parents[2] / "data" / "measured"
RECORDS = sorted(path for path in MEASURED.glob("*/*/rows.jsonl"))


def row(name: str, median_us: float, **fields) -> dict:
    backend, _, variant = name.partition("/")
    common = {"status": "ok", "timer": TIMERS[0], "batch": 64, "tokens": 1, "share_of_roof": 0.5}
    return common | {"backend": backend, "variant": variant, "median_us": median_us} | fields


def test_a_saving_is_over_the_fastest_baseline():
    rows = [row("triton/kv8", 30.0), row("triton/kv32", 20.0), row("flashinfer/vk", 15.0, share_of_roof=0.9)]
    for order in (rows, rows[::-1]):
        assert best_by_point(order) == {"batch 64": Best("flashinfer/vk", 15.0, pytest.approx(0.25), 0.9)}
    assert best_by_point(rows[2:])["batch 64"].saving is None


def test_only_right_kernels_that_a_gpu_timed_in_place_count():
    rows = [row("triton/vk", 9.0)]
    rows += [row("triton/kv8", 1.0, indexing="gather_scatter"), row("triton/kv32", 1.0, status="wrong")]
    rows += [row("torch/vk", 1.0, timer="cpu"), {"status": "fact", "phase": "toy"}]
    assert best_by_point(rows)["batch 64"].variant == "triton/vk"
    assert best_by_point(rows[1:]) == {}


def test_the_first_timer_counts():
    rows = [row("triton/vk", 9.0), row("triton/vk", 5.0, timer=TIMERS[1]), row("triton/kv8", 6.0, timer=TIMERS[1])]
    assert best_by_point(rows)["batch 64"].median_us == 9.0


@pytest.mark.parametrize(
    "name, values",
    [
        ("mode", ("update", "output")),
        ("tp", (1, 8)),
        ("model", ("a", "b")),
        ("num_v_heads", (8, 64)),
        ("state_dtype", ("bfloat16", "float32")),
        ("rounding", ("nearest", "stochastic")),
        ("sweep", ("step", "share")),
    ],
)
def test_rows_of_different_work_are_different_points(name, values):
    rows = [row("triton/vk", us, **{name: value}) for us, value in zip((9.0, 5.0), values, strict=True)]
    found = best_by_point(rows)
    assert {point: best.median_us for point, best in found.items()} == {
        f"batch 64, {name} {value}": us for us, value in zip((9.0, 5.0), values, strict=True)
    }


def test_a_field_that_another_implies_is_not_named():
    rows = [row("triton/vk", 9.0, tp=1, num_v_heads=64), row("triton/vk", 5.0, tp=8, num_v_heads=8)]
    assert list(best_by_point(rows)) == ["batch 64, tp 1", "batch 64, tp 8"]


def test_rings_of_a_variant_are_compared_with_the_other_variants():
    rows = [row("triton/kv8", 10.0), row("triton/replay", 6.0, ring_updates=16)]
    rows += [row("triton/replay", 5.0, ring_updates=32), row("triton/replay", 7.0, ring_updates=8)]
    assert best_by_point(rows) == {"batch 64": Best("triton/replay, ring_updates 32", 5.0, 0.5, 0.5)}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parts[-3]}-{path.parts[-2]}")
def test_no_recorded_row_takes_the_place_of_another(path):
    rows = [json.loads(line) for line in path.open()]
    kept = [row for by_timer in timed_by_point(rows).values() for each in by_timer.values() for row in each.values()]
    right = [each for each in rows if each.get("backend") and each["status"] == "ok" and each.get("timer") in TIMERS]
    assert len(kept) == sum(each.get("indexing", "in_place") == "in_place" for each in right)
