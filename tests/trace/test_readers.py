"""Both readers on traces whose numbers are worked out by hand, and on files that are no traces."""

import gzip
import json
import os
import shutil
import sqlite3
import stat

import pytest
import torch
from recorded_traces import (
    MAIN,
    OTHER_PROCESS,
    WORKER,
    Program,
    global_pid,
    kineto_trace,
    two_steps,
    write_kineto,
    write_nsys,
)

from gdn_lab.trace import OUTSIDE, nsight, nvtx_range, range_table, read, summaries, table

TWO_STEPS = [  # path, kernel, count, total, median, min, max in us
    ("step / gdn", "gdn_kernel", 4, 10.0, 2.5, 1.0, 4.0),
    ("step / norm", "norm_kernel", 1, 1.0, 1.0, 1.0, 1.0),
    (OUTSIDE, "other_kernel", 1, 0.7, 0.7, 0.7, 0.7),
    ("step / gdn", "norm_kernel", 1, 0.5, 0.5, 0.5, 0.5),
    ("worker", "other_kernel", 1, 0.3, 0.3, 0.3, 0.3),
    ("step", "Memcpy DtoD", 1, 0.1, 0.1, 0.1, 0.1),
]


@pytest.fixture
def two(tmp_path):
    return write_nsys(tmp_path / "two.sqlite", two_steps())


def rows(frame, *columns):
    return list(frame[list(columns)].itertuples(index=False, name=None))


def check_table(frame, expected):
    assert rows(frame, "path", "kernel", "count") == [row[:3] for row in expected]
    for place, column in enumerate(("total_us", "median_us", "min_us", "max_us"), 3):
        assert frame[column].tolist() == pytest.approx([row[place] for row in expected])
    whole = sum(row[3] for row in expected)
    assert frame["share"].tolist() == pytest.approx([row[3] / whole for row in expected])


def test_nsight_table(two):
    trace = read(two)
    open_range = ("step", "norm_kernel", 1, 0.2, 0.2, 0.2, 0.2)
    check_table(table(trace), [*TWO_STEPS[:5], open_range, TWO_STEPS[5]])
    assert trace.profiler == "Nsight Systems" and trace.gpus == ("NVIDIA H100 80GB HBM3",)
    assert trace.notes == ("ranges that were never closed, taken to last until the trace ends: 1",)


@pytest.mark.parametrize("packed", [False, True])
def test_kineto_table_equals_nsight_table(tmp_path, packed):
    program = two_steps(other_process=False)
    path = write_kineto(tmp_path / "trace.json", program)
    if packed:
        path = tmp_path / "trace.json.gz"
        path.write_bytes(gzip.compress(json.dumps(kineto_trace(program)).encode()))
    trace = read(path)
    check_table(table(trace), TWO_STEPS)
    assert trace.profiler == "Kineto" and trace.gpus == ("NVIDIA H100 80GB HBM3",) and not trace.notes
    other = read(write_nsys(tmp_path / "same.sqlite", program))
    assert table(other).equals(table(trace))
    assert range_table(other).equals(range_table(trace))
    same = [name for name in trace.kernels if name not in ("path", "name", "node")]
    assert other.kernels[same].equals(trace.kernels[same])


def test_copies_are_named_by_their_direction(tmp_path):
    """The numbers are CUPTI's: host to device is 1, device to host 2."""
    program = Program()
    for correlation, name in enumerate(("HtoD", "DtoH", "DtoD", "HtoH", "PtoP"), 1):
        program.launch(1000 * correlation, 1000 * correlation + 10, correlation)
        program.kernel(name, 1000 * correlation + 100, 1000 * correlation + 200, correlation)
    expected = [f"Memcpy {name}" for name in ("HtoD", "DtoH", "DtoD", "HtoH", "PtoP")]
    for path in (write_nsys(tmp_path / "c.sqlite", program), write_kineto(tmp_path / "c.json", program)):
        assert read(path).kernels["name"].astype(str).tolist() == expected
    with sqlite3.connect(tmp_path / "c.sqlite") as connection:
        kinds = connection.execute("SELECT copyKind FROM CUPTI_ACTIVITY_KIND_MEMCPY ORDER BY start").fetchall()
    connection.close()
    assert kinds == [(1,), (2,), (8,), (9,), (10,)]


def test_ranges_of_older_nvtx_are_read(tmp_path):
    program = Program()
    program.range("outer", 0, 1000, style=70)
    program.range("inner", 100, 900, style=71, end_thread=MAIN)
    program.range("mark", 120, 120, style=34)  # no range
    program.launch(200, 300, 1)
    program.kernel("k", 400, 500, 1)
    trace = read(write_nsys(tmp_path / "c.sqlite", program))
    assert trace.kernels["path"].tolist() == ["outer / inner"] and len(trace.ranges) == 2
    assert trace.ranges["style"].astype(str).tolist() == ["PushPop", "StartEnd"]


