"""A scrubbed trace has lost every secret that was planted in it, and still gives the same tables."""

import gzip
import json
import os
import sqlite3
from pathlib import Path

import pytest
from recorded_traces import MAIN, global_tid, kineto_trace, two_steps, write_nsys

from gdn_lab.trace import nsight_file, range_table, read, summaries, table
from gdn_lab.trace import scrubber as module
from gdn_lab.trace.scrubber import scrub

SECRET = "hunter2-token"


def plant(path: Path) -> int:
    """Put the secret wherever a trace may hold one; return in how many places."""
    places = {
        "CREATE TABLE TARGET_INFO_SYSTEM_ENV (globalVid, devStateName, name, nameEnum, value)": None,
        "INSERT INTO TARGET_INFO_SYSTEM_ENV VALUES (0, '', 'Hostname', 1, ?)": "host",
        "INSERT INTO TARGET_INFO_SYSTEM_ENV VALUES (0, '', 'Environment', 2, ?)": "HF_TOKEN=",
        "CREATE TABLE PROCESSES (globalPid, pid, name)": None,
        "INSERT INTO PROCESSES VALUES (1, 100, ?)": "/home/somebody/server --key ",
        "CREATE TABLE ThreadNames (nameId, priority, globalTid)": None,
        "CREATE TABLE PROCESS_STREAMS (globalPid, filenameId, contentId)": None,
        "INSERT INTO StringIds VALUES (901, ?)": "printed on stdout ",
        "INSERT INTO META_DATA_EXPORT VALUES ('INPUT_FILE', ?)": "/home/somebody/",
        "UPDATE TARGET_INFO_GPU SET uuid = ?": "GPU-",
        "ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL ADD COLUMN comment": None,
        "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET comment = ?": "on each kernel ",
        "CREATE VIEW secrets AS SELECT value FROM StringIds": None,
        "CREATE TABLE freed (value)": None,
        "INSERT INTO freed VALUES (? || hex(zeroblob(20000)))": "on a page that is freed below ",
        "DROP TABLE freed": None,
    }
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        for statement, text in places.items():
            connection.execute(statement, (text + SECRET,) if text else ())
        events = ((34, f"mark {SECRET}", 0), (75, f"unused domain {SECRET}", 44))
        for kind, text, domain in events:
            row = (10, None, kind, text, global_tid(*MAIN), domain)
            connection.execute(
                "INSERT INTO NVTX_EVENTS (start, end, eventType, text, globalTid, domainId) VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
    connection.close()
    return sum(text is not None for text in places.values()) + len(events)


@pytest.fixture
def secret(tmp_path):
    program = two_steps()
    program.range("ncclAllReduce", 2150, 2250, domain=3)
    path = write_nsys(tmp_path / "secret.sqlite", program, domains={(100, 3): "NCCL"})
    places = plant(path)
    assert path.read_bytes().count(SECRET.encode()) >= places
    return path


def test_secrets_are_gone_and_tables_stay(secret, tmp_path):
    before = secret.read_bytes()
    copy = scrub(secret)
    assert copy == tmp_path / "secret.scrubbed.sqlite" and sorted(os.listdir(tmp_path)) == [copy.name, secret.name]
    assert secret.read_bytes() == before
    data = copy.read_bytes()
    for word in (SECRET, "somebody", "Hostname", "PROCESSES", "GPU-", "/home"):
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            assert word.encode(encoding) not in data, (word, encoding)
    whole, scrubbed = read(secret), read(copy)
    assert table(scrubbed).equals(table(whole)) and range_table(scrubbed).equals(range_table(whole))
    assert scrubbed.kernels.equals(whole.kernels) and scrubbed.ranges.equals(whole.ranges)
    assert (scrubbed.gpus, scrubbed.notes) == (whole.gpus, whole.notes)
    for summary in (summaries.cuda_gpu_kern_sum, summaries.nvtx_kern_sum, summaries.nvtx_gpu_proj_sum):
        assert summary(scrubbed).equals(summary(whole))
    assert "NCCL:ncclAllReduce" in set(scrubbed.ranges["path"].str.split(" / ").str[-1])


def test_copy_holds_known_tables_and_columns_alone(secret):
    connection = sqlite3.connect(scrub(secret))
    found = connection.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    assert {kind for kind, _ in found} == {"table"}
    for _, name in found:
        needed, optional = nsight_file.TABLES[name]
        assert {row[1] for row in connection.execute(f"PRAGMA table_info({name})")} <= {*needed, *optional}
    assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)
    connection.close()


def test_scrubbing_twice_changes_nothing(secret, tmp_path):
    once = scrub(secret)
    twice = scrub(once, tmp_path / "twice.sqlite")
    assert twice.read_bytes() == once.read_bytes()


def test_refusals_leave_nothing_behind(secret, tmp_path):
    names = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match="is the trace itself"):
        scrub(secret, secret)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        scrub(secret, tmp_path / "nowhere" / "copy.sqlite")
    foreign = tmp_path / "foreign.sqlite"
    foreign.write_text("hello")
    with pytest.raises(ValueError, match="is not a trace"):
        scrub(foreign)
    foreign.unlink()
    assert sorted(os.listdir(tmp_path)) == names


def test_full_disk_is_said_and_leaves_nothing(secret, tmp_path, monkeypatch):
    def full(partial, *_):
        partial.write_bytes(b"half")
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(OSError, match="cannot write .*copy.sqlite: database or disk is full; free space"):
        scrub(secret, tmp_path / "copy.sqlite")
    assert os.listdir(tmp_path) == [secret.name]


def test_report_is_exported_and_scrubbed(secret, tmp_path, monkeypatch):
    report, nsys = tmp_path / "run.nsys-rep", tmp_path / "bin" / "nsys"
    report.write_bytes(b"a report")
    nsys.parent.mkdir()
    nsys.write_text(f'#!/bin/sh\nexec cp "{secret}" "$7"\n')
    nsys.chmod(0o755)
    monkeypatch.setenv("PATH", str(nsys.parent), prepend=os.pathsep)
    copy = scrub(report)
    assert copy.name == "run.scrubbed.sqlite" and SECRET.encode() not in copy.read_bytes()
    assert table(read(copy)).equals(table(read(secret)))


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_trace_is_scrubbed_too(tmp_path, name):
    trace = kineto_trace(two_steps(other_process=False)) | {"hostname": SECRET, "traceName": f"/home/{SECRET}"}
    for entry in trace["traceEvents"]:
        entry["args"] = entry.get("args", {}) | {"Call stack": SECRET}
    data = json.dumps(trace).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    copy = scrub(tmp_path / name)
    assert copy.name == "trace.scrubbed.json.gz" and sorted(os.listdir(tmp_path)) == sorted([name, copy.name])
    assert SECRET.encode() not in gzip.decompress(copy.read_bytes())
    assert read(copy).kernels.equals(read(tmp_path / name).kernels)
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="not a trace"):
        scrub(tmp_path / name, tmp_path / "other.json.gz")
    assert not (tmp_path / "other.json.gz").exists()
