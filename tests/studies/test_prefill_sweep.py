"""The sweep of prefill() on the CPU."""

import json
from dataclasses import replace

import pytest
import torch
from tolerances import OUTSIDE_TOLERANCE

from gdn_lab import GDNShape, ops
from gdn_lab.backends import torch as torch_backend
from gdn_lab.backends.registry import VARIANTS, variant
from gdn_lab.bench.call_checks import CALL_KINDS
from gdn_lab.bench.cases import Case
from gdn_lab.bench.results import Run, load
from gdn_lab.bench.roof import Roof
from gdn_lab.bench.sweep import AFTER, HOST_SYNC, RANDOM
from gdn_lab.costs import prefill_bytes
from gdn_lab.hard_inputs import KINDS
from gdn_lab.report.timed import Timed
from gdn_lab.studies.parameters import ParameterError
from gdn_lab.studies.prefill import analysis
from gdn_lab.studies.prefill.study import Parameters
from gdn_lab.studies.prefill.sweep import prefill_sweep
from gdn_lab.tolerances import LAST_PLACE, PREFILL

SMALL = GDNShape(2, 4, 16, 32)
ROOF = Roof(10.0, 9.0, 11.0, 20, 1 << 20, "a bandwidth for tests")
OPTIONS = dict(device="cpu", samples=2, progress=False, variants=["torch"], roof=ROOF)


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
    rows = prefill_sweep(SMALL, [(1, 9)], indexings=["in_place"], **OPTIONS | {"variants": ["torch/vk"]})
    assert [row["status"] for row in rows] == ["wrong"] and "median_us" not in rows[0]


def test_a_variant_that_synchronises_is_checked_and_not_timed(monkeypatch):
    monkeypatch.setattr(Case, "synchronises", lambda case, phase, device: case.name == "torch/kv")
    rows = prefill_sweep(SMALL, [(1, 9), (2, 5)], **OPTIONS)
    assert {row["variant"] for row in rows if row["status"] == "ok"} == {"vk"}
    refused = [row for row in rows if row["status"] == "refused"]
    assert [(row["variant"], row["reason"]) for row in refused] == [("kv", HOST_SYNC)]

    right = ops.prefill
    monkeypatch.setattr(ops, "prefill", lambda *arguments, **options: right(*arguments, **options).add_(1))
    rows = prefill_sweep(SMALL, [(1, 9)], indexings=["in_place"], **OPTIONS)
    assert {(row["variant"], row["status"]) for row in rows} == {("vk", "wrong"), ("kv", "wrong")}


def test_a_variant_that_is_not_timed_and_raises_says_so(monkeypatch):
    def failing(*arguments, **options):
        raise RuntimeError("boom")

    monkeypatch.setattr(Case, "synchronises", lambda case, phase, device: case.name == "torch/kv")
    monkeypatch.setattr(Case, "may_fail", True)
    right = ops.launch_for
    monkeypatch.setattr(ops, "launch_for", lambda name, call: failing if name == "torch/kv" else right(name, call))
    rows = prefill_sweep(SMALL, [(1, 9)], indexings=["in_place"], **OPTIONS)
    reasons = {row["variant"]: row.get("reason") for row in rows}
    assert reasons == {"vk": None, "kv": "failed with RuntimeError: boom"}


@pytest.mark.parametrize("sequences", [1, 3, 9])
def test_every_kind_of_hard_inputs_meets_every_workload(sequences):
    row = prefill_sweep(SMALL, [(sequences, 3)], indexings=["in_place"], **OPTIONS)[0]
    assert row["checked"] == [RANDOM, *CALL_KINDS, *KINDS, AFTER]


def sensitive_to_large_states(error):
    """prefill() whose first output of the last value head is `error` times the largest where the state is large."""
    right = ops.prefill

    def sensitive(q, k, v, *arguments, pool, indices, out, **options):
        large = bool((pool.state[indices.long()].float().std((1, 2, 3)) > 5).any())
        right(q, k, v, *arguments, pool=pool, indices=indices, out=out, **options)
        if large:
            out[0, -1, 0] = error * out.float().abs().max()

    return sensitive


OF_LARGE_STATES = ["nearly parallel keys", "q = k", "large state"]


def test_hard_inputs_alone_can_be_what_is_wrong(monkeypatch):
    monkeypatch.setattr(ops, "prefill", sensitive_to_large_states(torch.nan))
    rows = prefill_sweep(SMALL, [(1, 9)], indexings=["in_place"], **OPTIONS | {"variants": ["torch/vk"]})
    assert [row["status"] for row in rows] == ["wrong"]
    assert rows[0]["wrong_on"] == OF_LARGE_STATES
    assert rows[0]["max_abs_error"] is None


