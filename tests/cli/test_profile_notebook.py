"""Notebook 04 as committed, executed on a trace and without one."""

import nbformat
import papermill
import pytest
from recorded_traces import eager_and_graph, write_kineto, write_nsys

from gdn_lab.bench.results import load
from gdn_lab.cli import notebook


@pytest.mark.parametrize("there", [True, False])
def test_it_runs(there, tmp_path, monkeypatch, forked_kernel):
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    monkeypatch.setenv(notebook.RUN_FOLDER, str(folder))
    given = {"gpu_reference": str(notebook.ROOT / "data" / "measured" / "h200" / "10_drift")}  # a run without a trace
    if there:
        given["capture"] = str(write_nsys(tmp_path / "mine.sqlite", eager_and_graph()))
        given["beside"] = str(write_kineto(tmp_path / "other.json", eager_and_graph(nodes=False)))
    papermill.execute_notebook(
        notebook.ROOT / "notebooks" / "04_nsight_systems.ipynb", tmp_path / "out.ipynb", given,
        kernel_name=forked_kernel, cwd=notebook.ROOT, progress_bar=False,
    )  # fmt: skip
    run, rows = load(folder)
    assert run["status"] == "complete" and run["notebook"] == "04_nsight_systems"
    compared = [row for row in rows if "profilers" in row]
    assert len(rows) - len(compared) == 10 * there and bool(compared) == there
    assert all(abs(row["difference_percent"]) < 1e-6 for row in compared)  # the same program
    book = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert ("The trace: mine.sqlite." if there else "There is no trace: no run here has one") in printed
    assert "Warning" not in printed and "Error" not in printed
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == len(list(folder.glob("*.png"))) == 3
    assert all(picture.metadata["image/png"]["alt"] for picture in pictures)
    shown = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    tables = [html for html in shown if "<table" in html]
    assert len(tables) == 6 and ("copy_kernel" in tables[3]) == there and ("difference %" in tables[5]) == there
