"""gdn-lab record without a study: pieces, the time limit, going on, and what replaces the earlier record."""

import json
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import nbformat
import pytest

from gdn_lab.bench.results import ROW_FIELDS
from gdn_lab.bench.run_folder import load
from gdn_lab.cli import record_all, record_install, record_pieces, site
from gdn_lab.cli.errors import BatchError
from gdn_lab.cli.main import main
from gdn_lab.cluster.gpu_probe import GpuUnknown
from gdn_lab.cluster.job import FOLDER, PYTHON, Job
from gdn_lab.cluster.job_process import KEPT
from gdn_lab.report import history
from gdn_lab.report.recorded import DATA, recorded_runs
from gdn_lab.studies import studies

COMMIT = "c0ffee0000"
CALLS_RUN = {"start_utc": "2026-11-28T08:02:00Z", "environment": {"git_commit": COMMIT}}
ROW = dict.fromkeys(ROW_FIELDS["ok"], 1) | {
    "status": "ok",
    "phase": "decode",
    "backend": "triton",
    "variant": "vk",
    "state_dtype": "bfloat16",
    "batch": 64,
    "timer": "cuda_graph_replay",
    "median_us": 105.5,
    "indexing": "in_place",
}


def made(folder: Path, name: str, us: float) -> Path:
    """What a job of a notebook leaves, in a folder to copy from."""
    folder.mkdir(parents=True)
    facts = {"gpu_name": "NVIDIA H100", "git_commit": COMMIT, "git_dirty": False, "torch": "2.11.0", "triton": "3.6.0"}
    info = {
        "notebook": name,
        "start_utc": "2026-11-28T08:00:00Z",
        "end_utc": "2026-11-28T08:01:00Z",
        "environment": facts,
    }
    (folder / "run.json").write_text(json.dumps(info | {"status": "complete", "parameters": {}}))
    (folder / "rows.jsonl").write_text(json.dumps(ROW | {"median_us": us}) + "\n")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# How fast?\n\nSo fast.")])
    nbformat.write(book, folder / f"{name}.ipynb")
    return folder


