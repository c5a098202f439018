"""Recorded random calls: the table, and that nothing recorded has failed."""

import json

import pytest

from gdn_lab.backends.registry import VARIANTS
from gdn_lab.report import random_calls, recorded

ROW = {"variant": "triton/vk", "device": "NVIDIA H200", "commit": "a" * 40, "refused": 0}


def test_rows_of_a_variant_are_added_up(tmp_path):
    path = tmp_path / "measured" / "h200" / "random_calls" / "rows.jsonl"
    path.parent.mkdir(parents=True)
    rows = [ROW | {"calls": 1000, "failed": 0, "worst": 0.25}, ROW | {"calls": 525, "failed": 1, "worst": 0.5}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = random_calls.table("h200", tmp_path)
    assert "| `triton/vk` | 1,525 | 1 | 0 | 50% |" in text and "NVIDIA H200, commit aaaaaaaaaa." in text
    assert "Nothing is recorded yet" in random_calls.table("h100", tmp_path)


@pytest.mark.parametrize("gpu", recorded.recorded_gpus())
def test_what_is_recorded_has_passed(gpu):
    """Each of our variants in 100,000 calls, on the GPU that the folder names, by committed code."""
    rows = random_calls.rows(gpu)
    if not rows:
        pytest.skip(f"no random calls are recorded on {gpu}")
    assert all(gpu in row["device"].lower() and len(row["commit"]) == 40 for row in rows)
    assert not any(row["failed"] or row["failures"] for row in rows) and all(row["worst"] <= 1 for row in rows)
    for name in {row["variant"] for row in rows}:
        assert VARIANTS[name].role == "ours"
        assert sum(row["calls"] - row["refused"] for row in rows if row["variant"] == name) >= 100_000
