"""Recorded random calls: the table, and that nothing recorded has failed."""

import json

import pytest

from gdn_lab.backends.registry import VARIANTS
from gdn_lab.report import random_calls, recorded

RUN = {
    "start_utc": "2026-11-28T14:00:00Z",
    "status": "complete",
    "environment": {"gpu_name": "NVIDIA H200", "git_commit": "a" * 40},
}
ROW = {"variant": "triton/vk", "refused": 0}


def test_rows_of_a_variant_are_added_up(tmp_path):
    folder = tmp_path / "measured" / "h200" / "random_calls"
    folder.mkdir(parents=True)
    rows = [ROW | {"calls": 1000, "failed": 0, "worst": 0.25}, ROW | {"calls": 525, "failed": 1, "worst": 0.5}]
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = random_calls.table("h200", tmp_path)
    assert "| `triton/vk` | 1,525 | 1 | 0 | 50% |" in text and "H200, 2026-11-28, commit aaaaaaaaaa." in text
    assert "Nothing is recorded yet" in random_calls.table("h100", tmp_path)
    assert recorded.recorded_runs(tmp_path) == [], "it is no run of a notebook"


@pytest.mark.parametrize("gpu", recorded.recorded_gpus())
def test_what_is_recorded_has_passed(gpu):
    """Each variant in 100,000 calls, on the GPU that the folder names, by committed code."""
    found = random_calls.recorded(gpu)
    if found is None:
        pytest.skip(f"no random calls are recorded on {gpu}")
    info, rows = found
    assert info["status"] == "complete" and gpu in info["environment"]["gpu_name"].lower()
    assert info["environment"]["git_commit"] and not info["environment"]["git_dirty"]
    assert not any(row["failed"] or row["failures"] for row in rows) and all(row["worst"] <= 1 for row in rows)
    for name in {row["variant"] for row in rows}:
        assert VARIANTS[name].role == "ours"
        assert sum(row["calls"] - row["refused"] for row in rows if row["variant"] == name) >= 100_000
