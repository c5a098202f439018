"""The sweep of decode: what it measures, what it refuses, what it leaves behind when it is stopped."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gdn_lab import GDNShape, StatePool, hard_inputs, ops
from gdn_lab.backends.registry import BACKENDS, VARIANTS
from gdn_lab.bench import pools, results, sweep
from gdn_lab.bench.cases import Case, Point, SweepOptions
from gdn_lab.bench.cupti import TimerUnavailable
from gdn_lab.bench.results import Run, load
from gdn_lab.bench.roof import Roof
from gdn_lab.bench.timers import Timing
from gdn_lab.studies.decode_kernels.sweep import DecodeSweep, decode_sweep

SHAPE = GDNShape(1, 2, 16, 16)
ROOF = Roof(10.0, 9.0, 11.0, 20, 1 << 20, "a bandwidth for tests")
QUICK = dict(device="cpu", samples=2, roof=ROOF, progress=False)


@pytest.fixture
def run(tmp_path):
    return Run.create("test", {}, root=tmp_path)


def test_rows_of_a_sweep(run):
    rows = decode_sweep(SHAPE, [1, 3], variants=["torch"], run=run, model="some-model", tp=2, seed=5, **QUICK)
    assert load(run.folder)[1] == rows
    assert [(row["variant"], row["indexing"], row["batch"]) for row in rows] == [
        (variant, indexing, batch)
        for batch in (1, 3)
        for variant in ("vk", "kv")
        for indexing in ("in_place", "gather_scatter")
    ]
    for row in rows:
        assert set(results.ROW_FIELDS["ok"]) <= set(row)
        assert row["status"] == "ok" and row["phase"] == "decode" and row["timer"] == "host_clock" and row["count"] == 2
        assert row["layout"] == row["variant"].upper() and row["state_dtype"] == "bfloat16" and row["tokens"] == 1
        assert (row["model"], row["tp"], row["seed"], row["l2"]) == ("some-model", 2, 5, "not controlled")
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["median_us"] / 1e3)
        assert row["share_of_roof"] == pytest.approx(row["gb_per_s"] / 10)
        assert 0 <= row["max_abs_error"] < 0.02 and 0 <= row["max_abs_error_state"] < 0.02


def test_a_variant_that_copies_by_itself_is_not_gathered_once_more(monkeypatch):
    vk, kv = BACKENDS["torch"].variants
    monkeypatch.setattr(BACKENDS["torch"], "variants", (replace(vk, copies=True), kv))
    rows = decode_sweep(SHAPE, [1], variants=["torch"], **QUICK)
    found = {(row["variant"], row["indexing"]) for row in rows}
    assert found == {("vk", "in_place"), ("kv", "in_place"), ("kv", "gather_scatter")}


def test_all_variants_refuse_or_run(run):
    rows = decode_sweep(SHAPE, [2], run=run, indexings=["in_place"], **QUICK)
    assert {"torch"} <= {row["backend"] for row in rows if row["status"] == "ok"}
    refused = {row["backend"]: row["reason"] for row in rows if row["status"] == "refused"}
    assert "needs an NVIDIA GPU" in refused["flashinfer"]
    assert load(run.folder)[1] == rows


def test_only_refusals(run):
    rows = decode_sweep(SHAPE, [2], variants=["flashinfer/vk"], run=run, **QUICK)
    assert [row["status"] for row in rows] == ["refused"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_state_dtypes(dtype):
    rows = decode_sweep(SHAPE, [2], variants=["torch/vk"], dtype=dtype, **QUICK)
    assert [row["status"] for row in rows] == ["ok"] * 2
    limit = {torch.float32: 1e-5, torch.float16: 1e-3}[dtype]
    assert all(row["max_abs_error_state"] < limit for row in rows)


# --- right and wrong


@pytest.mark.parametrize("fault, finite", [("stale", True), ("nan", False), ("untouched", False), ("state", True)])
def test_a_wrong_variant_is_reported_and_not_timed(run, monkeypatch, fault, finite):
    decode = ops.decode

    def faulty(*arguments, pool, indices, out, **options):
        if pool.layout == "KV":
            if fault == "untouched":
                return out
            before = pool.state.clone()
            decode(*arguments, pool=pool, indices=indices, out=out, **options)
            if fault == "stale":
                pool.state.copy_(before)
            elif fault == "state":
                pool.state[int(indices[-1]), 0, 3, 4] += 0.1
            else:
                out[0, 1, 2] = torch.nan
            return out
        return decode(*arguments, pool=pool, indices=indices, out=out, **options)

    monkeypatch.setattr(ops, "decode", faulty)
    rows = decode_sweep(SHAPE, [40], variants=["torch"], indexings=["in_place"], run=run, **QUICK)
    assert [(row["variant"], row["status"]) for row in rows] == [("kv", "wrong"), ("vk", "ok")]
    assert "median_us" not in rows[0]
    assert (rows[0]["max_abs_error"] is not None) == finite
    assert load(run.folder)[1] == rows


def test_what_a_wrong_variant_leaves_is_cleared(monkeypatch):
    """NaN that it wrote into its pool, in more slots than hard inputs take, would stop the sweep after timing."""
    decode = ops.decode

    def faulty(*arguments, pool, indices, **options):
        out = decode(*arguments, pool=pool, indices=indices, **options)
        if pool.layout == "KV":
            pool.state[indices.long()] = torch.nan
        return out

    monkeypatch.setattr(ops, "decode", faulty)
    rows = decode_sweep(SHAPE, [40], variants=["torch"], indexings=["in_place"], **QUICK)
    assert [(row["variant"], row["status"]) for row in rows] == [("kv", "wrong"), ("vk", "ok")]


def test_the_output_is_nan_before_every_check(monkeypatch):
    """A kernel that writes nothing cannot pass by what the one before it has left in memory."""
    decode, clean = ops.decode, {}

    def watched(*arguments, out, backend, **options):
        clean.setdefault(backend, []).append(bool(out.isnan().all()))
        return decode(*arguments, out=out, backend=backend, **options)

    monkeypatch.setattr(ops, "decode", watched)
    decode_sweep(SHAPE, [3], variants=["torch"], indexings=["in_place"], **QUICK)
    assert clean["torch/vk"][0] and clean["torch/kv"][0]


def test_hard_inputs_are_checked_and_what_was_checked_is_recorded(monkeypatch):
    """A kernel that is right on the timed inputs alone is wrong; the row says on what."""
    assert decode_sweep(SHAPE, [9], variants=["torch/vk"], **QUICK)[0]["checked"] == [
        "random inputs",
        "strided inputs",
        "untouched slots",
        "padding row",
        *hard_inputs.KINDS,
        "after timing",
        "the timed calls on new inputs",
    ]
    decode = ops.decode

    def narrow(q, k, v, *arguments, out, **options):
        decode(q, k, v, *arguments, out=out, **options)
        if bool((q == k).all(-1).any()):
            out[(q == k).all(-1).any(-1)] += 1

    monkeypatch.setattr(ops, "decode", narrow)
    rows = decode_sweep(SHAPE, [9], variants=["torch/vk"], indexings=["in_place"], **QUICK)
    assert [(row["status"], row["wrong_on"]) for row in rows] == [("wrong", ["q = k"])]
    assert rows[0]["max_abs_error"] > 0.5


@pytest.mark.parametrize("batch", [1, 3, 7, 20])
def test_every_kind_of_hard_inputs_meets_every_batch(batch):
    row = decode_sweep(SHAPE, [batch], variants=["torch/vk"], indexings=["in_place"], **QUICK)[0]
    assert row["checked"][4:-2] == list(hard_inputs.KINDS)


def test_a_variant_that_breaks_while_it_is_timed_is_wrong(monkeypatch):
    decode, timed = ops.decode, sweep.time_interleaved

    def breaks(*arguments, **options):
        timings = timed(*arguments, **options)
        monkeypatch.setattr(ops, "decode", lambda *a, out, **o: decode(*a, out=out, **o).add_(1))
        return timings

    monkeypatch.setattr(sweep, "time_interleaved", breaks)
    rows = decode_sweep(SHAPE, [2], variants=["torch/vk"], indexings=["in_place"], **QUICK)
    assert [(row["status"], row["timer"], row["wrong_on"]) for row in rows] == [
        ("wrong", "host_clock", ["after timing"])
    ]


def test_the_check_sees_what_ran_before_it_no_more():
    """Each case starts from the same state, although the case before it has changed the pool."""
    first, *others = decode_sweep(SHAPE, [4], variants=["torch"], **QUICK)
    assert all(row["max_abs_error_state"] == first["max_abs_error_state"] for row in others)


def test_a_failing_variant_is_named(run, monkeypatch):
    def failing(*arguments, **options):
        raise ArithmeticError("boom")

    monkeypatch.setattr(ops, "decode", failing)
    with pytest.raises(RuntimeError, match="torch/vk in_place failed at B = 2: ArithmeticError: boom"):
        decode_sweep(SHAPE, [2], variants=["torch/vk"], run=run, **QUICK)
    assert load(run.folder)[0]["status"] == "failed"


def test_another_librarys_failure_is_a_row_and_the_others_go_on(run, monkeypatch):
    decode = ops.decode
    monkeypatch.setitem(VARIANTS, "torch/kv", replace(VARIANTS["torch/kv"], role="peer"))

    def failing(*arguments, backend, **options):
        if backend == "torch/kv":
            raise ArithmeticError("boom")
        return decode(*arguments, backend=backend, **options)

    monkeypatch.setattr(ops, "decode", failing)
    rows = decode_sweep(SHAPE, [2], variants=["torch"], indexings=["in_place"], run=run, **QUICK)
    assert [(row["variant"], row["status"], row.get("reason")) for row in rows] == [
        ("kv", "refused", "failed with ArithmeticError: boom"),
        ("vk", "ok", None),
    ]


def test_a_peer_that_cannot_be_captured_is_refused_and_the_others_are_timed(monkeypatch):
    timed = sweep.time_interleaved
    monkeypatch.setitem(VARIANTS, "torch/kv", replace(VARIANTS["torch/kv"], role="peer"))

    def captured(calls, **options):
        if "torch/kv in_place" in calls:
            raise RuntimeError("torch/kv in_place cannot be captured in a CUDA graph: ArithmeticError: boom")
        return timed(calls, **options)

    monkeypatch.setattr(sweep, "time_interleaved", captured)
    rows = decode_sweep(SHAPE, [2], variants=["torch"], indexings=["in_place"], **QUICK)
    assert [(row["variant"], row["status"]) for row in rows] == [("kv", "refused"), ("vk", "ok")]


def test_a_state_that_blows_up_is_an_error(run, monkeypatch):
    def timed(calls, **options):
        bad = next(iter(calls.values()))[0].keywords["pool"]
        bad.state[3] = torch.inf
        return {key: Timing("host_clock", 1.0, 1.0, 1.0, 1, 1) for key in calls}

    monkeypatch.setattr(sweep, "time_interleaved", timed)
    with pytest.raises(RuntimeError, match="the state of the VK pool is no longer finite after the calls at B = 2"):
        decode_sweep(SHAPE, [2], variants=["torch/vk"], run=run, **QUICK)
    assert load(run.folder)[1] == []


def test_the_state_stays_finite_and_random_over_many_calls():
    pool = StatePool(SHAPE, 3)
    pool.state.normal_(0, pools.STATE_STD)
    inputs, indices = ops.make_inputs(SHAPE, 2), torch.tensor([1, 2], dtype=torch.int32)
    for _ in range(2000):
        ops.decode(*inputs.arguments(), **inputs.gates(), pool=pool, indices=indices)
    assert torch.isfinite(pool.state).all() and pool.state[1:].abs().max() < 10
    assert (pool.state[1:] != 0).float().mean() > 0.9


# --- stopped


def test_an_interrupt_in_mid_sweep(run, monkeypatch):
    timed, calls = sweep.time_interleaved, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return timed(*arguments, **options)

    monkeypatch.setattr(sweep, "time_interleaved", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode_sweep(SHAPE, [1, 2, 4, 8], variants=["torch/vk"], run=run, **QUICK)
    info, rows = load(run.folder)
    assert info["status"] == "interrupted" and info["rows"] == 4
    assert [row["batch"] for row in rows] == [1, 1, 2, 2]


def test_a_timer_that_loses_its_records_is_a_row(run, monkeypatch):
    def lost(*arguments, **options):
        raise TimerUnavailable("CUPTI lost the first kernels")

    monkeypatch.setattr(sweep, "time_interleaved", lost)
    rows = decode_sweep(SHAPE, [2], variants=["torch/vk"], indexings=["in_place"], run=run, **QUICK)
    assert [(row["status"], row["timer"], row["reason"]) for row in rows] == [
        ("refused", "host_clock", "CUPTI lost the first kernels")
    ]


# --- arguments


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batches": []}, "batches: expected different positive ints, got"),
        ({"batches": [0]}, "batches: expected different positive ints, got"),
        ({"batches": [2, 2]}, "batches: expected different positive ints, got"),
        ({"batches": [1.5]}, "batches: expected different positive ints, got"),
        ({"variants": ["cuda"]}, "variants: expected some of .*flashinfer/vk, .*torch/kv, .* got cuda"),
        ({"variants": ["torch/vk64"]}, "variants: .* got torch/vk64"),
        ({"variants": []}, "variants: .* got none"),
        ({"indexings": ["scatter"]}, "indexings: expected some of in_place, gather_scatter, got scatter"),
        ({"indexings": []}, "indexings: .* got none"),
        ({"slots": 4}, r"slots: expected an int of at least 5 \(2 · B \+ 1 for B = 2\), got 4"),
        ({"timers": ["wristwatch"]}, "timer: 'wristwatch' is unknown"),
    ],
)
def test_arguments_that_cannot_be(run, options, message):
    with pytest.raises(ValueError, match=message):
        decode_sweep(SHAPE, options.pop("batches", [2]), run=run, **(QUICK | {"variants": ["torch"]} | options))
    assert load(run.folder)[0]["status"] == "running", "nothing ran, so nothing failed"


def test_a_timer_asked_for_by_name_refuses():
    with pytest.raises(TimerUnavailable, match="cupti_kernel needs a CUDA device"):
        decode_sweep(SHAPE, [2], timers=["cupti_kernel"], **QUICK)


# --- how calls are laid out


def bare(slots, shape=SHAPE, roof=ROOF):
    bare = DecodeSweep(shape, [Case("torch", "vk", "VK", "in_place")], [], SweepOptions(device="cpu"), slots)
    bare.roof = roof
    return bare


@given(st.integers(1, 20), st.integers(0, 60))
def test_index_sets(batch, more):
    slots = 2 * batch + 1 + more
    sets = bare(slots).index_sets(Point(batch))
    assert len(sets) >= 2
    for indices in sets:
        assert indices.dtype == torch.int32 and len(indices) == batch and indices.is_contiguous()
        assert len(set(indices.tolist())) == batch and 1 <= min(indices) and max(indices) < slots
    for before, after in zip(sets, sets[1:] + sets[:1], strict=True):
        assert not set(before.tolist()) & set(after.tolist()), "consecutive calls share a slot"


@pytest.mark.parametrize("batch", [1, 8, 32, 64, 256, 512])
@pytest.mark.parametrize("shape", [GDNShape(16, 64), GDNShape(2, 8)])
def test_calls_on_a_gpu_come_from_memory_and_last(monkeypatch, shape, batch):
    l2 = 50 << 20
    monkeypatch.setattr(pools, "l2_bytes", lambda device: l2)
    plan, point = bare(2048, shape, replace(ROOF, gb_per_s=3000.0)), Point(batch)
    plan.device = torch.device("cuda")
    calls = plan.calls(point)
    assert plan.l2(point) == "cold"
    assert pools.state_touched(shape, torch.bfloat16, 2048, batch, calls) >= 4 * l2
    at_roof_us = calls * plan.bytes(point) / 3e6
    assert 8 <= calls <= 1024 and (at_roof_us > 150) and at_roof_us < 7000


class MemoryOfAGpu:
    """Enough of torch.cuda to decide on the size of a pool."""

    def __init__(self, monkeypatch, free):
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
        monkeypatch.setattr(pools, "l2_bytes", lambda device: 50 << 20)


FULL = GDNShape(16, 64)


def slots_on_a_gpu(batch, shape=FULL):
    cases = [Case("triton", "vk", layout, "in_place") for layout in ("VK", "KV")]
    return pools.pool_slots(None, shape, torch.bfloat16, batch, cases, torch.device("cuda"))


def test_slots_on_a_gpu(monkeypatch):
    MemoryOfAGpu(monkeypatch, 80e9)
    assert slots_on_a_gpu(512) == 2048
    assert slots_on_a_gpu(2000) == 4001
    assert slots_on_a_gpu(1, GDNShape(1, 1)) == 8 * (50 << 20) // (128 * 128 * 2) + 1
    MemoryOfAGpu(monkeypatch, 16e9)
    slots = slots_on_a_gpu(256)
    assert 2 * 256 + 1 <= slots < 2048
    assert 2 * (slots + 257) * sum(StatePool.slot_nbytes(GDNShape(16, 64)).values()) <= 0.4 * 16e9
    with pytest.raises(ValueError, match=r"batches: B = 2000 needs 2 pools of 4001 slots of 2\.2 MB, more than 40%"):
        slots_on_a_gpu(2000)


def test_the_bar_ends_at_its_end(capsys):
    decode_sweep(SHAPE, [1, 2], variants=["torch/vk"], **(QUICK | {"progress": True}))
    text = capsys.readouterr().err
    assert "decode: 100%" in text and "B = 2, check torch/vk" in text and "Warning" not in text


@pytest.mark.gpu
@pytest.mark.alone
def test_on_a_gpu(tmp_path):
    with Run.create("test", {}, root=tmp_path) as run:
        rows = decode_sweep(GDNShape(2, 8), [1, 32], run=run, samples=10)
    assert not [row for row in rows if row["status"] == "wrong"]
    timed = [row for row in rows if row["status"] == "ok"]
    times = {(row["backend"], row["variant"], row["indexing"], row["batch"], row["timer"]): row for row in timed}
    for (backend, variant, indexing, batch, timer), row in times.items():
        assert row["l2"] == "cold" and math.isfinite(row["median_us"])
        assert row["share_of_roof"] < 1.1, "faster than memory: the state did not come from there"
        if timer == "cupti_kernel":
            replay = times[backend, variant, indexing, batch, "cuda_graph_replay"]
            assert row["median_us"] < 1.1 * replay["median_us"]
    assert {row["backend"] for row in timed} >= {"torch", "triton"}
    assert {row["timer"] for row in timed} == {"cuda_graph_replay", "cupti_kernel"}