def pieces(tmp_path, us=105.5, fails=False) -> list[Job]:
    """Two notebooks, the tests and the sanitizer, each a copy."""
    count = len(list(tmp_path.glob("made-*")))
    source = tmp_path / f"made-{count}"
    one = made(source / "a", "02_decode_kernels", us)
    two = made(source / "b", "00_start_here", us)
    lines = {
        "02_decode_kernels": f"cp -r {one} {FOLDER}/run",
        "00_start_here": f"cp -r {two} {FOLDER}/run",
        "tests_layer": "echo a; echo b; echo c; echo '31 passed in 9 s'" + ("; exit 1" if fails else ""),
        record_pieces.CALLS: f"echo '{{\"calls\": 25}}' > {FOLDER}/rows.jsonl; "
        f"echo '{json.dumps(CALLS_RUN)}' > {FOLDER}/run.json",
        record_pieces.SANITIZE: f"echo 0 errors > {FOLDER}/memcheck-triton.log",
    }
    return [Job(name, {}, COMMIT, "h100", command=("sh", "-c", line), seconds=1.0) for name, line in lines.items()]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout of its own to install into; its report is not made."""
    for name, value in {
        "visible_gpus": lambda: ["0"],
        "code_id": lambda: COMMIT,
        "gpu_type": lambda ids: "h100",
        "probe": lambda gpu: None,
        "pieces": lambda gpu, commit: (pieces(tmp_path), ["08_all_reduce is left out: this machine has 1 GPU"]),
    }.items():
        monkeypatch.setattr(record_all, name, value)
    monkeypatch.setattr(record_install, "_report", lambda root: [])
    checkout = tmp_path / "checkout"
    install = record_install.install
    monkeypatch.setattr(record_all, "install", lambda *arguments: install(*arguments, root=checkout))
    return checkout


def record(tmp_path, *words) -> int:
    return main(["record", "--runs", str(tmp_path / "runs"), *words])


def test_a_record_replaces_rows_pages_and_logs_and_adds_a_line_of_history(root, tmp_path, capsys):
    old = root / "data" / "measured" / "h100" / "02_decode_kernels"
    old.mkdir(parents=True)
    (old / "rows.jsonl").write_text('{"old": 1}\n')
    assert record(tmp_path) == 0
    measured = root / "data" / "measured" / "h100"
    info, rows = load(measured / "02_decode_kernels")
    assert info["environment"]["git_commit"] == COMMIT and rows[0]["median_us"] == 105.5
    assert not (measured / "00_start_here").exists(), "it measures nothing"
    assert (measured / "sanitize" / "memcheck-triton.log").read_text() == "0 errors\n"
    assert load(measured / "random_calls") == (CALLS_RUN, [{"calls": 25}])
    log = (measured / "tests" / "tests_layer.log").read_text()
    assert log.startswith(f"On an H100, commit {COMMIT}\n") and log.endswith("31 passed in 9 s\n")
    (line,) = history.read(root / "data", "h100")
    assert line["runs"]["02_decode_kernels"]["headlines"] == {"decode bfloat16, batch 64, triton/vk": 105.5}
    assert set(line["seconds"]) == {"02_decode_kernels", "00_start_here", "tests_layer", "random_calls", "sanitize"}
    pages = root / "docs" / "site"
    assert "h100/index.html" in (pages / "index.html").read_text()
    assert "How fast?" in (pages / "h100" / "02_decode_kernels.html").read_text()
    assert "08_all_reduce is left out" in capsys.readouterr().out


def test_what_does_not_fit_the_time_is_left_to_the_same_command(root, tmp_path, capsys):
    assert record(tmp_path, "--minutes", "0.001") == 1
    assert "the same command goes on" in capsys.readouterr().out and not (root / "data").exists()
    assert record(tmp_path) == 0
    assert record(tmp_path) == 0, "nothing is left, and it is installed again"
    assert len(history.read(root / "data", "h100")) == 1
    (folder,) = (tmp_path / "runs" / "records").iterdir()
    began = [json.loads(line) for line in (folder / "journal.jsonl").open()]
    assert len([line for line in began if line["event"] == "began"]) == 5, "no piece ran twice"


def test_fresh_begins_anew(root, tmp_path):
    record(tmp_path)
    record(tmp_path, "--fresh")
    assert sorted(path.name for path in (tmp_path / "runs" / "records").iterdir()) == [
        "h100-c0ffee0000",
        "h100-c0ffee0000-2",
    ]


def test_fresh_takes_a_number_that_is_free(tmp_path):
    def fresh() -> str:
        return record_all.record_folder(tmp_path, "h100", COMMIT, fresh=True).name

    names = [fresh() for _ in range(3)]
    assert names == ["h100-c0ffee0000", "h100-c0ffee0000-2", "h100-c0ffee0000-3"]
    shutil.rmtree(tmp_path / "records" / names[1])
    assert [fresh(), fresh()] == ["h100-c0ffee0000-2", "h100-c0ffee0000-4"]


def test_a_gpu_that_does_not_answer_is_a_sentence(root, tmp_path, monkeypatch, capsys):
    def unknown(ids):
        raise GpuUnknown("GPU 0 cannot be asked for its name")

    monkeypatch.setattr(record_all, "gpu_type", unknown)
    assert record(tmp_path) == 1 and "GPU 0 cannot be asked" in capsys.readouterr().err


def test_chosen_pieces_begin_in_their_order_and_are_installed_without_the_others(root, tmp_path):
    assert record(tmp_path, "--only", "tests_layer,02_decode_kernels") == 0
    (folder,) = (tmp_path / "runs" / "records").iterdir()
    lines = [json.loads(line) for line in (folder / "journal.jsonl").open()]
    about = [json.loads((folder / "jobs" / line["job"] / "job.json").read_text()) for line in lines]
    began = [each["study"] for line, each in zip(lines, about, strict=True) if line["event"] == "began"]
    assert began == ["tests_layer", "02_decode_kernels"]
    measured = root / "data" / "measured" / "h100"
    assert sorted(path.name for path in measured.iterdir()) == ["02_decode_kernels", "history.jsonl", "tests"]
    assert record(tmp_path) == 0 and (measured / "sanitize").is_dir(), "the rest goes on in the same folder"


def test_the_time_that_tests_took_is_kept_without_a_recorded_run(root, tmp_path):
    assert record(tmp_path, "--only", "tests_layer") == 0 and record(tmp_path, "--only", "tests_layer") == 0
    (line,) = history.read(root / "data", "h100")
    assert line["runs"] == {} and history.last_seconds(root / "data", "h100") == line["seconds"]
    assert list(line["seconds"]) == ["tests_layer"]


def test_a_piece_is_said_to_take_its_longest_attempt(root, tmp_path, monkeypatch):
    """Here the first, which fails; a second one finds kernels compiled."""
    line = f"[ -e {tmp_path}/tried ] || {{ touch {tmp_path}/tried; sleep 1; exit 1; }}; echo passed"
    job = Job("tests_layer", {}, COMMIT, "h100", command=("sh", "-c", line), seconds=1.0)
    monkeypatch.setattr(record_all, "pieces", lambda gpu, commit: ([job], []))
    assert record(tmp_path) == 0
    assert history.last_seconds(root / "data", "h100")["tests_layer"] >= 1.0


def test_a_piece_that_fails_leaves_the_rest_recorded(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record_all, "pieces", lambda gpu, commit: (pieces(tmp_path, fails=True), []))
    assert record(tmp_path) == 1
    assert "tests_layer failed" in capsys.readouterr().err
    assert (root / "data" / "measured" / "h100" / "02_decode_kernels" / "rows.jsonl").is_file()
    assert not (root / "data" / "measured" / "h100" / "tests").exists()


@pytest.mark.parametrize(
    "name, value, words, reason",
    [
        ("visible_gpus", lambda: [], (), "there is none here"),
        ("code_id", lambda: "c0ffee-dirty", (), "has changes"),
        ("code_id", lambda: COMMIT, ("--gpus", "2"), "--gpus is of one study"),
        ("code_id", lambda: COMMIT, ("--gpus", "0"), "--gpus is of one study"),
        *[("code_id", lambda: COMMIT, ("--minutes", word), f"above 0, got '{word}'") for word in ("soon", "nan", "0")],
        ("code_id", lambda: COMMIT, ("--only", "tests_layer,fast"), "there is no piece 'fast'"),
        ("code_id", lambda: COMMIT, ("serving", "--only", "tests_layer"), "leave it or the study out"),
    ],
)
def test_what_cannot_be_recorded_is_a_usage_error(root, tmp_path, monkeypatch, capsys, name, value, words, reason):
    monkeypatch.setattr(record_all, name, value)
    assert record(tmp_path, *words) == 2 and reason in capsys.readouterr().err


def test_the_pieces_are_every_notebook_the_tests_and_the_sanitizer():
    jobs, refused = record_pieces.pieces("h100", COMMIT)
    folders = [job.study for job in jobs]
    assert {*record_pieces.TESTS, "random_calls", "sanitize"} <= set(folders) and len(folders) == len(set(folders))
    notebooks = {job.command[4] for job in jobs if "run" in job.command} | {record_pieces.TRACE}
    assert notebooks == {study.notebook for study in studies()} and not refused
    alone = {job.study: job.command[4] for job in jobs if "record" in job.command}
    assert "09_serving_27b" in alone and set(alone.values()) == {"serving"}, "no page, so that pages stay few"
    wide = {job.study: job.gpus for job in jobs if job.gpus > 1}
    assert all(count == int(study.split("_tp")[1]) for study, count in wide.items() if "_tp" in study)
    assert wide["08_all_reduce"] == 2 and wide["09_serving_397b_tp8"] == 8
    assert all(job.seconds < 540 for job in jobs), "each fits nine minutes"


@pytest.mark.parametrize("trace", ["capture.sqlite", "capture.json.gz"])
def test_the_piece_of_a_trace_keeps_the_trace_with_its_notebook(trace, tmp_path):
    """Its command, with a program in gdn-lab's place; then its files, installed."""
    (job,) = (job for job in record_pieces.pieces("h100", COMMIT)[0] if job.study == record_pieces.TRACE)
    place, program = tmp_path / "job", tmp_path / "python"
    step, book = place / "both" / "2-03_decode_step", made(tmp_path / "04", record_pieces.TRACE, 1.0)
    program.write_text(
        f"#!/bin/sh\necho $* > {tmp_path}/words; mkdir -p {step}; echo trace > {step}/{trace}; "
        f"echo 1 > {step}/nvtx.csv; cp -r {book} {place}/both/3-{record_pieces.TRACE}\n"
    )
    program.chmod(0o755)
    place.mkdir()
    words = [word.replace(FOLDER, str(place)).replace(PYTHON, str(program)) for word in job.command]
    assert subprocess.run(words, capture_output=True, text=True).returncode == 0
    assert (tmp_path / "words").read_text().startswith("-m gdn_lab profile --runs")
    kept = {path.name for path in (place / "run").iterdir()}
    assert kept == {trace, "nvtx.csv", "rows.jsonl", "run.json", f"{record_pieces.TRACE}.ipynb"}
    assert all(name.endswith(KEPT) for name in kept - {"rows.jsonl"})
    record_install._run(place / "run", tmp_path / "measured", also=("capture.*", "*.csv"))
    assert {path.name for path in (tmp_path / "measured").iterdir()} == {trace, "nvtx.csv", "rows.jsonl", "run.json"}


