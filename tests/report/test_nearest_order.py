"""Which of two recorded settings is nearer to what was asked, on made-up records."""

import json
from itertools import pairwise

import pytest

from gdn_lab.models import GDNShape
from gdn_lab.report.nearest import Asked, Setting, heads_distance, nearest_record

RUN = {
    "notebook": "02_decode_kernels",
    "start_utc": "2026-11-22T08:00:00Z",
    "status": "complete",
    "environment": {"gpu_name": "NVIDIA H100 80GB HBM3"},
}
ROW = {
    "status": "ok", "phase": "decode", "model": "asked", "tp": 1, "num_k_heads": 4, "num_v_heads": 12,
    "state_dtype": "float16", "batch": 64, "precision": "fp8", "sweep": "step",
}  # fmt: skip
ASKED = Asked((Setting("asked", 1, 4, 12, "float16"),), batches=(64,))
# Each differs in one thing, and the further down, the less that counts.
BY_IMPORTANCE = [
    {"num_v_heads": 24},
    {"num_k_heads": 1},
    {"num_k_heads": 2},
    {"state_dtype": "float32"},
    {"state_dtype": "bfloat16"},
    {"batch": 1024},
    {"batch": 128},
    {"model": "other"},
    {"tp": 8},
    {"tp": 2},
    {},
]
STEPS_BY_IMPORTANCE = [
    {"model": "other"},
    {"tp": 8},
    {"tp": 2},
    {"num_v_heads": 24},
    {"num_k_heads": 2},
    {"batch": 1024},
    {"batch": 128},
    {"precision": "bf16"},
    {"sweep": "share"},
    {},
]


def record(folder, rows, notebook="02_decode_kernels"):
    folder = folder / "measured" / "h100" / notebook
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(RUN | {"notebook": "02_decode_kernels"}))
    (folder / "rows.jsonl").write_text("".join(json.dumps(ROW | row) + "\n" for row in rows))


@pytest.mark.parametrize(("further", "nearer"), list(pairwise(BY_IMPORTANCE)))
def test_of_kernels_heads_count_first_then_dtype_batch_model_and_tp(further, nearer, tmp_path):
    record(tmp_path, [further, nearer])
    match = nearest_record(ASKED, "h100", "02_decode_kernels", tmp_path)
    assert match.rows == [ROW | nearer]


@pytest.mark.parametrize(("further", "nearer"), list(pairwise(STEPS_BY_IMPORTANCE)))
def test_of_steps_the_model_counts_first_then_tp_heads_batch_precision_and_sweep(further, nearer, tmp_path):
    record(tmp_path, [{"phase": "step", "median_us": us} | row for us, row in ((1.0, further), (2.0, nearer))])
    asked, row = ASKED._replace(whole_step=True, precision="fp8"), ROW | nearer
    match = nearest_record(asked, "h100", "02_decode_kernels", tmp_path)
    heads = row["num_k_heads"], row["num_v_heads"]
    assert match.shown == (Setting(row["model"], row["tp"], *heads, row["state_dtype"]),)
    assert 2.0 in {row["median_us"] for row in match.rows if row["sweep"] == "step"}


def test_a_run_named_after_the_notebook_comes_first_only_among_equals(tmp_path):
    record(tmp_path, [{"tp": 2}])
    record(tmp_path, [{}], notebook="02_a_later_one")
    assert nearest_record(ASKED, "h100", "02_decode_kernels", tmp_path).folder == "02_a_later_one"
    record(tmp_path / "equal", [{}])
    record(tmp_path / "equal", [{}], notebook="02_a_later_one")
    assert nearest_record(ASKED, "h100", "02_decode_kernels", tmp_path / "equal").folder == "02_decode_kernels"


def test_numbers_of_heads_are_compared_by_their_ratio():
    """20 is 8 heads and a factor of 1.7 from 12; 6 is 6 heads and a factor of 2 from it."""
    twelve, twenty, six = (GDNShape(2, heads) for heads in (12, 20, 6))
    assert heads_distance(twenty, twelve) < heads_distance(six, twelve) == (1.0, 0.0)
    assert heads_distance(GDNShape(4, 12), twelve) == (0.0, 1.0)