@pytest.mark.parametrize("launch, category", [("cudaGraphLaunch", "cuda_runtime"), ("cuGraphLaunch", "cuda_driver")])
def test_kernels_of_a_graph_by_either_launch_call(tmp_path, launch, category):
    trace = kineto_trace(two_steps(other_process=False))
    for entry in trace["traceEvents"]:
        if entry["name"] == "cudaGraphLaunch":
            entry |= {"name": launch, "cat": category}
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace))
    kernels = read(path).kernels
    assert kernels[kernels["graph"]]["start_ns"].tolist() == [13_000, 17_100, 17_600]


def test_work_and_calls_without_a_correlation_are_not_joined(tmp_path):
    program = Program()
    program.range("step", 0, 1000)
    program.launch(100, 200, None)
    program.kernel("k", 300, 400, None)
    trace = read(write_nsys(tmp_path / "c.sqlite", program))
    assert trace.kernels["path"].tolist() == [OUTSIDE] and trace.kernels["launch_start_ns"].tolist() == [-1]


def test_process_ids_of_24_bits(tmp_path):
    program, process = Program(), 4_194_303  # the largest of Linux
    program.range("step", 0, 1000, (process, process))
    program.launch(100, 200, 1, (process, process))
    program.kernel("k", 300, 400, 1, process)
    trace = read(write_nsys(tmp_path / "c.sqlite", program))
    assert trace.kernels[["process", "thread"]].values.tolist() == [[process, process]]
    assert trace.ranges[["process", "thread"]].values.tolist() == [[process, process]]


def test_open_ranges_of_older_exports(two):
    """They have a default where newer ones have NULL."""
    expected = read(two)
    with sqlite3.connect(two) as connection:
        connection.execute("UPDATE NVTX_EVENTS SET end = 0 WHERE end IS NULL")
        connection.execute("UPDATE NVTX_EVENTS SET text = '' WHERE text IS NULL")
        connection.execute("UPDATE NVTX_EVENTS SET endGlobalTid = 0 WHERE endGlobalTid IS NULL")
        connection.execute("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET graphNodeId = 0 WHERE graphNodeId IS NULL")
    connection.close()
    assert read(two).ranges.equals(expected.ranges) and read(two).kernels.equals(expected.kernels)


def test_timeline(two):
    kernels = read(two).kernels
    first = kernels[kernels["device"] == 0]
    assert first["gap_ns"].tolist() == [0, 500, 1000, 0, 2400, 100, 0, 2400]
    for _, device in kernels.groupby("device"):
        assert device["gap_ns"].sum() + device["busy_ns"].sum() == device["end_ns"].max() - device["start_ns"].min()
    graph = kernels[kernels["graph"]]
    assert rows(graph, "path", "start_ns", "launch_start_ns", "launch_end_ns", "thread", "process") == [
        ("step / gdn", start, 12_100, 12_300, 101, 100) for start in (13_000, 17_100, 17_600)
    ]


def test_overlapping_kernels_are_busy_once(tmp_path):
    program = Program()
    for start, end, stream in ((1000, 5000, 7), (2000, 3000, 8), (4000, 6000, 8), (7000, 7500, 7)):
        program.launch(start - 100, start - 50, start)
        program.kernel("k", start, end, start, stream=stream)
    kernels = read(write_nsys(tmp_path / "c.sqlite", program)).kernels
    assert kernels["busy_ns"].tolist() == [4000, 0, 1000, 500]
    assert kernels["gap_ns"].tolist() == [0, 0, 0, 1000]


def test_range_table(two):
    frame = range_table(read(two))
    assert rows(frame, "path", "depth", "instances", "kernels") == [
        ("worker", 1, 1, 1), ("step", 1, 3, 8), ("step / gdn", 2, 2, 5), ("step / norm", 2, 1, 1),
    ]  # fmt: skip
    assert frame["total_us"].tolist() == pytest.approx([0.3, 11.8, 10.5, 1.0])
    assert frame["share"].tolist() == pytest.approx([0.3 / 12.8, 11.8 / 12.8, 10.5 / 12.8, 1.0 / 12.8])
    assert frame["span_us"].tolist() == pytest.approx([0.3, 5.6, 5.55, 1.0])  # of 7.6, 5.6, 0.2; 5.5, 5.6
    assert frame["host_us"].tolist() == pytest.approx([29.0, 9.0, 2.0, 1.0])  # the open one lasts to 30000


