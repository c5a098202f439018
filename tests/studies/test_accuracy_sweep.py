"""The sweep of accuracy with a small random model: cases, rows, and that all paths answer alike."""

import json
from types import SimpleNamespace

import pytest
import torch
from small_network import network_and_model

from gdn_lab.backends.registry import BACKENDS, VARIANTS
from gdn_lab.bench.results import Run
from gdn_lab.pool import STATE_DTYPES
from gdn_lab.rounding import FP8
from gdn_lab.studies.accuracy import accuracy_cases as cases
from gdn_lab.studies.accuracy import answering, study, sweep
from gdn_lab.studies.accuracy.accuracy_costs import Clock
from gdn_lab.studies.accuracy.accuracy_rows import AccuracyRows
from gdn_lab.studies.accuracy.answering import PATHS, right_answers
from gdn_lab.trained import inference
from gdn_lab.trained.checkpoint import CHECKPOINT, load
from gdn_lab.trained.inference import Kernels, Requests, SmallModel
from gdn_lab.trained.language import questions
from gdn_lab.trained.sizes import Sizes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def p(tmp_path):
    network_and_model(tmp_path)
    given = {"questions": 6, "tokens": "128", "names": 5, "stepped": 2, "dtypes": "bfloat16"}
    return study.Parameters.parse(given | {"checkpoint": str(tmp_path / "model.safetensors")})


def test_cases_begin_with_what_others_are_compared_with(p):
    found = cases.cases(p)
    assert [(case.path, case.dtype, case.shortcut) for case in found[:3]] == [(path, "float32", "") for path in PATHS]
    # Paths; padding and gates; bfloat16 on three paths; stochastic
    assert len(found) == len(set(found)) == 3 + 6 + 3 + 1
    for case in found:
        other = cases.baseline_of(case, p.baseline)
        assert found.index(other) <= found.index(case)


def test_rows_are_written_and_taken_over(p, tmp_path, capsys):
    run = Run.create("11_accuracy", {}, root=tmp_path)
    rows = sweep.accuracy_sweep(p, "cpu", run)
    written = [json.loads(line) for line in (run.folder / "rows.jsonl").read_text().splitlines()]
    assert written == rows and len(rows) == 3 * len(cases.cases(p))
    assert {row["questions"] for row in rows} == {2}
    assert sweep.accuracy_sweep(p, "cpu", None, rows) == rows, "nothing is left to answer"
    assert len(AccuracyRows(rows).cases) == len(cases.cases(p))


def test_a_kernel_that_fails_stops_no_other(p, monkeypatch, capsys):
    whole = sweep.right_answers

    def fails(model, kernels, asked, path, *arguments, **options):
        if path == "verify":
            raise RuntimeError("no such instruction\nand more")
        return whole(model, kernels, asked, path, *arguments, **options)

    monkeypatch.setattr(sweep, "right_answers", fails)
    rows = sweep.accuracy_sweep(p, "cpu")
    failed = [row for row in rows if row["status"] == "refused"]
    assert [row["reason"] for row in failed] == ["failed: no such instruction"] * 2
    assert len(rows) == 2 + 3 * (len(cases.cases(p)) - 2)


def test_a_run_without_time_is_interrupted_and_gone_on_with(p, tmp_path, capsys):
    with Run.create("11_accuracy", {}, root=tmp_path) as run:
        assert sweep.accuracy_sweep(p.model_copy(update={"minutes": -1.0}), "cpu", run) == []
    said = "No time was left for 13 cases; the same command goes on with: prefill, torch/vk, float32, 128 tokens; "
    assert said in capsys.readouterr().out and run.info["status"] == "interrupted"
    half = sweep.accuracy_sweep(p, "cpu")[:15]
    with Run.create("11_accuracy", {}, root=tmp_path) as run:
        rows = sweep.accuracy_sweep(p, "cpu", run, half)
    assert rows[:15] == half and len(AccuracyRows(rows).cases) == 13
    assert run.info["status"] == "complete" and run.rows == len(rows) - 15


