"""The notebooks as committed, executed at their smallest size, and what they refuse."""

import ast
import json
import logging
from types import SimpleNamespace

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError
from pydantic import Field

from gdn_lab.bench.results import load
from gdn_lab.cli import listing, notebook
from gdn_lab.models import GDNShape
from gdn_lab.studies import Study, studies, study
from gdn_lab.studies.parameters import ModelParameters, ParameterError, Samples, batch_list

PATHS = sorted((notebook.ROOT / "notebooks").glob("*.ipynb"))
SMALLEST = {
    "00_start_here": {"tp": 16, "batch": 1},
    "01_pool_layouts": {"tp": 16, "batches": "1", "samples": 1},
    "02_decode_kernels": {"tp": 16, "batches": "1,2", "samples": 1, "backends": "torch"},
    "03_decode_step": {"tp": 8, "batch": 2, "heat_batches": "1", "samples": 1},
    "05_verify": {"tp": 16, "tokens": "2,3", "samples": 1, "backends": "torch"},
    "06_prefill": {"tp": 16, "second_tp": 0, "workloads": "1x70", "samples": 1, "backends": "torch"},
}
each_study = pytest.mark.parametrize("study", studies(), ids=lambda study: study.notebook)
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def path_of(study):
    return notebook.ROOT / "notebooks" / f"{study.notebook}.ipynb"


def first_cell(study, kind):
    return next(cell for cell in nbformat.read(path_of(study), as_version=4).cells if cell.cell_type == kind)


