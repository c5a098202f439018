"""A scrubbed trace has lost every secret that was planted in it, and still gives the same tables."""

import gzip
import json
import os
import sqlite3
from pathlib import Path

import pytest
from recorded_traces import MAIN, WORKER, global_tid, kineto_trace, two_steps, write_nsys

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
        "UPDATE META_DATA_EXPORT SET value = ? WHERE name = 'EXPORT_SCHEMA_VERSION_MAJOR'": "3 of ",
        "INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_SCHEMA_VERSION_MAJOR', ?)": "3 of ",
        "INSERT INTO StringIds VALUES (902, ?)": "the short name of a kernel that has a long one ",
        "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET shortName = 902": None,
        "INSERT INTO StringIds VALUES (903, ?)": "the text of a range that has one of its own ",
        "UPDATE NVTX_EVENTS SET textId = 903 WHERE text IS NOT NULL": None,
        "INSERT INTO StringIds VALUES (904, ?)": "the name of a range that ends on another thread ",
    }
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        for statement, text in places.items():
            connection.execute(statement, (text + SECRET,) if text else ())
        columns = "start, end, eventType, text, globalTid, domainId, endGlobalTid, textId"
        here, there = global_tid(*MAIN), global_tid(*WORKER)
        events = (
            (34, f"mark {SECRET}", here, 0, None, None),
            (75, f"unused domain {SECRET}", here, 44, None, None),
            (75, f"domain of another process {SECRET}", global_tid(300, 301), 3, None, None),
            (75, f"domain of a range that is left out {SECRET}", here, 55, None, None),
            (60, f"ends on another thread {SECRET}", here, 55, there, None),
            (60, None, here, 0, there, 904),
        )
        for event in events:
            connection.execute(f"INSERT INTO NVTX_EVENTS ({columns}) VALUES (10, 20, ?, ?, ?, ?, ?, ?)", event)
    connection.close()
    return sum(text is not None for text in places.values()) + sum(event[1] is not None for event in events)


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
    left_out, *notes = whole.notes  # ranges that end on another thread, which the copy does not have
    assert (scrubbed.gpus, list(scrubbed.notes)) == (whole.gpus, notes) and "another thread" not in str(notes)
    assert "end on a thread other than" in left_out
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


def test_what_is_odd_in_a_trace_leaks_nothing(tmp_path):
    """Names of launches, brackets behind copies, args of ranges, and text where numbers are meant."""
    trace = kineto_trace(two_steps(other_process=False))
    for entry in trace["traceEvents"]:
        if entry.get("cat") == "user_annotation":
            entry["args"] = {"device": SECRET, "stream": {"a": SECRET}, "correlation": [SECRET]}
        elif entry.get("cat") == "cuda_runtime":
            entry |= {"name": f"{entry['name']} {SECRET}", SECRET: 1}
            entry["args"] |= {"device": SECRET, "stream": [SECRET]}
        elif entry.get("cat") == "gpu_memcpy":
            entry["name"] = f"Memcpy DtoD ({SECRET})"
        if entry.get("cat") in ("kernel", "gpu_memcpy"):
            entry |= {"pid": SECRET, "tid": {"a": SECRET}}
            entry["args"]["device"] = str(entry["args"]["device"])
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace))
    before = [entry for entry in trace["traceEvents"] if entry.get("cat") == "cuda_runtime"]
    before[0]["args"]["correlation"] = str(before[0]["args"]["correlation"])
    path.write_text(json.dumps(trace))
    copied = gzip.decompress(scrub(path).read_bytes()).decode()
    assert SECRET not in copied
    assert read(tmp_path / "trace.scrubbed.json.gz").kernels.equals(read(path).kernels)
    for key, value in (("pid", SECRET), ("tid", [SECRET]), ("ts", SECRET), ("dur", SECRET)):
        wrong = json.loads(path.read_text())
        next(entry for entry in wrong["traceEvents"] if entry.get("cat") == "cuda_runtime")[key] = value
        (tmp_path / "wrong.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="wrong.json is damaged"):
            scrub(tmp_path / "wrong.json")


@pytest.mark.parametrize(("table", "column"), [("NVTX_EVENTS", "domainId"), ("NVTX_EVENTS", "globalTid"),
                                               ("CUPTI_ACTIVITY_KIND_KERNEL", "streamId")])  # fmt: skip
def test_text_in_a_column_of_numbers_is_refused(tmp_path, table, column):
    path = write_nsys(tmp_path / "c.sqlite", two_steps())
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {table} SET {column} = ?", (SECRET,))
    connection.close()
    with pytest.raises(ValueError, match=f"{table} is not a whole number"):
        scrub(path)
    assert os.listdir(tmp_path) == [path.name]


def test_the_version_alone_is_kept(secret):
    connection = sqlite3.connect(scrub(secret))
    assert connection.execute("SELECT * FROM META_DATA_EXPORT").fetchall() == [("EXPORT_SCHEMA_VERSION", "3.24.1")]
    connection.close()
