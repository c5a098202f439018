"""The sweep of accuracy with a small random model: cases, rows, and that all paths answer alike."""

import json

import pytest
import torch
from small_network import network_and_model

from gdn_lab.bench.results import Run
from gdn_lab.studies.accuracy import accuracy_cases as cases
from gdn_lab.studies.accuracy import study, sweep
from gdn_lab.studies.accuracy.accuracy_rows import AccuracyRows
from gdn_lab.studies.accuracy.answering import PATHS, right_answers
from gdn_lab.trained.inference import Kernels
from gdn_lab.trained.language import questions

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def p(tmp_path):
    network_and_model(tmp_path)
    given = {"questions": 6, "tokens": "128", "names": 5, "stepped": 2, "dtypes": "bfloat16"}
    return study.Parameters.parse(given | {"checkpoint": str(tmp_path / "model.safetensors")})


def test_cases_begin_with_what_others_are_compared_with(p):
    found = cases.cases(p)
    assert [(case.path, case.dtype, case.shortcut) for case in found[:3]] == [(path, "float32", "") for path in PATHS]
    assert (
        len(found) == len(set(found)) == 3 + 5 + 3 + 1
    )  # paths; padding and gates; bfloat16 on three paths; stochastic
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


def test_no_time_is_left(p, capsys):
    rows = sweep.accuracy_sweep(p.model_copy(update={"minutes": -1.0}), "cpu")
    assert (
        rows == []
        and "No time was left for 12 cases: prefill, torch/vk, float32, 128 tokens" in capsys.readouterr().out
    )


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
    from gdn_lab.trained.inference import Requests

    return _decoded(Requests(model, len(asked.prompts), Kernels()), asked.prompts, 1)


def test_gates_of_a_shortcut(tmp_path):
    _, model = network_and_model(tmp_path)
    originals = dict(model.gates)
    cases.set_gates(model, originals, cases.BF16_DT_BIAS)
    (layer, (A_log, dt_bias)), *_ = originals.items()
    assert torch.equal(model.gates[layer][0], A_log) and not torch.equal(model.gates[layer][1], dt_bias)
    assert (model.gates[layer][1] - dt_bias).abs().max() <= 2**-8 * dt_bias.abs().max()
    cases.set_gates(model, originals, cases.NO_DT_BIAS)
    assert not model.gates[layer][1].any()
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