@each_notebook
def test_committed_without_outputs(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    for cell in book.cells:
        assert cell.cell_type != "code" or (not cell.outputs and cell.execution_count is None), cell.id
    assert not {"papermill", "widgets"} & set(book.metadata)


@each_notebook
def test_it_opens_with_a_question_and_ends_with_references(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    heading = cells[0].source.splitlines()[0]
    assert heading.startswith("# ") and heading.endswith("?")
    text = "\n".join(cell.source for cell in cells)
    for part in ("**You need**", "\n## The answer", "\n## Summary", "\n## References"):
        assert part in text
    assert sum(line.startswith("# ") for line in text.splitlines()) == 1


def test_every_notebook_is_of_a_study_and_every_study_has_one():
    assert [path.stem for path in PATHS] == [study.notebook for study in studies()]


@each_study
def test_the_heading_is_the_question(study):
    assert f"# {study.question}" in first_cell(study, "markdown").source.splitlines()


@each_study
def test_the_parameters_cell_is_what_the_study_declares(study):
    """Names, order, types and defaults, and each comment is the description."""
    cell = first_cell(study, "code")
    assert cell.metadata.tags == ["parameters"]
    declared = []
    for line, node in zip(cell.source.splitlines(), ast.parse(cell.source).body, strict=True):
        declared.append((node.target.id, node.annotation.id, ast.literal_eval(node.value), line.partition("  # ")[2]))
    assert declared == listing.table_of_parameters(study.parameters)
    shown = papermill.inspect_notebook(str(path_of(study)))
    assert [(name, one["help"]) for name, one in shown.items()] == [(name, help) for name, *_, help in declared]


@each_study
def test_the_defaults_are_parameters_that_can_be(study):
    given = {name: default for name, _, default, _ in listing.table_of_parameters(study.parameters)}
    assert study.parameters.parse(given) is not None


@each_notebook
def test_it_is_thin(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not any(
                isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)
                for node in ast.walk(ast.parse(cell.source))
            ), cell.id


@pytest.mark.parametrize("name", SMALLEST)
def test_it_runs(name, tmp_path, monkeypatch, forked_kernel):
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv(notebook.RUN_FOLDER, str(folder))
    path = notebook.ROOT / "notebooks" / f"{name}.ipynb"
    papermill.execute_notebook(
        path, tmp_path / "out.ipynb", SMALLEST[name], kernel_name=forked_kernel, cwd=notebook.ROOT, progress_bar=False
    )
    run, rows = load(folder)
    assert run["status"] == "complete" and run["notebook"] == name
    assert run["parameters"]["tp"] == SMALLEST[name]["tp"] and f"-p tp {SMALLEST[name]['tp']}" in run["command"]
    assert {row["status"] for row in rows} <= {"ok", "refused", "fact"}
    assert {f"{row['backend']}/{row['variant']}" for row in rows if row["status"] == "ok"} >= {"torch/vk", "torch/kv"}
    book = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "PU times: " in printed and "Results of this run: run" in printed
    errors = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert "Warning" not in errors and "Error" not in errors, errors
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == len(list(folder.glob("*.png"))) > 0
    for picture in pictures:
        assert picture.metadata["image/svg+xml"]["alt"] and picture.data["image/svg+xml"].count("<svg") == 1


def test_advice_measures_nothing_and_answers(tmp_path, monkeypatch, forked_kernel):
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv(notebook.RUN_FOLDER, str(folder))
    path, out = notebook.ROOT / "notebooks/07_advice.ipynb", tmp_path / "out.ipynb"
    papermill.execute_notebook(
        path, out, {"batch": 64, "spec": 4}, kernel_name=forked_kernel, cwd=notebook.ROOT, progress_bar=False
    )
    run, rows = load(folder)
    assert run["status"] == "complete" and not rows and [path.name for path in folder.glob("*.png")] == ["fastest.png"]
    text = out.read_text()
    assert "qwen3-next-80b-a3b, tp 4, B = 64" in text and "--linear-attn-decode-backend" in text
    assert "Nothing is timed here" in text and "if all of them verify 4 draft tokens at once" in text


def test_a_cell_that_raises_ends_the_run(tmp_path, monkeypatch, caplog, forked_kernel):
    """In the middle of a committed notebook, after begin(): the cells behind it do not run, and run.json says why."""
    caplog.set_level(logging.CRITICAL, "papermill")
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv(notebook.RUN_FOLDER, str(folder))
    book = nbformat.read(notebook.ROOT / "notebooks" / "01_pool_layouts.ipynb", as_version=4)
    place = next(n for n, cell in enumerate(book.cells) if "notebook.begin(" in cell.source)
    book.cells[place + 1 :] = [
        nbformat.v4.new_code_cell("import sys\nassert 'jsonschema' not in sys.modules, 'two seconds more'"),
        nbformat.v4.new_code_cell("raise KeyboardInterrupt"),
        nbformat.v4.new_code_cell("run.finish()"),
    ]
    nbformat.write(book, tmp_path / "in.ipynb")
    with pytest.raises(PapermillExecutionError):
        papermill.execute_notebook(
            tmp_path / "in.ipynb", tmp_path / "out.ipynb", SMALLEST["01_pool_layouts"], kernel_name=forked_kernel,
            cwd=notebook.ROOT, progress_bar=False,
        )  # fmt: skip
    run, rows = load(folder)
    assert run["status"] == "interrupted" and rows == [] and run["rows"] == 0 and run["end_utc"]


def test_plain_papermill_refuses_a_misspelt_parameter(tmp_path, monkeypatch, caplog, forked_kernel):
    monkeypatch.delenv(notebook.RUN_FOLDER, raising=False)
    caplog.set_level(logging.CRITICAL, "papermill")
    runs = set((notebook.ROOT / "runs").glob("*"))
    with pytest.raises(PapermillExecutionError) as refusal:
        papermill.execute_notebook(
            PATHS[2], tmp_path / "out.ipynb", {"batchs": "1"}, kernel_name=forked_kernel, cwd=notebook.ROOT,
            progress_bar=False,
        )  # fmt: skip
    assert refusal.value.ename == "ParameterError"
    assert refusal.value.evalue.startswith(
        "02_decode_kernels has no parameter 'batchs' (did you mean 'batches'?); it has:"
    )
    assert refusal.value.traceback == [f"ParameterError: {refusal.value.evalue}"]
    assert set((notebook.ROOT / "runs").glob("*")) == runs


# ---- begin(), with the history that IPython would have

DECLARED = 'model: str = "qwen3.5-397b-a17b"  # a model\ntp: int = 1  # GPUs\nsamples: int = 0  # samples\n'


class Parameters(ModelParameters):
    samples: Samples = Field(0, description="samples")
    batches: batch_list(cpu=(1, 4)) = Field("auto", description="batch sizes")


STUDY = Study("99", "mine", "Does it begin?", Parameters)


def begin(tmp_path, monkeypatch, injected="", declared=DECLARED, folder=None):
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    if folder:
        monkeypatch.setenv(notebook.RUN_FOLDER, str(folder))
    else:
        monkeypatch.delenv(notebook.RUN_FOLDER, raising=False)
    cells = ["", declared, *([f"# Parameters\n{injected}\n"] if injected else []), "run = begin(STUDY, globals())"]
    names = {"In": cells}
    for cell in cells[1:-1]:
        exec(cell, names)
    return notebook.begin(STUDY, names)


def test_by_hand_a_run_folder_is_made(tmp_path, monkeypatch, capsys):
    run = begin(tmp_path, monkeypatch)
    assert run.folder.parent == tmp_path / "runs" and run.info["command"] is None
    assert run.info["parameters"] == {"model": "qwen3.5-397b-a17b", "tp": 1, "samples": 0}
    assert f"Results of this run: runs/{run.folder.name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "before, inside, status",
    [
        (None, ValueError("too few"), "failed"),
        (SyntaxError("no cell"), None, "failed"),
        (None, KeyboardInterrupt(), "interrupted"),
        (None, None, "running"),
    ],
)
def test_how_a_cell_ended_is_how_the_run_ended(before, inside, status, tmp_path, monkeypatch):
    called = {}
    shell = SimpleNamespace(events=SimpleNamespace(register=called.__setitem__))
    monkeypatch.setattr(notebook, "get_ipython", lambda: shell)
    run = begin(tmp_path, monkeypatch)
    called["post_run_cell"](SimpleNamespace(error_before_exec=before, error_in_exec=inside))
    assert load(run.folder)[0]["status"] == status


def test_in_batch_the_given_folder_is_used_and_the_command_recorded(tmp_path, monkeypatch):
    folder = tmp_path / "given"
    folder.mkdir()
    run = begin(tmp_path, monkeypatch, "tp = 8\nbatches = '1, 2'", folder=folder)
    assert run.folder == folder and run.info["command"] == "gdn-lab run 99_mine -p tp 8 -p batches '1, 2'"
    assert json.loads((folder / "run.json").read_text())["parameters"]["tp"] == 8


def test_the_parameters_are_parsed_and_recorded_as_given(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook.torch.cuda, "is_available", lambda: False)
    run = begin(tmp_path, monkeypatch, "batches = 7\ntp = 8")
    assert run.info["parameters"]["batches"] == 7
    assert run.p.batches == [7] and run.p.samples == 1 and run.p.shape == GDNShape(2, 8)
    assert begin(tmp_path, monkeypatch).p.batches == [1, 4]


@pytest.mark.parametrize(
    ("injected", "sentence"),
    [
        ("tpp = 8", "99_mine has no parameter 'tpp' (did you mean 'tp'?); it has: model, tp, samples, batches"),
        ("zzz = 8", "99_mine has no parameter 'zzz'; it has: model, tp, samples, batches"),
        ('tp = "eight"', "tp: expected a whole number, got 'eight'"),
        ("tp = True", "tp: expected a whole number, got True"),
        ("tp = 3", "tp: qwen3.5-397b-a17b has 16 key and 64 value heads, which 3 GPUs cannot share evenly"),
        ('model = "qwen3.5-27"', "model: 'qwen3.5-27' is not in the model table (did you mean 'qwen3.5-27b'?)"),
        ("samples = -1", "samples: expected at least 0, got -1"),
        ("batches = 'one'", "batches: expected auto or whole numbers from 1 up such as 1,2,4, got 'one'"),
    ],
)
def test_wrong_parameters_are_one_sentence(injected, sentence, tmp_path, monkeypatch):
    with pytest.raises(ParameterError) as refusal:
        begin(tmp_path, monkeypatch, injected)
    assert str(refusal.value).startswith(sentence) and "\n" not in str(refusal.value)
    assert not (tmp_path / "runs").exists()


def test_a_misspelt_name_in_the_cell_itself_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ParameterError, match=r"has no parameter 'sampels' \(did you mean 'samples'\?\)"):
        begin(tmp_path, monkeypatch, declared="sampels: int = 3  # samples\n")


