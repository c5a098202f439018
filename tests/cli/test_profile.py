"""gdn-lab profile: what it runs where, what it keeps, what it refuses. A script stands in for Nsight Systems."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recorded_traces import eager_and_graph, write_kineto, write_nsys

from gdn_lab.cli import main as cli
from gdn_lab.cli import profile
from gdn_lab.cli import run as batch
from gdn_lab.trace import crosscheck, read

NSYS = '''#!{python}
"""In place of nsys: profile leaves a report and a run of notebook 03; export and stats copy files of this folder."""
import json, pathlib, shutil, sys
here, words = pathlib.Path(__file__).parent, sys.argv[1:]
if words[0] == "profile":
    (here / "words.json").write_text(json.dumps(words))
    runs = pathlib.Path(words[words.index("--runs") + 1])
    folder = runs / "20261125T000000Z-03_decode_step"
    folder.mkdir()
    status = (here / "status").read_text()
    (folder / "run.json").write_text(json.dumps({{"status": status}}))
    if not (here / "no report").exists():
        pathlib.Path(words[words.index("--output") + 1]).write_text("a report")
elif words[0] == "export":
    shutil.copy(here / "capture.sqlite", words[words.index("--output") + 1])
else:
    for report in words[words.index("--report") + 1].split(","):
        if (here / f"{{report}}.csv").exists():
            prefix = words[words.index("--output") + 1]
            shutil.copy(here / f"{{report}}.csv", f"{{prefix}}_{{report}}.csv")
    print("no such report", file=sys.stderr)
'''


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def ran(monkeypatch, runs):
    """The notebooks run: [(stem, words)]; notebook 03 leaves a folder, with what lies in `leaves`."""
    ran = []

    def run(paths, given, root):
        ran.extend((path.stem, given) for path in paths)
        if paths[0].stem.startswith("03"):
            folder = root / "20261125T000000Z-03_decode_step"
            folder.mkdir()
            for file in (root.parent / "leaves").glob("*"):
                shutil.copy(file, folder)

    monkeypatch.setattr(batch, "run_notebooks", run)
    notebooks = {"03": Path("03_decode_step.ipynb"), "04": Path("04_nsight_systems.ipynb")}
    monkeypatch.setattr(batch, "find", lambda names: [notebooks[name] for name in names])
    number, text = ("int", "0", ""), ("str", "''", "")
    declared = {"03": {"tp": number, "seed": number}, "04": {"capture": text, "step_range": text}}
    monkeypatch.setattr(batch, "declared", lambda path: declared[path.stem[:2]])
    return ran


@pytest.fixture
def nsys(tmp_path, monkeypatch):
    """The folder of an nsys on PATH, on a machine with a GPU."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nsys").write_text(NSYS.format(python=sys.executable))
    (folder / "nsys").chmod(0o755)
    (folder / "status").write_text("complete")
    trace = read(write_nsys(folder / "capture.sqlite", eager_and_graph()))
    for report, (summary, _) in crosscheck.REPORTS.items():
        summary(trace).to_csv(folder / f"{report}.csv", index=False)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return folder


def main(*words, runs):
    return cli.main(["profile", *words, "--runs", str(runs)])


