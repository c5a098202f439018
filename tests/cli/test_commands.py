"""The command line, on tiny notebooks: what it runs, what it refuses, and what it keeps when something stops it."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest
import torch

from gdn_lab.backends.registry import VARIANTS
from gdn_lab.cli import listing
from gdn_lab.cli import run as batch
from gdn_lab.cli.main import COMMANDS, main
from gdn_lab.studies import studies

PARAMETERS = "batches: int = 4  # how many batches\nname: str = 'small'  # which model"
ROW = """
import os
from gdn_lab.bench.results import Run
run = Run.create("tiny", {}, folder=os.environ["GDN_LAB_RUN_FOLDER"])
run.append({"status": "fact", "phase": "decode", "batches": batches})
"""


@pytest.fixture
def notebook(tmp_path):
    """notebook(*cells, name=...): writes a notebook with PARAMETERS and those code cells, returns its path."""

    def write(*cells, name="00_tiny"):
        parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        heading = nbformat.v4.new_markdown_cell("# Does it run?\n\nA notebook for a test.")
        node = nbformat.v4.new_notebook(cells=[heading, parameters, *map(nbformat.v4.new_code_cell, cells)])
        node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(node, path)
        return path

    return write


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def only_run(runs):
    (folder,) = [
        path for path in runs.iterdir() if path.is_dir() and not path.is_symlink() and "-together" not in path.name
    ]
    return folder


def test_run_leaves_notebook_page_and_streams_what_it_prints(notebook, runs, capsys):
    path = notebook("import sys\nprint(batches + 1, name)\nsys.stdout.write('\\r 10%')\nsys.stdout.write('\\r 90%\\n')")
    assert main(["run", str(path), "-p", "batches", "7", "-p", "name", "big", "--runs", str(runs)]) == 0
    folder = only_run(runs)
    assert re.fullmatch(r"\d{8}T\d{6}Z-00_tiny", folder.name)
    assert files(folder) == ["00_tiny.html", "00_tiny.ipynb"]
    assert "8 big" in (folder / "00_tiny.html").read_text()
    printed = capsys.readouterr().out
    assert "[1/1] 00_tiny" in printed
    assert "\n    8 big\n" in printed
    assert "\n     90%\n" in printed
    assert "GDN_LAB_RUN_FOLDER" not in os.environ


def test_failing_notebook_keeps_its_rows_and_says_where(notebook, runs, capsys, forked_kernel):
    path = notebook(ROW, "raise ValueError('batches: expected 5, got 4')", name="01_fails")
    later = notebook("print('never')", name="02_later")
    assert main(["run", str(path), str(later), "--runs", str(runs)]) == 1
    folder = only_run(runs)
    assert files(folder) == ["01_fails.failed.html", "01_fails.failed.ipynb", "rows.jsonl", "run.json"]
    page = (folder / "01_fails.failed.html").read_text()
    assert 'ValueError: batches: expected 5, got 4: failed in <a href="#cell-3">cell 3</a>' in page
    assert 'id="cell-3"' in page and "An Exception was encountered" not in page
    index = (runs / "index.html").read_text()
    assert "failed in cell 3" in index and f"{folder.name}/01_fails.failed.html" in index
    assert json.loads((folder / "rows.jsonl").read_text())["batches"] == 4
    sentence = capsys.readouterr().err
    assert sentence.startswith("gdn-lab: 01_fails failed in cell 3: ValueError: batches: expected 5, got 4; 1 row kept")
    assert batch.shown(folder) in sentence
    assert "01_fails.failed.html" in sentence
    assert "Traceback" not in sentence


def test_ctrl_c_stops_the_kernel_and_keeps_rows(notebook, runs, tmp_path, forked_kernel):
    pid = tmp_path / "pid"
    sleeping = (
        f"import pathlib, time\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\nwith run:\n    time.sleep(60)"
    )
    path = notebook(ROW, sleeping, "raise SystemError('a cell after the interrupt ran')")
    command = [sys.executable, "-m", "gdn_lab", "run", str(path), "--runs", str(runs)]
    process = subprocess.Popen(command, cwd=batch.ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: pid.exists() and pid.read_text())
    process.send_signal(signal.SIGINT)
    _, sentence = process.communicate(timeout=20)
    assert process.returncode == 130
    folder = only_run(runs)
    assert files(folder) == ["00_tiny.interrupted.html", "00_tiny.interrupted.ipynb", "rows.jsonl", "run.json"]
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert "00_tiny was interrupted; 1 row kept in" in sentence
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def wait_until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "words",
    [
        ["-p", "batches=7", "-p", "name=a=b"],
        ["-p", "batches", "7", "-p", "name", "a=b"],
        ["-p", "batches=7", "name=a=b"],
    ],
)
def test_a_parameter_is_given_as_name_and_value_or_with_an_equals_sign(words, notebook, runs):
    path = notebook("print(batches, name)")
    assert main(["run", str(path), *words, "--runs", str(runs)]) == 0
    assert "7 a=b" in (only_run(runs) / "00_tiny.html").read_text()


def test_a_parameter_without_a_value_is_a_usage_error(notebook, runs, capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", str(notebook()), "-p", "batches", "--runs", str(runs)])
    assert end.value.code == 2 and "batches has no value; write -p batches=VALUE" in capsys.readouterr().err


def test_misspelt_parameter_is_refused_before_anything_runs(notebook, runs, capsys):
    assert main(["run", str(notebook()), "-p", "batchs", "7", "--runs", str(runs)]) == 2
    assert capsys.readouterr().err == (
        "gdn-lab: 00_tiny has no parameter 'batchs' (did you mean 'batches'?); it has: batches, name\n"
    )
    assert not runs.exists()


def test_unknown_notebook_is_refused_with_the_choices(notebook, capsys):
    folder = notebook(name="01_layouts").parent
    notebook(name="02_decode_kernels")
    notebook(name="02_decode_steps")
    with pytest.raises(
        batch.UsageError, match=r"no notebook '01_layuots' \(did you mean '01_layouts'\?\); there are: 01_"
    ):
        batch.find(["01_layuots"], folder)
    with pytest.raises(batch.UsageError, match="'02' begins several notebooks: 02_decode_kernels, 02_decode_steps"):
        batch.find(["02"], folder)
    assert [path.stem for path in batch.find(["02_decode_k", "01"], folder)] == ["02_decode_kernels", "01_layouts"]
    assert [path.stem for path in batch.find([], folder)] == ["01_layouts", "02_decode_kernels", "02_decode_steps"]
    assert main(["run", "99_no_such_notebook"]) == 2
    assert "there is no notebook '99_no_such_notebook'" in capsys.readouterr().err


def test_output_folder_that_cannot_be_made_is_one_sentence(notebook, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    runs = tmp_path / "file" / "runs"
    assert main(["run", str(notebook()), "--runs", str(runs)]) == 1
    expected = f"gdn-lab: cannot write to the output folder {runs}: Not a directory; name another with --runs FOLDER\n"
    assert capsys.readouterr().err == expected


def test_read_only_output_folder_is_one_sentence(notebook, runs, capsys, monkeypatch):
    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(batch.tempfile, "NamedTemporaryFile", refuse)
    assert main(["run", str(notebook()), "--runs", str(runs)]) == 1
    assert "Read-only file system; name another with --runs FOLDER" in capsys.readouterr().err
    assert files(runs) == []


def test_full_disk_is_one_sentence(notebook, runs, capsys, monkeypatch):
    usage = type("Usage", (), {"free": 3 << 20})
    monkeypatch.setattr(batch.shutil, "disk_usage", lambda _: usage)
    assert main(["run", str(notebook()), "--runs", str(runs)]) == 1
    assert "is full: 3 MiB are free, a run needs 64" in capsys.readouterr().err
    assert files(runs) == []


def test_parameters_of_a_notebook_of_your_own_are_typed_as_declared(notebook, tmp_path):
    path = notebook()
    assert batch.values(path, {"batches": "64", "name": "64"}) == {"batches": 64, "name": "64"}
    with pytest.raises(batch.UsageError, match="batches: expected int, got 'many'"):
        batch.values(path, {"batches": "many"})


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (("dtype", "bf16"), r"dtype: 'bf16' is unknown \(did you mean 'bfloat16'\?\); choose one of"),
        (
            ("gpu_reference", "h10"),
            r"gpu_reference: nothing is recorded of 'h10' \(did you mean 'h100'\?\); recorded are:",
        ),
        (("tp", "3"), "tp: qwen3.5-397b-a17b has 16 key and 64 value heads, which 3 GPUs cannot share evenly"),
        (("samples", "many"), "samples: expected a whole number, got 'many'"),
        (("sampels", "3"), r"02_decode_kernels has no parameter 'sampels' \(did you mean 'samples'\?\); it has: model"),
    ],
)
def test_a_value_that_cannot_be_is_a_usage_error_before_anything_runs(word, sentence, runs, capsys):
    assert main(["run", "02", "-p", *word, "--runs", str(runs)]) == 2
    assert re.match(f"gdn-lab: {sentence}", capsys.readouterr().err)
    assert not runs.exists()


def test_a_study_gets_its_words_typed_by_its_parameters():
    (path,) = batch.find(["02"])
    words = {"batches": "64", "tp": "8", "seed": "3"}
    assert batch.values(path, words) == {"batches": "64", "tp": 8, "seed": 3}


def test_of_several_notebooks_those_that_declare_a_parameter_take_it(notebook, runs, capsys):
    first, second = notebook("print(batches)", name="00_has"), notebook("print('ready')", name="01_lacks")
    book = nbformat.read(second, as_version=4)
    book.cells[1].source = "name: str = 'small'  # which model"
    nbformat.write(book, second)
    assert batch.divided({"batches": "7"}, [first, second]) == {first: {"batches": "7"}, second: {}}
    with pytest.raises(batch.UsageError, match=r"no notebook has a parameter 'nam' \(did you mean 'name'\?\)"):
        batch.divided({"nam": "7"}, [first, second])
    assert main(["run", str(first), str(second), "-p", "batches", "7", "--runs", str(runs)]) == 0
    assert "batches is a parameter of 00_has.\n" in capsys.readouterr().out


def test_list_says_questions_and_parameters(notebook, capsys):
    assert main(["list"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for study in studies():
        assert f"{study.notebook} {study.question}" in printed
    assert main(["list", "02"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("02_decode_kernels: Which decode kernel")
    assert re.search(r"^    batches: str = 'auto' +comma-separated batch sizes", printed, re.MULTILINE)
    lines = listing.described(str(notebook())).splitlines()
    assert lines[0] == "00_tiny: Does it run?"
    assert re.fullmatch(r"    batches: int = 4 +how many batches", lines[1])


def test_backends_says_of_each_variant_what_it_can_do_and_why_not(capsys):
    assert main(["backends"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^torch/vk .* yes$", printed, re.MULTILINE)
    assert {line.split("/")[0] for line in printed.splitlines()} >= {"torch", "triton", "flashinfer"}
    assert main(["backends", "--json"]) == 0
    by_name = {record["variant"]: record for record in json.loads(capsys.readouterr().out) if "variant" in record}
    assert by_name["torch/kv"]["can_run_here"] and by_name["torch/kv"]["pool_layout"] == "KV"
    assert by_name["triton/kv32"]["role"] == "baseline"
    for name, variant in VARIANTS.items():
        assert by_name[name]["label"] == variant.label
        for phase in variant.leaks:
            assert f"{name} is not isolated in {phase}" in printed


# ---- the tree of commands

LIGHT = """
import sys
from gdn_lab.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    heavy = {"torch", "papermill", "matplotlib", "pandas", "nbformat", "IPython"} & set(sys.modules)
    sys.exit(f"imports {heavy}" if heavy else end.code)
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["run", "--help"], ["list", "--help"]])
def test_help_imports_nothing_heavy(words):
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], cwd=batch.ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("usage: gdn-lab", "gdn-lab "))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0 and f"usage: gdn-lab {command}" in capsys.readouterr().out