def test_a_trace_that_is_missing_is_refused_before_anything_is_recorded(tmp_path):
    every = {job.study: job for job in record_pieces.pieces("h100", COMMIT)[0]}
    jobs = [every[name] for name in ("02_decode_kernels", record_pieces.TRACE)]
    for job in jobs:
        made(tmp_path / "jobs" / job.id, job.study, 1.0)
    done = {job.id: "ok" for job in jobs}
    with pytest.raises(BatchError, match="has no trace: expected capture.sqlite"):
        record_install.install(tmp_path, {job.id: job for job in jobs}, done, "h100", tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_nothing_runs_beside_what_waits_for_the_host(root, tmp_path, monkeypatch):
    """On two GPUs the other pieces run side by side, the tests that time the host before or after them."""
    slow = "date +%s.%N > {0}; sleep 0.4; date +%s.%N >> {0}"
    names = ("tests_layer", "tests_engine", "tests_alone")
    lines = {name: slow.format(tmp_path / name) for name in names}
    jobs = [Job(name, {}, COMMIT, "h100", command=("sh", "-c", line), seconds=1.0) for name, line in lines.items()]
    monkeypatch.setattr(record_all, "pieces", lambda gpu, commit: (jobs, []))
    monkeypatch.setattr(record_all, "visible_gpus", lambda: ["0", "1"])
    assert record(tmp_path) == 0
    spans = {name: [float(line) for line in (tmp_path / name).read_text().split()] for name in names}
    layer, engine, alone = (spans[name] for name in names)
    assert max(layer[0], engine[0]) < min(layer[1], engine[1]), "side by side"
    assert all(alone[1] <= other[0] or other[1] <= alone[0] for other in (layer, engine))
    (folder,) = (tmp_path / "runs" / "records").iterdir()
    assert '"gpus": ["0", "1"]' in (folder / "journal.jsonl").read_text()


def test_one_gpu_leaves_out_what_compares_numbers_of_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    jobs, refused = record_pieces.pieces("h100", COMMIT)
    assert "08_all_reduce" not in {job.study for job in jobs}
    assert refused == ["08_all_reduce is left out: it compares numbers of GPUs, and there is one here"]


def test_a_piece_is_expected_to_take_what_its_recorded_run_took():
    jobs, _ = record_pieces.pieces("h100", COMMIT)
    seconds = {job.study: job.seconds for job in jobs}
    for gpu, folder in recorded_runs():
        info, _ = load(DATA / "measured" / gpu / folder)
        if gpu == "h100" and folder in seconds and "end_utc" in info:
            start, end = (datetime.fromisoformat(info[name]) for name in ("start_utc", "end_utc"))
            assert seconds[folder] >= (end - start).total_seconds(), folder


def test_records_keep_the_names_that_are_recorded():
    named = {folder for study in studies() for folder in study.records} | {record_pieces.TRACE}
    notebooks = {study.notebook for study in studies()}
    kept = {folder for gpu, folder in recorded_runs() if gpu == "h200"}
    assert kept & notebooks <= named and {folder for folder in kept if folder.startswith("09")} <= named


def test_pages_that_take_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "MOST_BYTES", 1000)
    place = made(tmp_path / "a", "02_decode_kernels", 1.0)
    with pytest.raises(BatchError, match="the pages of h100 take"):
        site.write_site(tmp_path / "site", "h100", {"02_decode_kernels": place})
