"""The controls of notebook 02, pressed without a browser."""

import threading

import ipywidgets
import pytest

from gdn_lab.bench.results import load
from gdn_lab.cli import notebook, panel
from gdn_lab.report.timed import Timed, name_of
from gdn_lab.studies.decode_kernels.study import Parameters


@pytest.fixture
def controls(tmp_path, monkeypatch):
    """The panel without a GPU: a press checks at toy size."""
    monkeypatch.setattr(notebook.torch.cuda, "is_available", lambda: False)
    return panel.DecodePanel(tp=16, batches="1", root=tmp_path)


@pytest.fixture
def timing(controls):
    """The same with samples enough that a press times."""
    controls.samples = 2
    controls.variants.value = ["torch/vk"]
    return controls


def press(controls):
    controls.button.click()
    controls.wait()


def names_of(controls):
    return {name_of(row) for row in controls.rows}


def test_it_offers_every_variant_and_says_which_cannot_run_here(controls):
    values = [value for _, value in controls.variants.options]
    assert values[:2] == ["torch/vk", "torch/kv"] and set(values) == set(controls.variants.value)
    assert ("triton/vk (recorded only)", "triton/vk") in controls.variants.options
    assert "triton/vk: needs an NVIDIA GPU" in controls.refusals.value
    assert controls.given["backends"] == "torch/vk,torch/kv"


def test_a_model_brings_its_own_divisions(controls):
    assert controls.tp.options == (1, 2, 4, 8, 16)
    controls.model.value = "qwen3.5-27b"  # 16 key and 48 value heads
    assert controls.p.shape.num_v_heads == 3 and controls.tp.value == 16
    assert panel.divisions("qwen3.5-27b") == [1, 2, 4, 8, 16]


def test_without_a_gpu_it_shows_what_was_recorded_and_where(controls):
    assert "(recorded: H100, qwen3.5-397b-a17b, tp 1)" in controls.figure.value
    assert "You asked for qwen3.5-397b-a17b at tp 16" in controls.lead.value
    controls.tp.value = 1
    assert controls.lead.value == "" and "(recorded: H100, qwen3.5-397b-a17b, tp 1)" in controls.figure.value
    controls.recorded.value = panel.NOT_RECORDED
    assert controls.figure.value == ""


def test_variants_that_are_not_chosen_are_not_shown(controls):
    controls.variants.value = ["triton/vk", "triton/kv8"]
    controls.batches.value = "512"
    assert 'alt="At B = 512 triton/vk is fastest' in controls.figure.value


def test_without_a_gpu_a_press_checks_and_ranks_nothing(controls, tmp_path):
    controls.variants.value = ["torch/vk", "triton/vk"]
    controls.batches.value = "1,2"
    press(controls)
    assert names_of(controls) == {"torch/vk"} and {row["batch"] for row in controls.rows} == {1, 2}
    assert "Checked on this CPU" in controls.status.value and "Checked on this CPU" in controls.table.value
    assert controls.history == [] and "recorded: H100" in controls.figure.value
    run, rows = load(tmp_path / "latest")
    assert run["status"] == "complete" and run["parameters"]["batches"] == "1,2" and len(rows) == 4
    assert controls.stop.disabled and not controls.button.disabled


def test_presses_are_lines_of_one_figure(timing):
    press(timing)
    first = timing.figure.value
    assert timing.status.value.startswith("<p") and "CPU times: " in timing.status.value
    assert 'alt="CPU times: At B = 1 torch/vk is fastest' in first
    timing.dtype.value = "float32"
    press(timing)
    named = [entry.name for entry in timing.history]
    assert named == [f"{n}: qwen3.5-397b-a17b, tp 16, {dtype} state" for n, dtype in ((1, "bfloat16"), (2, "float32"))]
    assert timing.figure.value != first
    timing.clear.click()
    assert timing.history == [] and "CPU times" not in timing.figure.value


