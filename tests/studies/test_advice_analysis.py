"""Advice: made-up rows whose answer is computed by hand, and the recorded rows' answers to two users' questions."""

import json

import pytest

from gdn_lab import GDNShape
from gdn_lab.backends.registry import VARIANTS
from gdn_lab.config import EngineSettings, Machine
from gdn_lab.studies.advice import engine_flags
from gdn_lab.studies.advice.analysis import ENGINE_DEFAULTS, ENGINE_OWN, advise, as_json
from gdn_lab.studies.advice.answer import text
from gdn_lab.studies.advice.memory_need import memory_need
from gdn_lab.studies.advice.recorded_calls import KERNEL, PART, Times, estimate, recording, series_of, source_of
from gdn_lab.studies.advice.study import Parameters

NEXT = "qwen3-next-80b-a3b"  # 16 key and 32 value heads, 36 GDN layers
RUN = {
    "start_utc": "2026-11-22T08:00:00Z",
    "status": "complete",
    "environment": {
        "gpu_name": "NVIDIA H100 80GB HBM3",
        "compute_capability": "9.0",
        "flashinfer": "0.7.2",
        "git_commit": "0123456789abcdef",
    },
}


def decode_row(variant, batch, us, *, model="qwen3.5-35b-a3b", tp=4, dtype="bfloat16", spread=0.01):
    shape, (backend, name) = GDNShape.from_model(model, tp), variant.split("/")
    return {
        "status": "ok", "phase": "decode", "backend": backend, "variant": name, "indexing": "in_place", "model": model,
        "tp": tp, "state_dtype": dtype, "batch": batch, "num_k_heads": shape.num_k_heads,
        "num_v_heads": shape.num_v_heads, "timer": "cuda_graph_replay", "median_us": us, "p20_us": us * (1 - spread),
        "p80_us": us * (1 + spread), "count": 50, "roof_gb_per_s": 3000.0,
    }  # fmt: skip


@pytest.fixture
def data(tmp_path, monkeypatch):
    """data(rows, notebook=...): record rows as a run of an H100; returns the folder that advise() reads."""
    from gdn_lab.report import recorded

    def record(rows, notebook="02_decode_kernels", run=RUN):
        folder = tmp_path / "measured" / "h100" / notebook
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(run))
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    monkeypatch.setattr(recorded, "recorded_gpus", lambda: ["h100", "h200"])
    return record


def asked(**changes) -> Parameters:
    return Parameters.parse({"model": NEXT, "tp": 4, "batch": 96} | changes)


def rows_of(times: dict[str, dict[int, float]], **options) -> list[dict]:
    return [decode_row(name, batch, us, **options) for name, by in times.items() for batch, us in by.items()]


# ---- times at a batch


@pytest.mark.parametrize(
    ("batch", "us", "how", "batches"),
    [
        (64, 10.0, "recorded", (64,)),
        (96, 15.0, "interpolated", (64, 128)),
        (112, 17.5, "interpolated", (64, 128)),
        (32, 10.0, "nearest", (64,)),
        (1024, 20.0, "nearest", (128,)),
    ],
)
def test_a_time_is_recorded_linear_between_neighbours_or_the_nearest(batch, us, how, batches):
    one = estimate({64: Times(10, 9, 11), 128: Times(20, 19, 21)}, batch)
    assert (one.times.us, one.how, one.batches) == (us, how, batches)


def test_of_two_sweeps_of_a_run_the_one_with_more_samples_counts():
    """Whichever comes first; of equal ones the later."""
    many, few = ({"count": 50, "median_us": 10.0}, {"count": 10, "median_us": 99.0})
    row = decode_row("triton/vk", 96, 1.0)
    for rows, us in (([many, few], 10.0), ([few, many], 10.0), ([few, few | {"median_us": 98.0}], 98.0)):
        (series,) = series_of(recording("h100", "02_decode_kernels", RUN), [row | each for each in rows])
        assert series.times["triton/vk"][96].us == us


@pytest.mark.parametrize(("batch", "nearest"), [(30, 48), (26, 16)])
def test_the_nearest_batch_with_two_variants_is_that_of_the_smallest_ratio(batch, nearest):
    """30 is 14 from 16 and 18 from 48, but 1.9 times the one and 1.6 times smaller than the other."""
    times = {"triton/kv8": {16: 5.0, 48: 15.0}, "cutedsl/vk": {16: 2.0}, "triton/vk": {48: 4.0}}
    (series,) = series_of(recording("h100", "02_decode_kernels", RUN), rows_of(times))
    assert {one.batches for one in series.at(batch).values()} == {(nearest,)} and len(series.at(batch)) == 2


