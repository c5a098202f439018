"""Notebook 09 as committed, executed on a CPU: a toy model, nothing ranked, and plain words on what is not recorded."""

import nbformat
import papermill

from gdn_lab.bench.results import load
from gdn_lab.cli import notebook


def test_it_runs_without_a_gpu(tmp_path, monkeypatch, forked_kernel):
    folder, out = tmp_path / "run", tmp_path / "out.ipynb"
    folder.mkdir()
    monkeypatch.setenv(notebook.RUN_FOLDER, str(folder))
    given = {"model": "qwen3.5-35b-a3b", "concurrency": "1,2", "gpu_reference": "h200"}
    path = notebook.ROOT / "notebooks" / "09_serving.ipynb"
    papermill.execute_notebook(path, out, given, kernel_name=forked_kernel, cwd=notebook.ROOT, progress_bar=False)
    run, rows = load(folder)
    assert run["status"] == "complete" and run["notebook"] == "09_serving"
    assert {row["status"] for row in rows} == {"fact"}
    served = {(row["configuration"], row["concurrency"]) for row in rows if row["type"] == "run"}
    assert served == {(name, concurrency) for name in ("torch", "torch-kv") for concurrency in (1, 2)}
    cells = nbformat.read(out, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    errors = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert "Warning" not in errors and "Error" not in errors, errors
    said = "".join(output["data"].get("text/plain", "") for output in outputs if "data" in output)
    assert "A toy model served 12 requests" in said and "rank nothing" in said
    assert "12 of 12 requests got the tokens that they get when served alone" in said
    assert "No times to show: a toy model was served" in said or "recorded: H200" in said
    assert (folder / "tpot_waterfall.png").is_file()
