"""The sweep of decode steps on the CPU at toy size, its parameters, and times of parts from made-up records."""

import pytest
import torch

from gdn_lab import layer as step
from gdn_lab.bench import timers as timing
from gdn_lab.bench.results import Run, load
from gdn_lab.bench.roof import Roof
from gdn_lab.bench.timers import TimerUnavailable
from gdn_lab.layer import step_parts
from gdn_lab.layer.step_parts import GAPS, TRACED
from gdn_lab.studies import parameters
from gdn_lab.studies.decode_step import points, study
from gdn_lab.studies.decode_step import sweep as step_sweeps
from gdn_lab.tolerances import Check

MODEL, DENSE = "qwen3.5-397b-a17b", "qwen3.5-27b"
ROOF = Roof(10.0, 9.0, 11.0, 5, 1 << 20, "made up")
CPU = ["torch-kv", "torch"]


def sweep(batches=(2,), configurations=CPU, model=MODEL, tp=8, **options):
    options = dict(toy=True, samples=2, roof=ROOF, progress=False, device="cpu") | options
    return step_sweeps.step_sweep(model, tp, list(batches), configurations=configurations, **options)


# ---- on the CPU -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MODEL, DENSE])
def test_a_step_whole_and_in_parts(model, tmp_path):
    run = Run.create("03_decode_step", {}, root=tmp_path)
    rows = sweep(model=model, run=run)
    assert load(run.folder)[1] == rows
    fact, rows = rows[0], rows[1:]
    assert fact["part"] == "all-reduce" and fact["bytes"] == 2 * 256 * 2 and fact["times_a_layer"] == 2
    assert {row["status"] for row in rows} == {"ok"} and {row["timer"] for row in rows} == {"host_clock"}
    parts = step.Step(step.StepWeights.random(model, 8, toy=True), "torch", 2).parts
    for name in CPU:
        of = {row["part"]: row for row in rows if row["configuration"] == name}
        assert set(of) == {"step", *parts, GAPS, TRACED}
        assert of["step"]["count"] == 2 and of["step"]["layers"] == points.CPU_LAYERS
        assert of["step"]["bytes"] == of[TRACED]["bytes"] == sum(of[part]["bytes"] for part in parts)
        assert of["gdn"]["bytes"] > 0 and of[GAPS]["bytes"] == 0 and of["step"]["max_abs_error"] < 1
    layouts = {row["configuration"]: (row["backend"], row["variant"], row["layout"]) for row in rows}
    assert layouts == {"torch-kv": ("torch", "kv", "KV"), "torch": ("torch", "vk", "VK")}


def test_one_gpu_has_no_all_reduce():
    assert not [row for row in sweep(tp=1, parts=False, configurations=["torch"]) if row["status"] == "fact"]


def test_what_cannot_run_is_refused_and_the_rest_goes_on():
    rows = sweep(configurations=["before", "torch"], parts=False)
    refused = [row for row in rows if row["status"] == "refused"]
    assert [row["configuration"] for row in refused] == ["before"] and "GPU" in refused[0]["reason"]
    assert [row["configuration"] for row in rows if row["status"] == "ok"] == ["torch"]


def test_a_wrong_step_is_not_timed(monkeypatch):
    right = step.Step.check
    wrong = Check(False, 0.5, 0.0)
    monkeypatch.setattr(step.Step, "check", lambda self: wrong if self.name == "torch-kv" else right(self))
    rows = sweep(parts=False)
    by_name = {row["configuration"]: row for row in rows if row["status"] != "fact"}
    assert by_name["torch-kv"]["status"] == "wrong" and by_name["torch-kv"]["max_abs_error"] == 0.5
    assert "median_us" not in by_name["torch-kv"] and by_name["torch"]["status"] == "ok"


def test_where_cupti_cannot_record_the_whole_step_is_still_timed(monkeypatch):
    def refuse(*_):
        raise TimerUnavailable("cupti_kernel cannot run inside Nsight Systems")

    monkeypatch.setattr(points, "measure_parts", refuse)
    rows = sweep(configurations=["torch"])
    assert [row["status"] for row in rows] == ["fact", "ok", "refused"]
    assert rows[-1]["timer"] == "cupti_kernel" and "Nsight Systems" in rows[-1]["reason"]


def test_a_step_that_leaves_nan_has_no_times(monkeypatch):
    monkeypatch.setattr(
        points, "time_interleaved", lambda steps, **_: next(iter(steps.values()))[1].out.fill_(torch.nan)
    )
    with pytest.raises(RuntimeError, match="torch at B = 2 leaves NaN or infinity"):
        sweep(configurations=["torch"])


def test_arguments_that_cannot_be():
    with pytest.raises(ValueError, match="configurations: expected some of before, .*, got fastest"):
        sweep(configurations=["fastest"])
    with pytest.raises(ValueError, match="batches: expected different positive ints"):
        sweep(batches=[0])
    with pytest.raises(ValueError, match="tp: qwen3.5-397b-a17b has 16 key"):
        sweep(tp=3)