STEP_ROW = decode_row("triton/vk", 96, 1.0) | {"phase": "step", "part": "gdn", "timer": "cupti_kernel"}


@pytest.mark.parametrize(
    ("row", "source"),
    [
        (decode_row("triton/vk", 96, 1.0), KERNEL),
        (decode_row("triton/vk", 96, 1.0) | {"indexing": "gather_scatter"}, None),
        (decode_row("triton/vk", 96, 1.0) | {"timer": "cupti_kernel"}, None),
        (decode_row("triton/vk", 96, 1.0) | {"phase": "verify"}, None),
        (decode_row("triton/vk", 96, 1.0) | {"status": "wrong"}, None),
        (decode_row("triton/vk", 96, 1.0) | {"model": None}, None),
        (STEP_ROW, PART),
        (STEP_ROW | {"toy": False}, PART),
        (STEP_ROW | {"toy": True}, None),
        (STEP_ROW | {"part": "conv"}, None),
        (STEP_ROW | {"timer": "cuda_graph_replay"}, None),
    ],
)
def test_a_time_is_of_a_kernel_in_place_or_of_its_part_of_a_step_that_is_no_toy(row, source):
    assert source_of(row) == source


# ---- the answer


def test_the_same_heads_answer_with_saving_per_layer_and_token(data):
    times = {"cutedsl/vk": {64: 10.0, 128: 20.0}, "flashinfer/vk": {64: 12.0, 128: 22.0}, "triton/kv32": {64: 20.0}}
    times["triton/kv8"] = {64: 30.0, 128: 50.0}
    advice = advise(asked(), data(rows_of(times)))
    one = advice.comparison
    assert one.same_heads and one.how == "interpolated" and one.batches == [64, 128]
    assert {name: one.us(name) for name in one.names} == {"cutedsl/vk": 15.0, "flashinfer/vk": 17.0, "triton/kv8": 40.0}
    (saving,) = advice.savings
    assert (saving.baseline, saving.layer_us, saving.token_us) == ("triton/kv8", 25.0, 25.0 * 36)
    assert advice.flags == "--linear-attn-decode-backend cutedsl --mamba-ssm-dtype bfloat16"
    said = text(advice, width=10_000)
    assert "cutedsl/vk 15.0 µs; next flashinfer/vk 17.0 µs (1.13×) and triton/kv8 40.0 µs (2.67×)." in said
    assert "recorded as qwen3.5-35b-a3b at tp 4; not recorded at this batch, linear between B = 64 and 128." in said
    assert "25.0 µs in each GDN layer, × 36 layers = 0.90 ms a token" in said
    assert "triton/kv32 was not timed with it." in said
    assert "From 02_decode_kernels, recorded on NVIDIA H100 80GB HBM3, 2026-11-22, commit 0123456789" in said
    assert f"Share of the step: not measured for {NEXT} at tp 4" in said


def test_other_heads_are_never_taken_for_those_asked_about(data):
    times = {"cutedsl/vk": {8: 10.0, 16: 20.0}, "triton/kv8": {8: 30.0, 16: 60.0}}
    advice = advise(
        asked(), data(rows_of(times, model="qwen3.5-397b-a17b", tp=1))
    )  # HV 64: 12 rows have as many states
    assert not advice.comparison.same_heads and advice.comparison.batch == 12 and advice.savings == []
    said = text(advice, width=10_000)
    assert f"No row with these heads is recorded on h100 in bfloat16, so no time of {NEXT} at tp 4 is given." in said
    assert "of qwen3.5-397b-a17b at tp 1 (HK 16, HV 64) with as many states a step (B = 12): cutedsl/vk 15.0 µs" in said
    assert "No saving is given: the recorded heads are not those of this model." in said
    assert "Any kernel with the heads of" in said and "at other heads; prefill" in said


def test_outside_the_recorded_batches_no_saving_is_made_up(data):
    advice = advise(asked(batch=4096), data(rows_of({"cutedsl/vk": {64: 10.0}, "triton/kv8": {64: 30.0}})))
    assert advice.comparison.how == "nearest" and advice.savings == []
    assert "this batch is not recorded, the times are of B = 64" in text(advice, width=10_000)


def test_times_known_in_different_ways_are_not_ranked_together(data):
    times = {"cutedsl/vk": {64: 10.0, 128: 20.0}, "triton/kv8": {64: 30.0, 128: 60.0}, "triton/vk": {128: 1.0}}
    one = advise(asked(), data(rows_of(times))).comparison
    assert one.names == ["cutedsl/vk", "triton/kv8"]


