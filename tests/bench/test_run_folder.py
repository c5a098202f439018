"""Folders of runs: which is the newest, which one died, and what stands where `latest` would."""

import errno
import json
import os
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest

from gdn_lab.bench import processes, results
from gdn_lab.bench.results import Run, load
from gdn_lab.bench.run_folder import newest_first

ROW = {"status": "fact", "phase": "decode"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(results, "environment", lambda: {"gpu_name": None})
    monkeypatch.setattr(results.clocks, "clocks", dict)


def create(root):
    return Run.create("02_decode_kernels", {"batches": [1, 8]}, root=root)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_latest_that_is_the_user_s_own_stays(tmp_path, make):
    make(tmp_path / "latest")
    with pytest.warns(UserWarning, match="latest cannot be linked to this run .there is a file or folder of that name"):
        run = create(tmp_path)
    assert load(run.folder)[0]["status"] == "running" and not (tmp_path / "latest").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"latest", run.folder.name}


def test_a_file_system_without_links_has_runs_and_no_latest(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.warns(UserWarning, match="cannot be linked to this run .Operation not permitted.; the run goes on"):
        runs = [create(tmp_path) for _ in range(12)]
    assert {path.name for path in tmp_path.iterdir()} == {run.folder.name for run in runs}
    assert newest_first(tmp_path) == [run.folder for run in reversed(runs)]


def test_the_newest_is_the_last_that_began_whatever_the_clock_says(tmp_path, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, zone=None):
            return cls(2026, 11, 28, 8, 0, 0, tzinfo=zone)

    monkeypatch.setattr(results, "datetime", Clock)
    monkeypatch.setattr(results, "utc", lambda: "2026-11-28T08:00:00Z")
    runs = [create(tmp_path) for _ in range(12)]
    assert [run.folder.name for run in runs][9:] == [f"20261128T080000Z-02_decode_kernels-{n}" for n in (10, 11, 12)]
    monkeypatch.setattr(Clock, "now", lambda zone=None: datetime(2026, 11, 28, 7, 0, 0, tzinfo=zone))
    monkeypatch.setattr(results, "utc", lambda: "2026-11-28T07:00:00Z")
    runs.append(create(tmp_path))
    assert newest_first(tmp_path) == [run.folder for run in reversed(runs)]
    for run in runs:  # as runs were recorded before run.json had an order
        info = {name: value for name, value in run.info.items() if name != "order"}
        (run.folder / "run.json").write_text(json.dumps(info))
    assert newest_first(tmp_path) == [run.folder for run in reversed(runs[-1:] + runs[:-1])]


def test_a_run_whose_process_has_gone_died(tmp_path):
    run = create(tmp_path)
    child = subprocess.Popen(["sleep", "60"])
    run.info["process"] |= {"pid": child.pid, "started": processes._started(child.pid)}
    run._write_info()
    assert load(run.folder)[0]["status"] == "running"
    child.kill()
    assert wait_until(lambda: load(run.folder)[0]["status"] == "died"), "a zombie is no process"
    child.wait()
    assert load(run.folder)[0]["status"] == "died"
    run.info["process"] |= {"pid": os.getpid(), "started": 1}  # this number was another process's
    run._write_info()
    assert load(run.folder)[0]["status"] == "died"
    run.finish()
    assert load(run.folder)[0]["status"] == "complete"


def wait_until(true):
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def test_a_run_of_another_boot_or_container_died_if_it_wrote_nothing_for_a_day(tmp_path):
    run = create(tmp_path)
    run.info["process"] |= {"boot": "another", "pid": 1}
    run._write_info()
    assert load(run.folder)[0]["status"] == "running"
    yesterday = time.time() - processes.SILENT_S - 1
    os.utime(run.folder / "run.json", (yesterday, yesterday))
    assert load(run.folder)[0]["status"] == "died"
    run.append(ROW)
    assert load(run.folder)[0]["status"] == "running"


def test_settling_a_run_whose_process_ended(tmp_path):
    results.settle(tmp_path, "interrupted")
    assert not list(tmp_path.iterdir())
    for before, ended, after in [
        ("running", "interrupted", "interrupted"),
        ("running", "failed", "failed"),
        ("running", None, "complete"),
        ("complete", None, "complete"),
        ("complete", "interrupted", "interrupted"),  # after the cell that finished the run
        ("failed", "interrupted", "failed"),
        ("interrupted", None, "interrupted"),
    ]:
        run = create(tmp_path)
        run.append(ROW)
        if before != "running":
            run.finish(before)
        results.settle(run.folder, ended)
        info, rows = load(run.folder)
        assert (info["status"], info["rows"], len(rows)) == (after, 1, 1) and info["end_utc"]