def test_same_thread_only(tmp_path):
    program = Program()
    program.range("main", 0, 1000)
    program.range("crosses", 0, 1000, style=60, end_thread=WORKER)
    program.launch(100, 200, 1, WORKER)
    program.kernel("k", 300, 400, 1)
    program.launch(100, 200, 1, OTHER_PROCESS)
    program.kernel("k", 400, 500, 1, OTHER_PROCESS[0])
    trace = read(write_nsys(tmp_path / "c.sqlite", program))
    assert rows(table(trace), "path", "count") == [(OUTSIDE, 2)]
    assert "end on a thread other than" in trace.notes[0]


def test_domains_overlap_and_are_named(tmp_path):
    program = Program()
    program.range("layer", 1000, 3000)
    program.range("allreduce", 2000, 4000, domain=3)  # pushed in another domain, popped after the layer
    program.range("mystery", 5000, 6000, domain=9)
    for correlation, start in enumerate((1500, 2500, 3500, 5500)):
        program.launch(start, start + 10, correlation)
        program.kernel("k", start + 100, start + 200, correlation)
    trace = read(write_nsys(tmp_path / "c.sqlite", program, domains={(100, 3): "NCCL", (200, 3): "other"}))
    assert trace.kernels["path"].tolist() == [
        "layer", "layer / NCCL:allreduce", "NCCL:allreduce", "domain 9:mystery",
    ]  # fmt: skip


def test_a_launch_across_a_boundary_is_not_enclosed(tmp_path):
    program = Program()
    program.range("outer", 0, 1000)
    program.range("ends within", 100, 250, style=60)
    program.range("begins within", 220, 900, style=60)
    program.launch(200, 300, 1)
    program.kernel("k", 400, 500, 1)
    program.range("exact", 600, 700, style=60)
    program.launch(600, 700, 2)
    program.kernel("k", 800, 900, 2)
    trace = read(write_nsys(tmp_path / "c.sqlite", program))
    assert trace.kernels["path"].tolist() == ["outer", "outer / begins within / exact"]


def test_lost_launches_and_whole_graphs_are_said(tmp_path):
    program = Program()
    program.range("step", 0, 1000)
    program.kernel("k", 400, 500, 77)  # launched before the recording began
    program.launch(10, 20, 5)
    path = write_nsys(tmp_path / "c.sqlite", program)
    with sqlite3.connect(path) as connection:
        columns = "start INT, end INT, deviceId INT, graphId INT, correlationId INT, globalPid INT"
        connection.execute(f"CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE ({columns})")
        connection.execute(
            "INSERT INTO CUPTI_ACTIVITY_KIND_GRAPH_TRACE VALUES (600, 900, 0, 1, 5, ?)", (global_pid(MAIN[0]),)
        )
    connection.close()
    trace = read(path)
    assert rows(table(trace), "path", "kernel", "total_us") == [
        ("step", "(CUDA graph as a whole)", 0.3), (OUTSIDE, "k", 0.1),
    ]  # fmt: skip
    assert "--cuda-graph-trace=node" in trace.notes[0] and "kernels without their launch" in trace.notes[1]
    assert summaries.cuda_gpu_kern_sum(trace)["Name"].tolist() == ["k"]


def test_absent_tables_and_columns(tmp_path):
    """Tables are absent when empty; columns that came with later releases may be."""
    path = write_nsys(tmp_path / "c.sqlite", two_steps(other_process=False), text_ids=False)
    with sqlite3.connect(path) as connection:
        for table_name in ("CUPTI_ACTIVITY_KIND_MEMCPY", "TARGET_INFO_GPU", "META_DATA_EXPORT"):
            connection.execute(f"DROP TABLE {table_name}")
        for column in ("textId", "domainId", "endGlobalTid"):
            connection.execute(f"ALTER TABLE NVTX_EVENTS DROP COLUMN {column}")
        for column in ("shortName", "graphNodeId"):
            connection.execute(f"ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL DROP COLUMN {column}")
    connection.close()
    check_table(table(read(path)), TWO_STEPS[:5])
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE NVTX_EVENTS")
        connection.execute("DROP TABLE CUPTI_ACTIVITY_KIND_RUNTIME")
    connection.close()
    trace = read(path)
    assert set(table(trace)["path"]) == {OUTSIDE} and len(trace.enclosing()) == 0
    assert range_table(trace).empty and summaries.nvtx_gpu_proj_sum(trace).empty
    assert summaries.nvtx_kern_sum(trace).empty


def test_nothing_is_written(two, tmp_path):
    before, folder = two.read_bytes(), sorted(os.listdir(tmp_path))
    two.chmod(stat.S_IRUSR)
    read(two)
    assert two.read_bytes() == before and sorted(os.listdir(tmp_path)) == folder


