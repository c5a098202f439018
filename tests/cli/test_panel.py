"""The controls of notebook 02, pressed without a browser."""

import pytest

from gdn_lab.bench.results import load
from gdn_lab.cli import notebook, panel
from gdn_lab.studies.decode_kernels.study import Parameters


@pytest.fixture
def controls(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook.torch.cuda, "is_available", lambda: False)
    return panel.DecodePanel(tp=16, batch=1, samples=1, root=tmp_path)


def test_it_offers_what_can_serve_and_says_why_the_rest_cannot(controls):
    assert controls.variants.options == ("torch/vk", "torch/kv") == controls.variants.value
    assert "triton/vk: needs an NVIDIA GPU" in controls.refusals.value
    assert "flashinfer/vk: " in controls.refusals.value


def test_a_model_brings_its_own_divisions(controls):
    assert controls.tp.options == (1, 2, 4, 8, 16)
    controls.model.value = "qwen3.5-27b"  # 16 key and 48 value heads
    assert controls.p.shape.num_v_heads == 3 and controls.tp.value == 16
    assert panel.divisions("qwen3.5-27b") == [1, 2, 4, 8, 16]


def test_pressing_run_measures_and_shows(controls, tmp_path):
    controls.variants.value = ["torch/vk"]
    controls.button.click()
    assert {(row["backend"], row["variant"]) for row in controls.rows} == {("torch", "vk")}
    assert {row["indexing"] for row in controls.rows} == {"in_place", "gather_scatter"}
    assert controls.status.value.startswith("CPU times: ")
    assert "torch/vk" in controls.table.value and bytes(controls.figure.value).startswith(b"\x89PNG")
    assert controls.figure.layout.display != "none" and not controls.button.disabled
    run, rows = load(tmp_path / "latest")
    assert run["status"] == "complete" and run["parameters"]["batches"] == "1" and len(rows) == 2


def test_nothing_chosen_is_a_sentence(controls, tmp_path):
    controls.variants.value = []
    controls.button.click()
    assert controls.status.value == "Choose at least one variant."
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_sentence(controls, tmp_path):
    controls.root = tmp_path / "file"
    controls.root.write_text("")
    controls.button.click()
    assert controls.status.value.startswith("Not measured: cannot write results to ")
    assert not controls.button.disabled


def test_a_failed_measurement_is_a_sentence_and_recorded(controls, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the state of the VK pool is no longer finite")

    monkeypatch.setattr(panel, "decode_sweep", fail)
    controls.button.click()
    assert controls.status.value == "Not measured: the state of the VK pool is no longer finite"
    assert load(tmp_path / "latest")[0]["status"] == "failed"


def test_an_interrupt_is_a_sentence_and_recorded(controls, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(panel, "decode_sweep", stop)
    controls.button.click()
    assert controls.status.value == "Interrupted; the rows measured so far are kept."
    assert load(tmp_path / "latest")[0]["status"] == "interrupted" and not controls.button.disabled


def test_in_batch_it_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(notebook.RUN_FOLDER, str(tmp_path))
    panel.show(Parameters.parse({"tp": 16}))
    assert capsys.readouterr().out == "The controls of this section are for JupyterLab; in batch they are not shown.\n"
