"""The command line, on tiny notebooks: what it runs, what it refuses, and what it keeps when something stops it."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from gdn_lab.__main__ import main
from gdn_lab.cli import run as batch

PARAMETERS = "batches: int = 4  # how many batches\nname: str = 'small'  # which model"
ROW = """
import os
from gdn_lab.measure import Run
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
    (folder,) = [path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()]
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


def test_failing_notebook_keeps_its_rows_and_says_where(notebook, runs, capsys):
    path = notebook(ROW, "raise ValueError('batches: expected 5, got 4')", name="01_fails")
    later = notebook("print('never')", name="02_later")
    assert main(["run", str(path), str(later), "--runs", str(runs)]) == 1
    folder = only_run(runs)
    assert files(folder) == ["01_fails.failed.ipynb", "rows.jsonl", "run.json"]
    assert json.loads((folder / "rows.jsonl").read_text())["batches"] == 4
    sentence = capsys.readouterr().err
    assert sentence.startswith("gdn_lab: 01_fails failed in cell 3: ValueError: batches: expected 5, got 4; 1 row kept")
    assert batch.shown(folder) in sentence
    assert "01_fails.failed.ipynb" in sentence
    assert "Traceback" not in sentence


def test_ctrl_c_stops_the_kernel_and_keeps_rows(notebook, runs, tmp_path):
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
    assert files(folder) == ["00_tiny.interrupted.ipynb", "rows.jsonl", "run.json"]
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert "00_tiny was interrupted; 1 row kept in" in sentence
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def wait_until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_misspelt_parameter_is_refused_before_anything_runs(notebook, runs, capsys):
    assert main(["run", str(notebook()), "-p", "batchs", "7", "--runs", str(runs)]) == 2
    assert capsys.readouterr().err == (
        "gdn_lab: 00_tiny has no parameter 'batchs' (did you mean 'batches'?); it has: batches, name\n"
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
    expected = f"gdn_lab: cannot write to the output folder {runs}: Not a directory; name another with --runs FOLDER\n"
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


@pytest.mark.parametrize(
    "text, value",
    [
        ("7", 7),
        ("-1", -1),
        ("1e3", 1000.0),
        ("0.5", 0.5),
        ("True", True),
        ("None", None),
        ("all", "all"),
        ("1,8", "1,8"),
    ],
)
def test_words_are_typed_as_papermill_types_them(text, value):
    from papermill.cli import _resolve_type

    assert batch.typed(text) == value == _resolve_type(text)
    assert type(batch.typed(text)) is type(value)


def test_parameter_declared_as_text_stays_text(notebook):
    assert batch.values(notebook(), {"batches": "64", "name": "64"}) == {"batches": 64, "name": "64"}


def test_list_says_question_and_parameters(notebook):
    lines = batch.describe(notebook()).splitlines()
    assert lines[0] == "00_tiny: Does it run?"
    assert re.fullmatch(r"    batches: int = 4 +how many batches", lines[1])


def test_backends_lists_each_with_its_reason(capsys):
    assert main(["backends"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^torch .* yes$", printed, re.MULTILINE)
    assert {line.split()[0] for line in printed.splitlines()} >= {"torch", "triton", "flashinfer"}


def test_progress_bar_gets_lines_in_a_log_and_redraws_on_a_terminal():
    log = io.StringIO()
    batch._Indented(log).write("one\n\r 10%\r 90%\ntwo")
    assert log.getvalue() == "    one\n     10%\n     90%\n    two"
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    batch._Indented(terminal).write("\r 10%\r 90%\n")
    assert terminal.getvalue() == "     10%\r     90%\n"


def test_gpu_that_torch_cannot_use_is_said(monkeypatch, tmp_path):
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(batch.torch.cuda, "is_available", lambda: False)
    assert batch.gpu_unseen().startswith("nvidia-smi lists GPU 0: NVIDIA H100 80GB HBM3, but torch")
    listing.write_text("#!/bin/sh\nexit 9\n")
    assert batch.gpu_unseen() is None


# --- make


def dry_run(*arguments) -> subprocess.CompletedProcess:
    """make -n, as from a shell and not as from the make that runs the tests."""
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", "-n", *arguments], cwd=batch.ROOT, capture_output=True, text=True, env=alone)


@pytest.mark.parametrize("given", ["tests/test_pool.py::test_x", "-k 'a or b' --runs=/x/y:z", "100%", "-p tokens 2,4"])
@pytest.mark.parametrize("target", ["test", "run", "bench", "test-gpu", "sanitize"])
def test_make_passes_arguments_on_whatever_is_in_them(target, given):
    done = dry_run(target, f"ARGS={given}")
    assert done.returncode == 0, done.stderr
    assert target == "sanitize" or given in done.stdout


def test_make_sanitize_is_a_process_for_each_tool_and_group():
    calls = re.findall(r"tool=(\w+);.*?gdn_lab\.smoke (\w+)", dry_run("sanitize").stdout, re.DOTALL)
    assert sorted(calls) == sorted(
        (tool, group) for tool in ("memcheck", "racecheck") for group in ("triton", "cutedsl", "flashinfer", "step")
    )
    alone = re.findall(r"gdn_lab\.smoke (\w+)", dry_run("sanitize-racecheck-step").stdout)
    assert alone == ["step"]