def damaged(path, kind):
    data = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "foreign":
        path.write_text("start,end\n1,2\n")
    elif kind == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "overwritten":
        path.write_bytes(data[:4096] + bytes(len(data) - 4096))
    elif kind == "header only":
        path.write_bytes(data[:40])
    else:
        statements = {
            "other database": "DROP TABLE StringIds",
            "newer schema": "UPDATE META_DATA_EXPORT SET value = '4.0.1'",
            "other columns": "ALTER TABLE CUPTI_ACTIVITY_KIND_RUNTIME RENAME COLUMN globalTid TO threadId",
            "no work": "DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL; DELETE FROM CUPTI_ACTIVITY_KIND_MEMCPY",
        }
        with sqlite3.connect(path) as connection:
            connection.executescript(statements[kind])
        connection.close()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("empty", "is empty"),
        ("foreign", "is not a trace"),
        ("cut short", "is cut short"),
        ("header only", "is cut short"),
        ("overwritten", "is damaged"),
        ("other database", "none of the tables"),
        ("newer schema", "export schema 4.0.1, newer than"),
        ("other columns", r"RUNTIME lacks globalTid \(schema 3.24.1\)"),
        ("no work", "holds no work of a GPU"),
    ],
)
def test_refusals_are_one_sentence(two, kind, says):
    damaged(two, kind)
    with pytest.raises(ValueError, match=says) as caught:
        read(two)
    assert str(two) in str(caught.value) and "\n" not in str(caught.value)


def test_absent_files(tmp_path):
    for name in ("a.sqlite", "a.nsys-rep", "a.json"):
        with pytest.raises(FileNotFoundError, match="there is no"):
            read(tmp_path / name)


def test_report_is_exported_by_nsys(two, tmp_path, monkeypatch):
    report, tools = tmp_path / "run 1.nsys-rep", tmp_path / "bin"
    report.write_bytes(b"\x8f\x01 random bytes")
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(ValueError, match="is no report of Nsight Systems: expected a file that begins with 'NVIDIA"):
        read(report)
    report.write_bytes(b"NVIDIA Tegra Profiler Report 2025@5@1@121-255136380782v0.\n\x0bLocal (CLI)")
    with pytest.raises(ValueError, match="there is no nsys here; where there is one, run: nsys export"):
        read(report)
    nsys = tools / "nsys"
    copy = shutil.which("cp", path="/usr/bin:/bin")
    nsys.write_text(f'#!/bin/sh\n[ "$1 $2 $3 $6" = "export --type sqlite --output" ] && exec {copy} "{two}" "$7"\n')
    nsys.chmod(0o755)
    assert table(read(report)).equals(table(read(two)))
    nsys.write_text("#!/bin/sh\necho 'wrong version' >&2; exit 1\n")
    with pytest.raises(ValueError, match="nsys gave as reason: wrong version"):
        read(report)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON or was cut short"),
        ('{"traceEvents": [{"ph"', "not JSON or was cut short"),
        ("[1, 2]", "has no list traceEvents"),
        ('{"traceEvents": [{"ph": "X", "cat": "kernel"}]}', "not a profiler's trace .KeyError: 'args'"),
        ('{"traceEvents": [3]}', "not a trace that torch.profiler exported"),
        ('{"traceEvents": []}', "holds no work of a GPU"),
    ],
)
def test_traces_that_are_none(tmp_path, text, says):
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read(path)
    path.with_suffix(".json.gz").write_bytes(gzip.compress(text.encode())[:-3])
    with pytest.raises(ValueError, match="cut short"):
        read(path.with_suffix(".json.gz"))


def test_nvtx_range_reaches_kineto_only_while_it_records(tmp_path):
    with nvtx_range("before"):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            with nvtx_range("step"), nvtx_range("gdn"):
                torch.ones(2) + 1
            with pytest.raises(KeyError), nvtx_range("fails"):
                raise KeyError
        with nvtx_range("after"):
            pass
    trace = tmp_path / "trace.json"
    profile.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    seen = {event["name"]: event for event in events if event.get("cat") == "user_annotation"}
    assert set(seen) == {"step", "gdn", "fails"}
    assert seen["step"]["ts"] <= seen["gdn"]["ts"] and seen["gdn"]["dur"] <= seen["step"]["dur"]


def test_profile_without_gpu_work_or_exported_before(tmp_path):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ones(2) + 1
    with pytest.raises(ValueError, match="the profile holds no work of a GPU"):
        read(profile)
    with pytest.raises(ValueError, match="cannot be exported"):
        read(profile)


def test_paths_with_special_characters(two, tmp_path):
    odd = tmp_path / "a ? # % b.sqlite"
    shutil.copy(two, odd)
    assert table(nsight.read(str(odd))).equals(table(nsight.read(two)))