def test_the_first_timer_is_the_device_s(monkeypatch):
    monkeypatch.setattr(notebook.torch.cuda, "is_available", lambda: False)
    assert notebook.first_timer() == ["host_clock"] and notebook.device().type == "cpu"
    monkeypatch.setattr(notebook.torch.cuda, "is_available", lambda: True)
    assert notebook.first_timer() == ["cuda_graph_replay"]


def test_a_missing_recording_is_a_line(capsys):
    """H200 rows of verify, say, while there are none; here of a GPU that nobody recorded."""
    given = {"tp": 16, "batches": "1"}
    p = study("02").parameters.parse(given).model_copy(update={"gpu_reference": "b9000"})
    run = SimpleNamespace(p=p, info={"notebook": "02_decode_kernels", "parameters": given})
    assert notebook.recorded(run) == ({}, [])
    assert capsys.readouterr().out == (
        "Nothing recorded to compare with: no run of 02_decode_kernels is recorded on b9000.\n"
    )


# ---- without a GPU kernels are checked, and nothing is ranked


def test_without_a_gpu_the_smallest_shape_is_checked_and_more_samples_bring_times_back(monkeypatch):
    monkeypatch.setattr(notebook.torch.cuda, "is_available", lambda: False)
    parse = study("02").parameters.parse
    assert parse({}).checks_only and parse({}).here == (16, GDNShape(1, 4)) and parse({}).shape == GDNShape(16, 64)
    timed = parse({"samples": 5, "tp": 2})
    assert not timed.checks_only and timed.here == (2, GDNShape(8, 32))
    assert study("06").parameters.parse({}).measured == {16: GDNShape(1, 4)}
    assert list(study("06").parameters.parse({"samples": 2}).measured) == [1, 8]