def test_threads_are_as_before():
    before = torch.get_num_threads()
    sweep(parts=False, configurations=["torch"])
    assert torch.get_num_threads() == before


def test_the_heatmap_goes_over_every_point():
    options = dict(toy=True, samples=1, roof=ROOF, progress=False, device="cpu")
    rows = step_sweeps.heatmap_sweep([MODEL, DENSE], [3, 8], [1, 2], CPU, **options)
    rows = [row for row in rows if row["status"] == "ok"]
    assert {row["sweep"] for row in rows} == {"share"} and {row["part"] for row in rows} == {"step", "gdn", TRACED}
    points = {(row["model"], row["tp"], row["batch"], row["configuration"]) for row in rows}
    assert points == {(model, 8, batch, name) for model in (MODEL, DENSE) for batch in (1, 2) for name in CPU}
    assert step_sweeps.heatmap_sweep([], [], [], CPU, **options) == []


def test_a_model_without_room_is_refused_and_the_next_one_goes_on(monkeypatch):
    right = step.StepWeights.random

    def random(model, *arguments, **options):
        if model == MODEL:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(model, *arguments, **options)

    monkeypatch.setattr(step.StepWeights, "random", random)
    rows = step_sweeps.heatmap_sweep(
        [MODEL, DENSE], [8], [1], ["torch"], toy=True, samples=1, roof=ROOF, progress=False, device="cpu"
    )
    assert rows[0]["status"] == "refused" and "memory" in rows[0]["reason"] and rows[0]["model"] == MODEL
    assert {row["model"] for row in rows[1:]} == {DENSE}


# ---- parameters


@pytest.fixture
def parse(monkeypatch):
    def parsed(on_gpu=False, **values):
        for module in (study, parameters):
            monkeypatch.setattr(module, "on_gpu", lambda: on_gpu)
        return study.Parameters.parse(values)

    return parsed


def test_configurations(parse):
    assert parse().configurations == ["torch-kv", "torch"] and parse().options["toy"]
    assert parse(True).configurations == ["before", "before-32", "after", "best"] and not parse(True).options["toy"]
    assert parse(configurations=" best,before, best").configurations == ["best", "before"]
    with pytest.raises(ValueError, match="configurations: 'befor' is unknown .did you mean 'before'..; choose auto or"):
        parse(configurations="befor")
    with pytest.raises(ValueError, match="configurations: expected auto or some of before, "):
        parse(configurations=" ,")


def test_points_of_the_heatmap(parse):
    here = parse(tp=4).heatmap
    assert here == dict(models=[], tps=[4], batches=[1, 4], configurations=["torch-kv", "torch"], samples=1)
    there = parse(True).heatmap
    assert there["models"][0] == MODEL and len(there["models"]) == len(set(there["models"])) == 3
    assert there["tps"] == [1, 4, 8] and 256 in there["batches"] and there["samples"] == 20
    assert there["configurations"] == ["before", "best"]
    assert parse(heat_models=DENSE, heat_tps="8,1", heat_batches=2).heatmap["tps"] == [1, 8]
    assert parse(heat_models="").heat_models == [] and parse(heat_tps="").heat_tps == []
    assert parse(configurations="torch").heatmap["configurations"] == ["torch"]
    with pytest.raises(ValueError, match="heat_tps: expected whole numbers from 1 up such as 1,2,4, got 'one'"):
        parse(heat_tps="one")
    with pytest.raises(ValueError, match="heat_models: 'qwen3.5-27' is not in the model table .did you mean"):
        parse(heat_models="qwen3.5-27")


def test_other_parameters(parse):
    assert parse().batch == 4 and parse(True).batch == 256 and parse(batch=7).batch == 7
    assert parse().samples == 1 and parse(True).samples == 200 and parse(samples=2).heatmap["samples"] == 2
    assert parse().captured == "torch" and parse(True).captured == "after" and parse(captured=" ").captured == ""
    assert parse(captured="before").captured == "before" and parse(skew=1).options["skew"] == 1.0
    with pytest.raises(ValueError, match="captured: 'nope' is unknown; choose auto, nothing, or one of before,"):
        parse(captured="nope")
    with pytest.raises(ValueError, match="precision: expected one of fp8, bf16, got 'int4'"):
        parse(precision="int4")
    with pytest.raises(ValueError, match="skew: expected at least 0"):
        parse(skew=-1)
    with pytest.raises(ValueError, match="tp: .* which 3 GPUs cannot share evenly"):
        parse(tp=3)


# ---- times of parts, from made-up records ----------------------------------------------------------------------------


class Played:
    """A step whose kernels are given, not run."""

    parts = ("norm", "gdn", "experts")


EAGER = [("k_norm", "norm"), ("k_gdn", "gdn"), ("Memcpy DtoD", "gdn"), ("k_experts", "experts")]