def test_rows_of_another_checkpoint_are_refused(p):
    earlier = [{"checkpoint_sha256": "0"}]
    with pytest.raises(RuntimeError, match="earlier rows are not of .* as it is now; record anew with --fresh"):
        sweep.accuracy_sweep(p, "cpu", None, earlier)


def test_slow_kernels_come_last_and_each_path_is_there():
    p = SimpleNamespace(tokens=[768, 1536], baseline="triton/vk", backends="all", dtypes=[*STATE_DTYPES, FP8])
    found = cases.cases(p)
    slow = [VARIANTS[case.kernel].role == "eager" or VARIANTS[case.kernel].copies for case in found]
    assert slow == sorted(slow) and {"torch", "fla"} == {
        c.kernel.partition("/")[0] for c, late in zip(found, slow, strict=True) if late
    }
    for name in ("cutedsl/vk", "flashinfer/vk", "triton/replay", "triton/kv32", "fla/vk"):
        assert cases.Case("decode", name, "bfloat16", "", 768) in found
    assert cases.Case("verify", "flashinfer/wy", "bfloat16", "", 768) in found
    fp8 = [case for case in found if case.dtype == cases.FP8]
    assert {(case.path, case.tokens) for case in fp8} == {(path, tokens) for path in PATHS for tokens in (768, 1536)}
    assert all(found.index(cases.baseline_of(case, p.baseline)) <= found.index(case) for case in found)
    assert {(case.kernel, case.rounding, case.state) for case in fp8} == {("triton/replay-fp8", "stochastic", "fp8")}
    assert {case.state for case in found if case.tokens == 1536} >= {"float32", "float16 stochastic"}
    assert {case.shortcut for case in found} == {"", *cases.PADDED, *cases.GATES, cases.LESS_DECAY}
    assert [case.tokens for case in found if case.shortcut == cases.LESS_DECAY] == [1536]


def test_a_kernel_without_the_mode_of_verify_is_refused_before_it_is_tried(monkeypatch):
    monkeypatch.setattr(BACKENDS["flashinfer"], "missing", lambda device: None)
    case = cases.Case("verify", "flashinfer/wy", "bfloat16", "", 768)
    reason = cases.refused(case, Sizes(), "cuda")
    assert reason == "has no verify kernel wy for mode 'intermediate', only output alone"


def test_a_case_begins_if_those_like_it_say_that_it_ends_in_time():
    now = [0.0]
    clock = Clock(100.0, clock=lambda: now[0])
    p = SimpleNamespace(questions=2049, stepped_of=lambda tokens: tokens - 64)
    short, long = (cases.Case("decode", "triton/vk", "float32", "", tokens) for tokens in (768, 3072))
    assert clock.predicted(p, long) is None and clock.allows(p, long)
    clock.took(p, short, 10.0)
    assert clock.predicted(p, long) == pytest.approx(10 * 3008 / 704)
    now[0] = 60.0
    assert clock.allows(p, short) and not clock.allows(p, long)
    assert clock.allows(p, short._replace(path="verify")), "nothing like it was answered"


def test_all_paths_give_the_same_answers(tmp_path):
    _, model = network_and_model(tmp_path)
    asked = questions(12, 100, 5, seed=0)
    model_s_own = asked._replace(answers=answered(model, asked))
    for path in PATHS:
        right = right_answers(model, Kernels(), model_s_own, path, 20, rows=5)
        assert right.float().mean() >= 10 / 12, path  # logits of random weights may tie within bfloat16