def test_one_variant_alone_is_not_advised_where_two_were_timed_beside_the_batch(data):
    """`best` of a step changes its kernel with the batch, so that between two batches only the baseline is known."""
    times = {"triton/kv8": {64: 24.0, 256: 88.0}, "cutedsl/vk": {64: 8.0}, "triton/replay": {256: 30.0}}
    advice = advise(asked(), data(rows_of(times)))
    assert advice.comparison.names == ["cutedsl/vk", "triton/kv8"] and advice.comparison.batches == [64]
    assert advice.chosen == "cutedsl/vk" and advice.savings == []
    said = text(advice, width=10_000)
    only = "of the others only triton/kv8 {} was timed with it."
    assert f"At B = 64, the nearest recorded: cutedsl/vk 8.0 µs; {only.format('24.0 µs (3.00×)')}" in said
    assert (
        f"On the other side of this batch, at B = 256: triton/replay 30.0 µs; {only.format('88.0 µs (2.93×)')}" in said
    )
    assert "No saving is given: this batch is not recorded." in said


def test_two_variants_with_other_heads_come_before_one_with_the_same(data):
    rows = rows_of({"triton/kv8": {96: 24.0}})
    other = rows_of({"triton/kv8": {12: 40.0}, "cutedsl/vk": {12: 15.0}}, model="qwen3.5-397b-a17b", tp=1)
    advice = advise(asked(), data(rows + other))
    assert advice.comparison.names == ["cutedsl/vk", "triton/kv8"] and not advice.comparison.same_heads


def test_why_no_saving_is_given_is_said(data):
    alone = data(rows_of({"cutedsl/vk": {96: 10.0}, "triton/vk": {96: 12.0}}))
    assert "neither triton/kv32 nor triton/kv8 was timed with cutedsl/vk." in text(advise(asked(), alone), width=10_000)


def test_a_baseline_that_is_the_fastest_is_said(data):
    times = {"triton/kv8": {96: 10.0}, "triton/vk": {96: 12.0}}
    said = text(advise(asked(), data(rows_of(times))), width=10_000)
    assert "the fastest, triton/kv8, is itself what the engine runs unless it is told otherwise." in said


def test_a_tie_is_said(data):
    times = {"cutedsl/vk": {96: 10.0}, "triton/vk": {96: 10.1}}
    assert "overlap, so either may be faster" in text(advise(asked(), data(rows_of(times))), width=10_000)


def test_another_dtype_is_no_answer(data):
    advice = advise(asked(dtype="float32"), data(rows_of({"cutedsl/vk": {96: 10.0}, "triton/kv8": {96: 30.0}})))
    assert advice.comparison is None and advice.backend is None and advice.flags == ""
    said = text(advice, width=10_000)
    assert "No decode row with a float32 state is recorded on h100, so no backend is advised." in said
    assert "float32: 96 requests keep 1.9 GB." in said  # memory needs no recorded row


def test_the_engine_s_rules_choose_among_the_timed(data):
    """A FlashInfer that is too old and a variant that no engine knows are not advised."""
    run = RUN | {"environment": RUN["environment"] | {"flashinfer": "0.6.3"}}
    times = {"fla/vk": {96: 5.0}, "flashinfer/vk": {96: 10.0}, "triton/vk": {96: 11.0}}
    advice = advise(asked(), data(rows_of(times), run=run))
    assert (advice.backend, advice.chosen) == ("triton", "triton/vk")
    assert "flashinfer-python 0.6.4 or newer" in text(advice, width=10_000)


def test_faster_than_memory_allows_is_said(data):
    times = {"cutedsl/vk": {96: 1.0}, "triton/kv8": {96: 39.0}}
    advice = advise(asked(), data(rows_of(times)))
    assert advice.comparison.state_us == pytest.approx(2 * 96 * 8 * 128 * 128 * 2 / 3000e3)
    assert "Moving the states alone takes 16.8 µs at the measured bandwidth" in text(advice, width=10_000)


def test_a_variant_that_writes_some_states_later_may_be_faster_than_moving_all(data):
    rows = rows_of({"triton/replay": {96: 1.0}, "triton/kv8": {96: 39.0}})
    advice = advise(asked(), data([row | {"bytes": 10**6 if row["variant"] == "replay" else 10**9} for row in rows]))
    assert not advice.comparison.moves_states and "Moving the states" not in text(advice, width=10_000)


# ---- memory


