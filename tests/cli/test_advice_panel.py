"""The controls of notebook 07, changed without a browser."""

from gdn_lab.cli import advice_panel, notebook
from gdn_lab.cli.advice_panel import AdvicePanel
from gdn_lab.studies.advice.study import Parameters


def controls() -> AdvicePanel:
    return AdvicePanel(Parameters.parse({}))


def test_it_answers_at_once_from_recorded_rows():
    assert "qwen3-next-80b-a3b, tp 4, B = 96" in controls().answer.value
    assert "<code>--linear-attn-decode-backend" in controls().answer.value


def test_code_in_a_sentence_is_code():
    assert "(<code>before</code>, triton/kv8)" in controls().answer.value and "`" not in controls().answer.value


def test_the_answer_follows_a_change():
    panel = controls()
    panel.controls["batch"].value = 64
    assert "B = 64," in panel.answer.value
    panel.controls["gpu_reference"].value = "h200"
    assert "NVIDIA H200" in panel.answer.value and "H100" not in panel.answer.value


def test_a_model_keeps_tp_where_it_divides():
    panel = controls()
    panel.controls["model"].value = "qwen3.5-27b"
    assert panel.controls["tp"].value == 4 and "qwen3.5-27b, tp 4" in panel.answer.value


def test_what_cannot_be_is_a_sentence():
    panel = controls()
    panel.controls["batch"].value = 0
    assert panel.answer.value == "<p>batch: expected at least 1, got 0.</p>"


def test_in_batch_it_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(notebook.RUN_FOLDER, str(tmp_path))
    advice_panel.show(Parameters.parse({}))
    assert capsys.readouterr().out.startswith("The controls of this section are for JupyterLab")