def test_without_a_gpu_the_newest_trace_is_shown_and_no_step_runs(ran, runs, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main("-p", "tp", "8", "-p", "step_range", "x", runs=runs) == 0
    assert ran == [("04_nsight_systems", {"step_range": "x"})]
    assert "torch finds no GPU here, so nothing can be recorded" in capsys.readouterr().out


def test_without_nsys_kineto_records(ran, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    (tmp_path / "leaves").mkdir()
    write_kineto(tmp_path / "leaves" / "capture.json.gz", eager_and_graph(nodes=False))
    assert main(runs=runs) == 0
    assert (runs / "20261125T000000Z-03_decode_step" / "capture.json.gz").is_file()
    assert ran == [("03_decode_step", {}), ("04_nsight_systems", {})], (
        "the newest trace, without a path of this machine"
    )
    assert "There is no nsys on PATH, so Kineto records the step" in capsys.readouterr().out


def test_under_nsight_systems_everything_is_kept(ran, runs, nsys, capsys):
    assert main("-p", "seed", "3", runs=runs) == 0
    folder = runs / "20261125T000000Z-03_decode_step"
    kept = sorted(path.name for path in folder.iterdir())
    reports = [f"{report}.csv" for report in crosscheck.REPORTS]
    assert kept == sorted(["capture.nsys-rep", "capture.sqlite", "run.json", *reports])
    assert ran == [("04_nsight_systems", {})]
    assert "The reader's numbers equal those of nsys stats" in capsys.readouterr().out
    words = json.loads((nsys / "words.json").read_text())
    assert {"--cuda-graph-trace=node", "--capture-range-end=stop", "--kill=none"} <= set(words)
    assert words[words.index("run") + 1 :][:4] == ["03_decode_step.ipynb", "-p", "seed", "3"]
    assert [path.name for path in runs.iterdir()] == [folder.name]  # and nothing else
    assert b"GPU-1" not in (folder / "capture.sqlite").read_bytes()  # scrubbed


def test_a_difference_to_nsys_stats_is_said(ran, runs, nsys, capsys):
    path = nsys / "cuda_gpu_kern_sum.csv"
    path.write_text(path.read_text().replace("gdn_kernel", "gnd_kernel"))
    assert main(runs=runs) == 0
    assert "differ from those of nsys stats: cuda_gpu_kern_sum: has no row" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("status", "failed", "03_decode_step failed under Nsight Systems"),
        ("no report", "", "nsys left no report of 03_decode_step"),
        ("nvtx_kern_sum.csv", None, "nsys stats wrote no nvtx_kern_sum, it said: no such report"),
        ("capture.sqlite", "not a capture", "is not a trace"),
    ],
)
def test_what_goes_wrong_under_nsight_systems_is_a_sentence(ran, runs, nsys, capsys, file, text, says):
    if text is None:
        (nsys / file).unlink()
    else:
        (nsys / file).write_text(text)
    assert main(runs=runs) == 1 and ran == []
    text = capsys.readouterr().err
    assert text.startswith("gdn-lab: ") and says in text and text.count("\n") == 1


def test_a_given_trace_is_analysed(ran, runs, tmp_path):
    path = write_nsys(tmp_path / "mine.sqlite", eager_and_graph())
    assert main(str(path), "-p", "step_range", "eager", runs=runs) == 0
    assert ran == [("04_nsight_systems", {"step_range": "eager", "capture": str(path)})]
    inside = profile._recorded_path(batch.ROOT / "runs" / "x" / "capture.sqlite")
    assert inside == "runs/x/capture.sqlite"  # no path of this machine in run.json


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.sqlite", b"", "is empty"),
        ("a.sqlite", b"start,end\n", "is not a trace"),
        ("a.sqlite", b"SQLite format 3\0half", "is cut short"),
        ("a.json", b'{"traceEvents": [', "was cut short"),
        ("a.json.gz", b"\x1f\x8b\x08", "was cut short"),
        ("a.sqlite", None, "there is no trace"),
    ],
)
def test_bad_traces_are_a_sentence_and_a_status(ran, runs, tmp_path, capsys, name, data, says):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    assert main(str(path), runs=runs) == 1 and ran == [] and not list(runs.iterdir())
    text = capsys.readouterr().err
    assert text.startswith("gdn-lab: ") and says in text and text.count("\n") == 1


def test_unknown_parameters_are_refused_before_anything_runs(ran, runs, capsys):
    assert main("-p", "tpp", "8", runs=runs) == 2 and ran == []
    says = "no notebook has a parameter 'tpp' (did you mean 'tp'?); they have: tp, seed, capture, step_range"
    assert says in capsys.readouterr().err


def test_make_target(tmp_path):
    path = tmp_path / "no trace.sqlite"
    path.write_text("hello")
    arguments = [f"CAPTURE={path}", f"GDN_LAB={sys.executable} -m gdn_lab", "READY="]
    # as from a shell, not as from the make that runs the tests
    alone = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS")
    }
    done = subprocess.run(["make", "profile", *arguments], cwd=batch.ROOT, capture_output=True, text=True, env=alone)
    assert done.returncode and "is not a trace" in done.stderr and not done.stdout