def test_memory_of_a_thousand_slots_and_their_drafts():
    """Question (b): qwen3-next-80b-a3b, tp 4, 1,000 slots, T = 4, float32 or bfloat16; computed by hand.

    HK 4, HV 8: a state has 8 · 128 · 128 elements, the convolution 2 · 4 · 128 + 8 · 128 channels, in 36 layers.
    """
    *whole, fp8 = memory_need(NEXT, 4, 1000, spec=4, gigabytes=40)
    for need, nbytes in zip(whole, (4, 2, 2), strict=True):
        slot = 36 * (131_072 * nbytes + 2048 * 3 * 2)
        draft = 36 * 4 * (131_072 * nbytes + 2048 * 2)
        assert need["slot_bytes"] == slot and need["slots_bytes"] == 1000 * slot
        assert need["draft_bytes"] == draft and need["total_bytes"] == 1000 * (slot + draft)
        assert need["fit_without_drafts"] == int(40e9 // slot) and need["fit_with_drafts"] == int(
            40e9 // (slot + draft)
        )
    ring = 16 * (4 * 128 * 2 + 8 * 128 * 2 + 8 * 4) + 12
    assert fp8["slot_bytes"] == 36 * (131_072 + 8 * 128 * 4 + 2048 * 3 * 2 + ring)
    assert fp8["draft_bytes"] == whole[1]["draft_bytes"], "both are bf16"
    said = text(advise(asked(slots=1000, spec=4)), width=10_000)
    assert "float8_e4m3fn with scales and a ring of 16 updates: 1,000 requests keep 7.1 GB" in said
    assert "float32: 1,000 requests keep 19.3 GB, and 76.1 GB more if all of them verify 4 draft tokens at once" in said
    assert "bfloat16: 1,000 requests keep 9.9 GB, and 38.3 GB more" in said


# ---- flags and rules


def test_flags_name_what_differs_from_the_defaults():
    assert engine_flags.flags(EngineSettings()) == ""
    settings = engine_flags.settings_for("flashinfer", "bfloat16")
    assert engine_flags.flags(settings) == "--linear-attn-decode-backend flashinfer --mamba-ssm-dtype bfloat16"


def test_refusals_are_the_rules_sentences():
    found = engine_flags.refusals("float32", Machine((10, 0), "0.7.2"))
    assert set(found) == {
        "linear_attn_backend cutedsl", "linear_attn_decode_backend flashinfer", "linear_attn_backend flashinfer",
    }  # fmt: skip
    assert "needs 'bfloat16' and it is 'float32'" in found["linear_attn_decode_backend flashinfer"]


def test_the_engine_s_kernels_are_what_the_records_say():
    assert [VARIANTS[name].role for name in ENGINE_DEFAULTS] == ["baseline", "baseline"]
    assert [VARIANTS[name].role for name in ENGINE_OWN] == ["peer"]


# ---- recorded rows


def test_question_a_from_what_is_recorded():
    """qwen3-next-80b-a3b, tp 4, B = 96, H100: rows of the same heads, each number again from the rows by hand."""
    advice = advise(asked())
    one, entry = advice.comparison, as_json(advice)
    assert one.same_heads and one.series.shape == GDNShape(4, 8) and one.series.recording.gpu == "h100"
    assert entry["engine"]["backend"] == one.names[0].partition("/")[0]
    times = one.series.times
    for name in one.names:
        low, high = (max(b for b in times[name] if b <= 96), min(b for b in times[name] if b >= 96))
        share = (96 - low) / (high - low) if high > low else 0
        us = times[name][low].us + share * (times[name][high].us - times[name][low].us)
        assert one.us(name) == pytest.approx(us)
    for saving in advice.savings:
        assert saving.token_us == pytest.approx(36 * (one.us(saving.baseline) - one.us(one.names[0])))
    assert advice.savings and advice.not_measured
    assert json.loads(json.dumps(entry)) == entry


def test_a_run_s_folder_answers_as_a_gpu_does(data):
    times = {"cutedsl/vk": {96: 10.0}, "triton/kv8": {96: 30.0}}
    folder = data(rows_of(times), run=RUN | {"notebook": "02_decode_kernels"}) / "measured/h100/02_decode_kernels"
    advice = advise(asked(gpu_reference=str(folder)))
    assert advice.savings[0].layer_us == 20.0
    said = text(advice, width=10_000)
    assert "on 02_decode_kernels: HK 4, HV 8" in said and str(folder) not in said


def test_a_variant_outside_the_tolerance_is_named(data):
    rows = rows_of({"flashinfer/vk": {96: 10.0}, "triton/kv8": {96: 30.0}})
    rows[0]["wrong_on"] = ["strong decay"]
    assert "flashinfer/vk was outside the tolerance on strong decay." in text(advise(asked(), data(rows)), width=10_000)