@pytest.mark.parametrize(("error", "said"), [(3.0, "of the largest output; allowed 0.04"), (torch.nan, "not finite")])
def test_a_peer_that_is_wrong_on_hard_inputs_alone_is_timed_and_its_rows_say_so(monkeypatch, tmp_path, error, said):
    monkeypatch.setitem(VARIANTS, "torch/vk", replace(variant("torch/vk"), role="peer"))
    monkeypatch.setattr(ops, "prefill", sensitive_to_large_states(error))
    with Run.create("06_prefill", {}, root=tmp_path) as run:
        rows = prefill_sweep(SMALL, [(1, 9)], indexings=["in_place"], run=run, **OPTIONS | {"variants": ["torch/vk"]})
    assert load(run.folder)[1] == rows
    [row] = rows
    assert row["status"] == "ok" and row["median_us"] > 0 and row["wrong_on"] == OF_LARGE_STATES
    assert row["checked"] == [RANDOM, *CALL_KINDS, *(kind for kind in KINDS if kind not in OF_LARGE_STATES), AFTER]
    for kind in OF_LARGE_STATES:
        assert row["wrong_errors"][kind]["o"] is None if error != error else row["wrong_errors"][kind]["o"] > 1
    assert row["allowed_error"] == PREFILL + LAST_PLACE[torch.bfloat16]
    timed = Timed(rows, phase="prefill", indexing=None)
    [sentence] = timed.outside_tolerance()
    assert sentence.startswith("torch/vk is outside the tolerance on nearly parallel keys (") and said in sentence
    assert sentence in analysis.answers(timed)


def test_a_peer_that_is_wrong_on_the_timed_inputs_is_not_timed(monkeypatch):
    right = ops.prefill
    monkeypatch.setitem(VARIANTS, "torch/vk", replace(variant("torch/vk"), role="peer"))
    monkeypatch.setattr(ops, "prefill", lambda *arguments, **options: right(*arguments, **options).mul_(1.1))
    rows = prefill_sweep(SMALL, [(1, 9)], indexings=["in_place"], **OPTIONS | {"variants": ["torch/vk"]})
    assert [(row["status"], row["wrong_on"]) for row in rows] == [("wrong", [RANDOM])]


def test_arguments():
    with pytest.raises(ValueError, match="workloads: expected"):
        prefill_sweep(SMALL, [(0, 4)], **OPTIONS)
    with pytest.raises(ValueError, match="indexings: expected some of in_place, detour, got gather_scatter"):
        prefill_sweep(SMALL, [(1, 4)], indexings=["gather_scatter"], **OPTIONS)


@pytest.mark.gpu
def test_on_a_gpu():
    """Ours are right on every input; what a peer is not right on is known."""
    rows = prefill_sweep(GDNShape(2, 8), [(1, 512), (9, 100)], samples=5, progress=False)
    ours = [row for row in rows if variant(f"{row['backend']}/{row['variant']}").role != "peer"]
    assert not [row for row in ours if row["status"] == "wrong"]
    assert {row["reason"] for row in ours if row["status"] == "refused" and row["backend"] == "torch"} == {HOST_SYNC}
    timed = [row for row in ours if row["status"] == "ok"]
    assert {row["timer"] for row in timed} == {"cuda_graph_replay", "cupti_kernel"}
    assert all(row["checked"] == [RANDOM, *CALL_KINDS, *KINDS, AFTER] for row in timed if row["indexing"] == "in_place")
    for row in rows:
        assert set(row.get("wrong_on", ())) <= set(OUTSIDE_TOLERANCE.get(f"{row['backend']}/{row['variant']}", ())), row


def test_workloads_of_flashinfer_bench_are_sequences_and_their_mean_length(tmp_path):
    path = tmp_path / "w.jsonl"
    sizes = [("prefill", {"num_seqs": 2, "total_seq_len": 301}), ("decode", {"batch_size": 8})]
    entries = [{"definition": f"gdn_{word}_qk2_v4_d128_k_last", "workload": {"axes": axes}} for word, axes in sizes]
    path.write_text("\n".join(map(json.dumps, entries)))
    assert Parameters.parse({"workloads": str(path)}).workloads == [(2, 150)]
    path.write_text(json.dumps(entries[1]))
    with pytest.raises(ParameterError, match="w.jsonl has none of prefill"):
        Parameters.parse({"workloads": str(path)})