def test_the_memory_line_follows_what_is_set(controls):
    assert "for B = 1: " in controls.memory.value and "this machine has " in controls.memory.value
    controls.batches.value = "1,64"
    assert "2 pools (KV and VK) for B = 64: " in controls.memory.value
    controls.variants.value = ["torch/vk"]
    assert "One pool for B = 64: " in controls.memory.value


def test_a_batch_that_does_not_fit_is_a_sentence_before_and_after_a_press(controls, tmp_path):
    controls.batches.value = "100000000"
    assert "the largest batch that fits is" in controls.memory.value
    press(controls)
    assert "Not measured: batches: the pools of B = 100,000,000 need" in controls.status.value
    assert not list(tmp_path.iterdir())


def test_a_batch_that_is_none_is_a_sentence(controls):
    controls.batches.value = "1,many"
    assert "batches: expected auto or whole numbers" in controls.memory.value and controls.figure.value == ""


def test_nothing_chosen_that_can_run_is_a_sentence(controls, tmp_path):
    controls.variants.value = ["triton/vk"]
    press(controls)
    assert "Choose at least one variant that can run here." in controls.status.value
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_sentence(controls, tmp_path):
    controls.root = tmp_path / "file"
    controls.root.write_text("")
    press(controls)
    assert "Not measured: cannot write results to " in controls.status.value
    assert not controls.button.disabled and controls.stop.disabled


def test_a_failed_measurement_is_a_sentence_and_recorded(controls, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the state of the VK pool is no longer finite")

    monkeypatch.setattr(panel, "decode_sweep", fail)
    press(controls)
    assert "Not measured: the state of the VK pool is no longer finite" in controls.status.value
    assert load(tmp_path / "latest")[0]["status"] == "failed"


def test_stop_keeps_what_was_measured(timing, tmp_path, monkeypatch):
    timing.batches.value = "1,2"
    say = panel.Bar.set_postfix_str

    def stopped_later(self, text, refresh=True):
        if text == "B = 2, host_clock":  # both batches are checked, and the first is timed
            timing.stop.click()
        say(self, text, refresh)

    monkeypatch.setattr(panel.Bar, "set_postfix_str", stopped_later)
    press(timing)
    assert "Stopped. CPU times: " in timing.status.value
    run, rows = load(tmp_path / "latest")
    assert run["status"] == "interrupted" and {row["batch"] for row in rows} == {1}
    assert Timed(timing.rows).batches == [1] and len(timing.history) == 1
    assert not timing.button.disabled and timing.stop.disabled


def test_a_bar_stops_between_two_variants():
    stopped, progress = threading.Event(), ipywidgets.FloatProgress()
    with panel.Bar(progress, stopped, 10.0) as bar:
        bar.set_postfix_str("B = 1, check triton/vk", refresh=False)
        bar.update(4.0)
        assert (progress.value, progress.max, progress.description) == (4.0, 10.0, "B = 1, check triton/vk")
        stopped.set()
        with pytest.raises(KeyboardInterrupt):
            bar.set_postfix_str("B = 1, check triton/kv8")


def test_it_is_set_as_the_notebook_was(monkeypatch):
    shown = []
    monkeypatch.setattr(panel, "display", shown.append)
    monkeypatch.setattr(panel, "DecodePanel", lambda **options: type("Panel", (), {"box": options}))
    panel.show(Parameters.parse({"tp": 16, "batches": "2,4", "gpu_reference": "h200"}))
    panel.show(Parameters.parse({"tp": 16}))
    assert [each["batches"] for each in shown] == ["2,4", "auto"]
    assert [each["gpu_reference"] for each in shown] == ["h200", "h100"]


def test_in_batch_it_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(notebook.RUN_FOLDER, str(tmp_path))
    panel.show(Parameters.parse({"tp": 16}))
    assert capsys.readouterr().out == "The controls of this section are for JupyterLab; in batch they are not shown.\n"
