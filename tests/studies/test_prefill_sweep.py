"""The prefill sweep on the CPU."""

import pytest
import torch

from gdn_lab import GDNShape, ops
from gdn_lab.backends import torch as torch_backend
from gdn_lab.bench.results import Run, load
from gdn_lab.costs import prefill_bytes
from gdn_lab.studies.prefill.sweep import prefill_sweep

SMALL = GDNShape(2, 4, 16, 32)
OPTIONS = dict(device="cpu", samples=2, progress=False, variants=["torch"])


def test_rows(tmp_path):
    with Run.create("06_prefill", {}, root=tmp_path) as run:
        rows = prefill_sweep(SMALL, [(1, 70), (3, 5)], run=run, model="m", tp=2, **OPTIONS)
    assert load(run.folder)[1] == rows
    cases = {(row["variant"], row["indexing"]) for row in rows}
    assert cases == {("vk", "in_place"), ("kv", "in_place"), ("kv", "detour")} and len(rows) == 6
    for row in rows:
        assert row["status"] == "ok" and row["phase"] == "prefill" and row["tokens"] == row["batch"] * row["length"]
        assert row["bytes"] == prefill_bytes(SMALL, row["tokens"], row["batch"], torch.bfloat16)
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["median_us"] * 1e6)


def test_a_wrong_one_is_not_timed(monkeypatch):
    def wrong(*arguments, **options):
        torch_backend._prefill(False, *arguments, **options)
        options["out"].mul_(1.1)

    monkeypatch.setattr(ops, "launch_for", lambda name, call: wrong)
    rows = prefill_sweep(SMALL, [(1, 70)], indexings=["in_place"], **OPTIONS | {"variants": ["torch/vk"]})
    assert [row["status"] for row in rows] == ["wrong"] and "median_us" not in rows[0]


def test_arguments():
    with pytest.raises(ValueError, match="workloads: expected"):
        prefill_sweep(SMALL, [(0, 4)], **OPTIONS)
    with pytest.raises(ValueError, match="indexings: expected some of in_place, detour, got gather_scatter"):
        prefill_sweep(SMALL, [(1, 4)], indexings=["gather_scatter"], **OPTIONS)
