"""The prefill sweep on the CPU, its bytes and products, and what its rows are made to say."""

import pytest
import torch

from gdn_lab import GDNShape, findings, ops, plots
from gdn_lab.backends import torch as torch_backend
from gdn_lab.bench.results import Run, load
from gdn_lab.cli import notebook
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
    table = findings.prefill.time_table(rows)
    assert list(table.columns[2:]) == ["torch/vk", "torch/kv", "torch/kv, detour"] and len(table) == 2
    assert set(findings.prefill.detour_ratios(rows)["torch/vk"]) == {(4, 1, 70), (4, 3, 5)}
    fastest = findings.prefill.fastest(rows)
    assert " is fastest at " in fastest and fastest.endswith("2 workloads")
    assert any("by way of KV" in sentence for sentence in findings.prefill.answers(rows))
    for draw in (plots.prefill.tokens_per_second, plots.prefill.native_against_detour):
        assert draw(rows, run.info).get_suptitle() and draw([]).get_suptitle()
    # a note on fla's copies stands where fla is drawn, and nowhere else
    fla = [row | {"backend": "fla", "variant": "vk"} for row in rows if row["variant"] == "vk"]
    refused = {"status": "refused", "phase": "prefill", "backend": "fla", "variant": "vk", "reason": "needs a GPU"}
    assert "the scatter" in plots.prefill.tokens_per_second(rows + fla, run.info).get_supxlabel()
    assert "the scatter" not in plots.prefill.tokens_per_second([*rows, refused], run.info).get_supxlabel()
    assert "the scatter" not in plots.prefill.native_against_detour(rows + fla, run.info).get_supxlabel()


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


def test_parameters():
    assert notebook.parse_workloads("8x1024, 1x8192") == [(8, 1024), (1, 8192)]
    assert notebook.parse_degrees("qwen3.5-397b-a17b", 1, 8) == [1, 8]
    assert notebook.parse_degrees("qwen3.5-397b-a17b", 8, 0) == notebook.parse_degrees("qwen3.5-397b-a17b", 8, 8) == [8]
    for text in ("8", "8x", "0x4", "8*4", ""):
        with pytest.raises(notebook.NotebookError, match="workloads: expected"):
            notebook.parse_workloads(text)
    with pytest.raises(notebook.NotebookError, match="tp: .* 3 GPUs cannot share evenly"):
        notebook.parse_degrees("qwen3.5-397b-a17b", 1, 3)


def test_beside_earlier_figures():
    """The two workloads that were measured before, with what rows have of them; columns without a figure go."""
    row = {"phase": "prefill", "status": "ok", "timer": "cuda_graph_replay", "backend": "triton", "variant": "vk"}
    row |= {"indexing": "in_place", "batch": 8, "length": 1024, "num_v_heads": 64, "median_us": 500.0}
    other = row | {"variant": "kv32", "num_v_heads": 8}
    table = findings.prefill.beside_first([row, other]).set_index("sequences × tokens")
    assert list(table.columns) == ["triton/vk", "flashinfer, before", "fla, before"]
    assert table.loc["8 × 1,024"].tolist() == [500.0, 329, 1204]
    assert table.loc["1 × 8,192"].tolist()[1:] == [541, 1326]
    assert list(findings.prefill.beside_first([]).columns[1:]) == ["flashinfer, before", "fla, before"]
