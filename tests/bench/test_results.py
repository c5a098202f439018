"""Runs: what is written stays written, whatever happens next."""

import errno
import json
import math
import os
import re
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from gdn_lab.bench import results
from gdn_lab.bench.results import OutputFolderError, Run, load

ROW = {
    "phase": "decode", "backend": "torch", "variant": "vk", "layout": "VK", "state_dtype": "bfloat16", "batch": 4,
    "tokens": 1, "num_k_heads": 2, "num_v_heads": 4, "timer": "host_clock", "median_us": 10.0, "p20_us": 9.0,
    "p80_us": 11.0, "count": 50, "bytes": 1000, "bytes_formula": "decode", "gb_per_s": 0.1, "roof_gb_per_s": 10.0,
    "share_of_roof": 0.01, "max_abs_error": 1e-3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(results, "environment", lambda: {"gpu_name": None})
    monkeypatch.setattr(results.clocks, "clocks", dict)


def create(root, **options):
    return Run.create("02_decode_kernels", {"batches": [1, 8]}, root=root, **options)


def test_a_run(tmp_path):
    root = tmp_path / "a" / "runs"
    with create(root, command="python -m gdn_lab run 02", seed=7) as run:
        run.append(ROW)
        run.append(ROW | {"batch": 8, "model": None})
    assert re.fullmatch(r"\d{8}T\d{6}Z-02_decode_kernels", run.folder.name)
    info, rows = load(run.folder)
    assert info["status"] == "complete" and info["seed"] == 7 and info["rows"] == 2 == run.rows
    assert info["command"] == "python -m gdn_lab run 02" and info["parameters"] == {"batches": [1, 8]}
    assert {"environment", "kernels", "clocks_before", "clocks_during", "clocks_after", "start_utc", "end_utc"} <= set(
        info
    )
    assert rows == [{"status": "ok"} | ROW, {"status": "ok"} | ROW | {"batch": 8, "model": None}]
    assert sorted(path.name for path in run.folder.iterdir()) == ["rows.jsonl", "run.json"]


def test_run_json_is_there_from_the_start(tmp_path):
    info, rows = load(create(tmp_path).folder)
    assert info["status"] == "running" and rows == []


def test_latest_points_at_the_newest(tmp_path):
    first, second = create(tmp_path), create(tmp_path)
    assert first.folder != second.folder
    assert (tmp_path / "latest").resolve() == second.folder.resolve()
    assert os.readlink(tmp_path / "latest") == second.folder.name
    assert load(tmp_path / "latest")[0]["notebook"] == "02_decode_kernels"


def test_a_relative_root_is_that_of_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = create("runs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    run.append(ROW)
    run.finish()
    assert load(run.folder)[0]["rows"] == 1 and run.folder.parent == tmp_path / "runs"


def test_a_folder_made_before(tmp_path):
    folder = tmp_path / "batch"
    with pytest.raises(OutputFolderError, match="there is no such folder; make it first"):
        create("unused", folder=folder)
    folder.mkdir()
    (folder / "log.txt").write_text("")
    run = create("unused", folder=folder)
    assert run.folder == folder and (tmp_path / "latest").resolve() == folder.resolve()
    with pytest.raises(OutputFolderError, match="holds run.json of another run; give an empty folder"):
        create("unused", folder=folder)
    assert not Path("unused").exists()


@pytest.mark.parametrize("name", ["../02", "a b", ""])
def test_a_name_that_is_none(tmp_path, name):
    with pytest.raises(ValueError, match="notebook: expected a plain name"):
        Run.create(name, {}, root=tmp_path)


def test_parameters_that_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="parameters: expected finite numbers, got rate nan"):
        Run.create("x", {"rate": math.nan}, root=tmp_path / "runs")
    with pytest.raises(ValueError, match="parameters: expected what JSON can hold"):
        Run.create("x", {"device": object()}, root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


# --- rows


@pytest.mark.parametrize("name", sorted(ROW))
def test_a_timing_row_needs_each_field(tmp_path, name):
    run = create(tmp_path)
    with pytest.raises(ValueError, match=f"'ok' needs {name}, which this one lacks"):
        run.append({key: value for key, value in ROW.items() if key != name})
    assert load(run.folder)[1] == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(tmp_path, bad):
    run = create(tmp_path)
    for name in ("median_us", "max_abs_error", "anything"):
        with pytest.raises(ValueError, match=f"expected finite numbers, got {name}"):
            run.append(ROW | {name: bad})
    with pytest.raises(ValueError, match="expected what JSON can hold"):
        run.append(ROW | {"list": [bad]})
    with pytest.raises(ValueError, match="expected a value for median_us, got null"):
        run.append(ROW | {"median_us": None})
    run.append(ROW | {"max_abs_error": None})
    assert len(load(run.folder)[1]) == 1


def test_other_kinds_of_row(tmp_path):
    run = create(tmp_path)
    refused = {"status": "refused", "phase": "decode", "backend": "flashinfer", "variant": "vk", "reason": "no GPU"}
    run.append(refused)
    run.append({"status": "fact", "phase": "pool", "bytes": 12})
    wrong = {"status": "wrong"} | {name: ROW[name] for name in results.ROW_FIELDS["wrong"]} | {"max_abs_error": None}
    run.append(wrong)
    with pytest.raises(ValueError, match="'refused' needs reason"):
        run.append({name: value for name, value in refused.items() if name != "reason"})
    with pytest.raises(ValueError, match="status 'fine' is unknown; expected one of ok, wrong, error, refused, fact"):
        run.append(ROW | {"status": "fine"})
    assert [row["status"] for row in load(run.folder)[1]] == ["refused", "fact", "wrong"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
ROWS = st.lists(st.dictionaries(st.text(min_size=1, max_size=8), VALUES, max_size=4), max_size=5)


@given(ROWS)
def test_rows_come_back_as_they_went(rows):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(results.os, "fsync", lambda descriptor: None)
        run = Run(Path(folder), {})
        run._write_info()
        rows = [row | {"status": "fact", "phase": "x"} for row in rows]
        for row in rows:
            run.append(row)
        assert load(folder)[1] == rows


@given(ROWS.filter(bool), st.integers(0, 10**6))
def test_any_cut_loses_at_most_the_last_row(rows, where):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "run.json").write_text("{}")
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        cut = data[: where % (len(data) + 1)]
        (folder / "rows.jsonl").write_bytes(cut)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = load(folder)[1]
        assert loaded == rows[: len(loaded)] and len(loaded) >= cut.count(b"\n")


# --- what goes wrong


def test_an_interrupted_sweep_loses_no_row(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with create(tmp_path) as run:
            for batch in (1, 2, 4):
                if batch == 4:
                    raise KeyboardInterrupt
                run.append(ROW | {"batch": batch})
    info, rows = load(run.folder)
    assert info["status"] == "interrupted" and [row["batch"] for row in rows] == [1, 2]


def test_a_failed_run_says_so(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with create(tmp_path) as run:
            run.append(ROW)
            raise ZeroDivisionError
    assert load(run.folder)[0]["status"] == "failed" and len(load(run.folder)[1]) == 1


def test_what_was_interrupted_does_not_become_complete(tmp_path):
    run = create(tmp_path)
    run.finish("interrupted")
    run.append(ROW)
    run.finish()
    assert load(run.folder)[0]["status"] == "interrupted" and load(run.folder)[0]["rows"] == 1
    with pytest.raises(ValueError, match="status: expected complete, interrupted or failed, got 'done'"):
        run.finish("done")


def test_a_torn_last_line(tmp_path):
    run = create(tmp_path)
    run.append(ROW)
    with open(run.folder / "rows.jsonl", "a") as file:
        file.write('{"phase": "dec')
    with pytest.warns(UserWarning, match="the last line was cut off while it was written and is left out"):
        assert len(load(run.folder)[1]) == 1


@pytest.mark.parametrize("damage", ['{"phase": "dec\n', "[1]\n"])
def test_a_damaged_line_in_the_middle(tmp_path, damage):
    run = create(tmp_path)
    (run.folder / "rows.jsonl").write_text(damage + json.dumps(ROW) + "\n")
    with pytest.raises(ValueError, match="rows.jsonl: line 1 is damaged"):
        load(run.folder)


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no run folder"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match="is not a run's folder: it has no run.json"):
        load(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load(tmp_path)


def test_a_full_disk_loses_no_row_and_tears_none(tmp_path, monkeypatch):
    run = create(tmp_path)
    run.append(ROW)
    write, calls = os.write, []

    def full(descriptor, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:20])

    monkeypatch.setattr(results.os, "write", full)
    with pytest.raises(OutputFolderError, match="cannot write results to .*: No space left on device; free space or"):
        run.append(ROW | {"batch": 8})
    monkeypatch.setattr(results.os, "write", write)
    run.append(ROW | {"batch": 16})
    assert [row["batch"] for row in load(run.folder)[1]] == [4, 16]


def test_an_interrupt_after_the_write_keeps_the_row(tmp_path, monkeypatch):
    run = create(tmp_path)

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(results.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.append(ROW)
    assert len(load(run.folder)[1]) == 1
    monkeypatch.undo()
    monkeypatch.setattr(results.clocks, "clocks", dict)
    run.finish("interrupted")
    assert load(run.folder)[0]["rows"] == 1, "counted in the file"


def test_an_interrupt_while_the_end_is_recorded(tmp_path, monkeypatch):
    written, summary = [], results.clocks.summary

    def interrupted(began):
        written.append(began)
        if len(written) == 1:
            raise KeyboardInterrupt
        return summary(began)

    monkeypatch.setattr(results.clocks, "summary", interrupted)
    with pytest.raises(KeyboardInterrupt), create(tmp_path) as run:
        run.append(ROW)
    assert load(run.folder)[0]["status"] == "interrupted" and load(run.folder)[0]["rows"] == 1


def test_a_read_only_folder(tmp_path, monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(
        OutputFolderError, match="cannot write results to .*runs: Permission denied; free space or choose"
    ):
        create(tmp_path / "runs")


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(OutputFolderError, match="cannot write results to .*runs: File exists"):
        create(tmp_path / "runs")


def test_finishing_on_a_full_disk_leaves_the_old_run_json(tmp_path, monkeypatch):
    run = create(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(OutputFolderError):
        run.finish()
    assert load(run.folder)[0]["status"] == "running"
    assert not list(run.folder.glob(".*")), "no .part is left"


# --- figures


def test_figures(tmp_path):
    run = create(tmp_path)
    figure = Figure(layout="constrained")
    figure.subplots().set_ylabel("µs")
    path = run.save_figure(figure, "time_by_batch")
    assert path == run.folder / "time_by_batch.png" and path.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (run.folder / "time_by_batch.svg").read_text()
    assert isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine), "it may be drawn again with more on it"
    assert not list(run.folder.glob(".*"))
    with pytest.raises(ValueError, match="name: expected a plain name without a suffix"):
        run.save_figure(Figure(), "figures/a.png")