def test_what_is_only_checked_has_a_table_of_checks_and_no_times(capsys):
    row = {"status": "ok", "phase": "decode", "backend": "torch", "variant": "vk", "indexing": "in_place", "tokens": 1}
    row |= {"num_k_heads": 1, "num_v_heads": 4, "max_abs_error": 1e-4, "max_abs_error_state": None}
    row["checked"] = ["q = k"]
    rows = [row | {"batch": 1}, row | {"batch": 8, "max_abs_error": 3e-4}, row | {"batch": 8, "indexing": "detour"}]
    rows += [row | {"batch": 2, "indexing": "detour", "status": "wrong"}, {"status": "refused", "reason": "none"}]
    run = SimpleNamespace(p=SimpleNamespace(checks_only=True))
    shown = notebook.checked(run, rows)
    assert shown.caption == "Checked on this CPU, and not ranked, at HK 1, HV 4"
    first, second = shown.data.to_dict("records")
    assert (first["call"], first["B"], first["verdict"], first["largest error of o"]) == (
        "decode in place", "1 and 8", "right", 3e-4,
    )  # fmt: skip
    assert (second["call"], second["B"], second["verdict"]) == ("decode detour", "2 and 8", "wrong")
    assert notebook.table_here(run, None, None, "") is None and notebook.show_here(run, None, None, "x") is None
    assert "do not rank kernels. Pass -p samples=5" in capsys.readouterr().out
    assert notebook.checked(SimpleNamespace(p=SimpleNamespace(checks_only=False)), rows) is None
