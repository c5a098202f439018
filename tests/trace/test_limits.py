"""Traces that are too large, too deep or damaged are refused in one sentence; large ones are read as they come."""

import gzip
import json
import os
import sqlite3
import subprocess
import sys
import time

import pytest
from recorded_traces import Program, kineto_trace, two_steps, write_kineto, write_nsys

from gdn_lab.trace import limits, range_table, read, table
from gdn_lab.trace.steps import read_steps

WITH_A_LIMIT = """
import re, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
from gdn_lab.trace import read, table
try:
    print("kernels", len(read(sys.argv[1]).kernels))
except ValueError as error:
    print(error)
assert "torch" not in sys.modules, "two seconds more"
most = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())  # ru_maxrss has the parent's too
print("MiB", int(most.group(1)) >> 10)
"""


def refused(path, says):
    began = time.process_time()
    with pytest.raises(ValueError, match=says) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert time.process_time() - began < 20


def in_3_gb(path, **variables):
    done = subprocess.run(
        [sys.executable, "-c", WITH_A_LIMIT, path],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | variables,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    return lines[0], int(lines[1].split()[1])


def kineto_of(tmp_path, name="trace.json"):
    return write_kineto(tmp_path / name, two_steps(other_process=False))


# ---- size -----------------------------------------------------------------------------------------------------------


def test_an_archive_of_zeros_is_refused_at_once(tmp_path):
    path = tmp_path / "zeros.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(1 << 24))
    said, mib = in_3_gb(path)
    assert "zeros.json.gz is not JSON or was cut short" in said and mib < 1024


def test_a_large_trace_of_other_events_is_read_in_little_memory(tmp_path):
    """What is not read, here operators, takes no memory: 0.3 GB of JSON, packed to a few MB."""
    trace = kineto_trace(two_steps(other_process=False))
    entries = trace.pop("traceEvents")
    operator = {
        "ph": "X",
        "cat": "cpu_op",
        "name": "aten::mm",
        "ts": 1.5,
        "dur": 2,
        "args": {"Input Dims": "x" * 10_000},
    }
    block = (json.dumps(operator) + ",").encode() * 1500
    path = tmp_path / "large.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"traceEvents": [')
        for _ in range(20):
            file.write(block)
        file.write(json.dumps(entries)[1:].encode() + b", " + json.dumps(trace)[1:].encode())
    said, mib = in_3_gb(path)
    assert said == "kernels 9" and mib < 768  # all of it as text and as objects is 600 more
    said, _ = in_3_gb(path, GDN_LAB_TRACE_BYTES="200000000")
    assert "large.json.gz is larger than 0.20 GB unpacked; record fewer steps, or raise GDN_LAB_TRACE_BYTES" in said


@pytest.mark.parametrize("write", [write_kineto, write_nsys])
def test_more_rows_than_memory_are_refused(tmp_path, monkeypatch, write):
    path = write(tmp_path / f"trace.{'json' if write is write_kineto else 'sqlite'}", two_steps(other_process=False))
    monkeypatch.setenv(limits.MEMORY_VARIABLE, "10000")
    refused(path, "would take 0.0 GB of memory for 2. kernels, launches and ranges, more than .* raise GDN_LAB_TRACE_M")
    monkeypatch.setenv(limits.MEMORY_VARIABLE, "1e9")
    refused(path, "GDN_LAB_TRACE_MEMORY: expected a number of bytes, such as 8000000000; got '1e9'")


@pytest.mark.parametrize("place", ["other", "name"])
def test_an_entry_of_200_mb_is_refused(tmp_path, place):
    path = kineto_of(tmp_path)
    text = path.read_text()
    long = "x" * 200_000_000
    path.write_text(text.replace('"schemaVersion": 1', f'"other": "{long}"') if place == "other" else
                    text.replace("gdn_kernel", long, 1))  # fmt: skip
    refused(path, "has an entry of more than 16,777,216 bytes")


def test_a_long_name_in_sqlite_is_cut(tmp_path):
    program = two_steps()
    path = write_nsys(tmp_path / "trace.sqlite", program)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE StringIds SET value = hex(zeroblob(100000000)) WHERE value = 'gdn_kernel'")
    connection.close()
    began = time.process_time()
    trace = read(path)
    assert time.process_time() - began < 20
    assert max(map(len, trace.kernels["name"].cat.categories)) == 10_000


def test_memory_is_what_the_cgroup_leaves():
    assert 0 < limits.available() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# ---- depth ----------------------------------------------------------------------------------------------------------


def test_nested_json(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text('{"traceEvents": ' + "[" * 100_000 + "]" * 100_000 + "}")
    refused(path, "deep.json nests too deep")
    path.write_text('{"traceEvents": [{"ph": ' + '{"a": ' * 100_000)
    refused(path, "nests too deep|not JSON")


def ranges(count, end):
    program = Program()
    for number in range(count):
        program.range(f"range {number}", number, end(number))
    program.launch(count + 10, count + 20, 1)
    program.kernel("kernel", count + 30, count + 50, 1)
    return program


@pytest.mark.parametrize("count", [5_000, 100_000])
@pytest.mark.parametrize("kind", ["nested", "overlapping"])
def test_many_open_ranges(tmp_path, kind, count):
    path = write_nsys(tmp_path / "c.sqlite", ranges(count, lambda n: 3 * count + (n if kind == "overlapping" else -n)))
    refused(path, "has more than 1,000 ranges open at once on a thread")


def test_a_thousand_open_ranges_are_read(tmp_path):
    trace = read(write_nsys(tmp_path / "c.sqlite", ranges(1000, lambda n: 3000 - n)))
    assert trace.ranges["depth"].max() == 1000 and len(range_table(trace)) == 1000


def test_ranges_that_overlap_without_end(tmp_path):
    path = write_nsys(tmp_path / "c.sqlite", ranges(20_000, lambda n: n + 900))
    refused(path, "has ranges that overlap in too many ways")


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was", "put", "says"),
    [
        ('"ts": 3.0', '"ts": 1e999', "OverflowError"),
        ('"ts": 3.0', '"ts": 9e15', "a time is later than 2116"),
        ('"ts": 3.0', '"ts": null', "TypeError"),
        ('"dur": 3.0', '"dur": -3.0', "a kernel ends before it starts"),
        ('"device": 0', '"device": 1180591620717411303424', "OverflowError"),
        ('"correlation": 1}', '"correlation": 99999999999}', "a correlation has more than 32 bits"),
        ('"args": {"device"', '"args": [], "x": {"device"', "TypeError"),
        ('"name": "NVIDIA', '"label": "NVIDIA', "KeyError"),
    ],
)
def test_damaged_json(tmp_path, was, put, says):
    path = kineto_of(tmp_path)
    text = path.read_text()
    assert was in text
    path.write_text(text.replace(was, put))
    refused(path, says)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE CUPTI_ACTIVITY_KIND_RUNTIME SET correlationId = 'x'", "RUNTIME is not a whole number of 64 bits"),
        ("UPDATE NVTX_EVENTS SET start = NULL", "NVTX_EVENTS is not a whole number"),
        ("UPDATE NVTX_EVENTS SET domainId = 'x'", "NVTX_EVENTS is not a whole number"),
        ("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET end = 9223372036854775807", "a time is later than 2116"),
        ("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET end = start - 1", "a kernel ends before it starts"),
        ("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET deviceId = 1e300", "is not a whole number of 64 bits"),
    ],
)
def test_damaged_sqlite(tmp_path, statement, says):
    path = write_nsys(tmp_path / "c.sqlite", two_steps())
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    refused(path, says)