def answered(model, asked):
    """What the model answers on the path prefill, whatever is right."""
    from gdn_lab.studies.accuracy.answering import _decoded

    return _decoded(Requests(model, len(asked.prompts), Kernels()), asked.prompts, 1)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kernel", "dtype", "rounding"),
    [
        ("triton/vk", "float32", "nearest"),
        ("triton/vk", "bfloat16", "stochastic"),
        ("triton/replay", "bfloat16", "nearest"),
        ("cutedsl/vk", "bfloat16", "nearest"),
        ("flashinfer/vk", "float32", "nearest"),
        ("fla/vk", "float32", "nearest"),
        ("triton/replay-fp8", "float8_e4m3fn", "stochastic"),
    ],
)
def test_steps_as_a_graph_give_the_answers_of_eager_steps(kernel, dtype, rounding, monkeypatch):
    model = SmallModel(*load(CHECKPOINT), "cuda")
    asked = questions(96, 256, 32, seed=3)
    case = cases.Case("decode", kernel, dtype, "", 256, rounding)
    if reason := cases.refused(case, model.sizes, model.device):
        pytest.xfail(reason)
    graph = right_answers(model, case.kernels(), asked, "decode", 192)
    monkeypatch.setattr(answering, "COMPILING", 10**9)
    eager = right_answers(model, case.kernels(), asked, "decode", 192)
    assert (graph != eager).sum() <= 1 and eager.float().mean() > 0.8


@pytest.mark.gpu
@pytest.mark.parametrize("unguarded", [False, True])
def test_padded_steps_as_a_graph_give_the_answers_of_eager_steps(unguarded, monkeypatch):
    model = SmallModel(*load(CHECKPOINT), "cuda")
    asked = questions(33, 256, 32, seed=3)
    options = {"rows": 11, "padding": 5, "unguarded": unguarded}
    graph = right_answers(model, Kernels(decode="triton/vk"), asked, "decode", 16, **options)
    monkeypatch.setattr(answering, "COMPILING", 10**9)
    eager = right_answers(model, Kernels(decode="triton/vk"), asked, "decode", 16, **options)
    assert (graph != eager).sum() <= 1 and eager.float().mean() > 0.7


def test_a_rounded_beta_reaches_decode(tmp_path, monkeypatch):
    _, model = network_and_model(tmp_path)
    model.rounds_beta, given = True, []
    whole = inference.decode
    monkeypatch.setattr(
        inference, "decode", lambda *tensors, **options: given.append(tensors) or whole(*tensors, **options)
    )
    requests = Requests(model, 3, Kernels())
    requests.prefill(torch.randint(300, (3, 5)))
    requests.decode(torch.randint(300, (3, 1)))
    for tensors in given:
        beta = tensors[4].sigmoid()
        torch.testing.assert_close(beta, beta.bfloat16().float(), rtol=1e-6, atol=0)
        assert all(torch.equal(x, x.bfloat16().float()) for x in tensors[:4])
    assert len(given) == 3


def test_gates_of_a_shortcut(tmp_path):
    _, model = network_and_model(tmp_path)
    originals = dict(model.gates)
    cases.set_gates(model, originals, cases.BF16_DT_BIAS)
    (layer, (A_log, dt_bias)), *_ = originals.items()
    assert torch.equal(model.gates[layer][0], A_log) and not torch.equal(model.gates[layer][1], dt_bias)
    assert (model.gates[layer][1] - dt_bias).abs().max() <= 2**-8 * dt_bias.abs().max()
    cases.set_gates(model, originals, cases.NO_DT_BIAS)
    assert not model.gates[layer][1].any() and not model.rounds_beta
    cases.set_gates(model, originals, cases.LESS_DECAY)
    assert torch.allclose(model.gates[layer][0].exp(), 0.7 * A_log.exp()) and torch.equal(
        model.gates[layer][1], dt_bias
    )
    cases.set_gates(model, originals, cases.BF16_BETA)
    assert torch.equal(model.gates[layer][1], dt_bias) and model.rounds_beta
    cases.set_gates(model, originals, cases.NO_SHORTCUT)
    assert torch.equal(model.gates[layer][1], dt_bias)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"checkpoint": "none.safetensors"}, "there is no file none.safetensors"),
        ({"tokens": "64"}, "from 128 up"),
        ({"dtypes": "float8"}, "unknown"),
        ({"stepped": -2}, "at least -1"),
    ],
)
def test_parameters_that_cannot_be(given, match):
    with pytest.raises(ValueError, match=match):
        study.Parameters.parse(given)