def test_what_argparse_refuses_is_a_usage_error(capsys):
    for words in ([], ["rnu"], ["run", "--no-such-option"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2 and "usage: gdn-lab" in capsys.readouterr().err


def test_python_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "gdn_lab", "list", "99"], cwd=batch.ROOT, text=True, capture_output=True
    )
    assert done.returncode == 2 and done.stderr.startswith("gdn-lab: there is no notebook '99'")


def test_gpu_that_torch_cannot_use_is_said(monkeypatch, tmp_path):
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert batch.gpu_unseen().startswith("nvidia-smi lists GPU 0: NVIDIA H100 80GB HBM3, but torch")
    listing.write_text("#!/bin/sh\nexit 9\n")
    assert batch.gpu_unseen() is None


# ---- what is given


@pytest.mark.parametrize("command", [["run", "02"], ["profile"]])
def test_a_parameter_given_twice_is_refused(command, runs, capsys):
    assert main([*command, "-p", "tp", "8", "-p", "tp=4", "--runs", str(runs)]) == 2
    assert capsys.readouterr().err == "gdn-lab: -p tp is given twice, as '8' and as '4'; give it once\n"
    assert not runs.exists()


def test_braces_in_paths_are_braces(notebook, tmp_path, capsys):
    path = notebook("print(batches)", name="00_{name}")
    runs = tmp_path / "{batches} {x} {{y}}"
    assert main(["run", str(path), "-p", "batches", "7", "--runs", str(runs)]) == 0
    folder = only_run(runs)
    assert {"00_{name}.html", "00_{name}.ipynb"} <= set(files(folder)) and "\n    7\n" in capsys.readouterr().out
    assert listing.described(str(path)).startswith("00_{name}: Does it run?")