def test_names_that_are_no_text(tmp_path):
    path = write_nsys(tmp_path / "c.sqlite", two_steps())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE NVTX_EVENTS SET text = x'00ff', textId = NULL")
        connection.execute("UPDATE StringIds SET value = CAST(x'66ff1b' AS TEXT) WHERE value = 'gdn_kernel'")
    connection.close()
    trace = read_steps(path)
    assert "f�\\x1b" in set(trace.kernels["name"])
    json.dumps([*trace.kernels["name"], *trace.kernels["part"]], ensure_ascii=False).encode()


def test_half_a_surrogate_pair_is_spelt(tmp_path):
    program = two_steps(other_process=False)
    program.range("half \ud800", 20_000, 20_200)
    trace = read(write_kineto(tmp_path / "c.json", program))
    assert "half \\ud800" in set(table(trace)["path"])


def test_rows_in_a_write_ahead_log_are_not_passed_over(tmp_path):
    path = write_nsys(tmp_path / "c.sqlite", two_steps())
    expected = table(read(path))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET end = end + 1000")
    connection.commit()
    refused(path, "is not finished: c.sqlite-wal next to it holds changes")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert table(read(path))["total_us"].sum() > expected["total_us"].sum() + 5
    connection.close()


def test_an_unfinished_transaction_is_refused(tmp_path):
    path = write_nsys(tmp_path / "c.sqlite", two_steps())
    (tmp_path / "c.sqlite-journal").write_bytes(bytes.fromhex("d9d505f920a163d7") + bytes(504))
    refused(path, "is not finished: c.sqlite-journal")


def test_too_deep_for_python_and_too_large_for_the_machine_are_sentences():
    for error, says in ((MemoryError(), "needs more memory than there is"), (RecursionError(), "nests too deep")):
        with pytest.raises(ValueError, match=f"file {says}"), limits.one_sentence("file"):
            raise error