def replay(*durations, overlap=0):
    """Four kernels a layer; a gap of 500 ns after each, or `overlap` ns in which the next one runs already."""
    kernels, now = [], 1000
    for place, us in enumerate(durations):
        name = ("k_norm", "k_gdn", "Memcpy DtoD (Device -> Device)", "k_experts")[place % 4]
        kernels.append((name, now, now + us * 1000))
        now += us * 1000 + (500 if not overlap else -overlap)
    return kernels


@pytest.fixture
def played(monkeypatch):
    def play(recorded, eager=EAGER):
        monkeypatch.setattr(step_parts, "unavailable", lambda timer, device: None)
        monkeypatch.setattr(step_parts, "start_cupti", lambda: None)
        monkeypatch.setattr(step_parts, "kernels_of_parts", lambda step: eager)
        monkeypatch.setattr(step_parts, "trace_interleaved", lambda steps, **options: dict.fromkeys(steps, recorded))
        return step_parts.measure_parts({"best": [Played(), Played()]}, "cuda", 3)["best"]

    return play


def test_parts_and_gaps_add_up_to_the_replay(played):
    measured = played([replay(2, 10, 1, 30, 4, 12, 1, 32)] * 3)
    us = {part: timing.median_us for part, timing in measured.parts.items()}
    assert us == {"norm": 3, "gdn": 12, "experts": 31, GAPS: 1.75, TRACED: 47.75}
    assert measured.kernels == {"norm": 1, "gdn": 2, "experts": 1, TRACED: 4}
    assert measured.parts["gdn"].timer == "cupti_kernel" and measured.parts["gdn"].count == 3


def test_time_in_which_kernels_overlap_counts_once_for_the_first(played):
    us = {part: timing.median_us for part, timing in played([replay(2, 10, 2, 30, overlap=1000)] * 2).parts.items()}
    # over two layers: of gdn's 10 + 2 µs the first of each overlaps with what came before
    assert us == {"norm": 1, "gdn": 5, "experts": 14.5, GAPS: 0, TRACED: 20.5}


@pytest.mark.parametrize(
    ("replays", "eager", "sentence"),
    [
        ([replay(1, 1, 1)], EAGER, "best: replay 1 has 3 kernels, expected a multiple of the 4 of the eager run"),
        ([replay(1, 1, 1, 1)], EAGER[::-1], "best: kernel 1 of replay 1 is k_norm, but the eager run has k_experts"),
    ],
)
def test_records_that_do_not_fit_are_refused(played, replays, eager, sentence):
    with pytest.raises(TimerUnavailable, match=sentence):
        played(replays, eager)


def test_inside_nsight_systems_it_is_refused(monkeypatch):
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(TimerUnavailable, match="inside Nsight Systems"):
        step_parts.measure_parts({"best": [Played()]}, "cuda", 3)


def test_the_innermost_part_has_the_kernel():
    assert step_parts._part("decode step / gdn", Played.parts) == "gdn"
    assert step_parts._part("decode step / gdn / copy", Played.parts) == "gdn"
    assert step_parts._part("decode step", Played.parts) == step_parts.OTHER


# ---- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_on_a_gpu_parts_add_up_and_eager_is_slower():
    names = ["before", "before-32", "after", "best"]
    rows = step_sweeps.step_sweep(MODEL, 8, [32], configurations=names, samples=200, progress=False)
    ok = [row for row in rows if row["status"] == "ok"]
    assert {row["configuration"] for row in ok} == set(names), [row for row in rows if row["status"] != "ok"]
    for name in names:
        of = {(row["part"], row["timer"]): row for row in ok if row["configuration"] == name}
        whole, traced = of["step", "cuda_graph_replay"], of[TRACED, "cupti_kernel"]
        parts = {part: row for (part, timer), row in of.items() if timer == "cupti_kernel" and part != TRACED}
        assert whole["count"] >= 200 and {"gdn", "experts", GAPS} <= set(parts)
        assert sum(row["median_us"] for row in parts.values()) == pytest.approx(traced["median_us"], rel=0.03)
        assert sum(row["kernels"] or 0 for row in parts.values()) == traced["kernels"]
        assert of["step", "cuda_events_eager"]["median_us"] > 0.9 * whole["median_us"]
        assert step_parts.OTHER not in parts


@pytest.mark.gpu
def test_the_heatmap_on_a_gpu():
    rows = step_sweeps.heatmap_sweep([DENSE], [8], [16], ["before", "best"], samples=10, progress=False)
    assert {(row["configuration"], row["part"]) for row in rows if row["status"] == "ok"} >= {
        (name, part) for name in ("before", "best") for part in ("step", "gdn", TRACED)
    }
    assert timing.TIMERS[0] in {row.get("timer") for row in rows}


def test_a_trace_of_what_cannot_run_is_not_recorded(tmp_path, capsys):
    run = Run.create("x", {}, root=tmp_path)
    for name in ("after", "torch", ""):
        step_sweeps.record(MODEL, 8, 2, name, run, toy=True, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Not recorded: after needs an NVIDIA GPU of compute capability 9.0") and len(lines) == 2
