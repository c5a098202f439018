"""gdn-lab lab: what JupyterLab is started with, and what saving a notebook writes."""

import json
import os
import sys
from types import SimpleNamespace

import nbformat
import pytest

from gdn_lab.cli import lab
from gdn_lab.cli import run as batch
from gdn_lab.cli.main import main

NOTEBOOK = batch.NOTEBOOKS / "07_advice.ipynb"


@pytest.fixture
def started(monkeypatch):
    """The words and variables that gdn-lab lab starts JupyterLab with."""
    found = []
    monkeypatch.setattr(os, "execve", lambda program, words, environment: found.append((program, words, environment)))
    return found


@pytest.mark.parametrize("root", [True, False])
def test_it_is_jupyterlab_over_the_project_with_notebook_00(started, monkeypatch, capsys, root):
    monkeypatch.setattr(lab, "is_root", lambda: root)
    assert main(["lab", "--no-browser", "--port", "9000"]) == 0
    ((program, words, environment),) = started
    assert program == sys.executable and words[:3] == [sys.executable, "-m", "jupyterlab"]
    assert words[-3:] == ["--no-browser", "--port", "9000"]
    assert f"--ServerApp.root_dir={batch.ROOT}" in words and (batch.ROOT / lab.FIRST).is_file()
    assert f"--LabApp.default_url=/lab/tree/{lab.FIRST}" in words
    assert ("--allow-root" in words) == root == ("--allow-root" in capsys.readouterr().out)
    folders = {name: value for name, value in environment.items() if name in lab.FOLDERS}
    assert set(folders) == set(lab.FOLDERS)
    assert all(value.startswith(f"{batch.ROOT}/.jupyter/") for value in folders.values())
    assert ".jupyter/\n" in (batch.ROOT / ".gitignore").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jupyterlab_knows_every_word():
    from jupyter_lsp import LanguageServerManager
    from jupyter_server.serverapp import ServerApp
    from jupyterlab.labapp import LabApp

    classes = {each.__name__: each for each in (LabApp, LanguageServerManager, ServerApp, *ServerApp.classes)}
    for word in lab.command()[3:]:
        owner, _, trait = word.removeprefix("--").partition("=")[0].partition(".")
        assert owner in LabApp.flags or classes[owner].class_traits().get(trait), word


def test_its_settings_are_settings_of_jupyterlab():
    """A plugin or a setting that was renamed would be silently ignored."""
    (folder,) = [word.partition("=")[2] for word in lab.QUIET if "app_settings_dir" in word]
    with open(f"{folder}/overrides.json") as file:
        settings = json.load(file)
    for plugin, chosen in settings.items():
        extension, _, name = plugin.partition(":")
        schema = os.path.join(sys.prefix, "share", "jupyter", "lab", "schemas", extension, f"{name}.json")
        with open(schema) as file:
            assert set(chosen) <= set(json.load(file)["properties"])


# ---- saving


@pytest.fixture
def save(tmp_path, monkeypatch):
    """save(book, path from the project's folder): what Jupyter then writes there."""
    monkeypatch.setattr(lab, "WITH_OUTPUTS", tmp_path / "runs" / "lab")

    def save(book, path):
        model = {"type": "notebook", "content": book}
        lab.keep_outputs_apart(model=model, path=path, contents_manager=SimpleNamespace(root_dir=str(batch.ROOT)))
        return nbformat.writes(nbformat.from_dict(model["content"]), version=nbformat.NO_CONVERT) + "\n"

    return save


def executed():
    """A notebook as Lab holds it after a run."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    book.metadata["language_info"] = {"name": "python", "version": "3.11.2", "mimetype": "text/x-python"}
    book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    for count, cell in enumerate(cell for cell in book.cells if cell.cell_type == "code"):
        cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="731 µs")], count + 1
        cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}
    return book


def test_a_saved_notebook_is_the_committed_one_and_its_outputs_are_kept_in_runs(save, tmp_path):
    assert save(executed(), f"notebooks/{NOTEBOOK.name}") == NOTEBOOK.read_text()
    kept = nbformat.read(tmp_path / "runs" / "lab" / NOTEBOOK.name, as_version=4)
    assert all(cell.outputs[0].text == "731 µs" for cell in kept.cells if cell.cell_type == "code")


def test_a_notebook_elsewhere_is_saved_as_it_is(save, tmp_path):
    assert "731 µs" in save(executed(), "runs/mine.ipynb") and not (tmp_path / "runs").exists()


def test_a_notebook_without_outputs_leaves_the_kept_ones(save, tmp_path):
    save(executed(), f"notebooks/{NOTEBOOK.name}")
    save(nbformat.read(NOTEBOOK, as_version=4), f"notebooks/{NOTEBOOK.name}")
    assert "731 µs" in (tmp_path / "runs" / "lab" / NOTEBOOK.name).read_text()
