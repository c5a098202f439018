"""The three summaries against numbers worked out by hand, and the nesting of ranges against its definition."""

import sqlite3

import numpy
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_traces import Program, two_steps, write_nsys

from gdn_lab.trace import read, summaries
from gdn_lab.trace.range_stacks import attribute
from gdn_lab.trace.summaries import cuda_gpu_kern_sum, nvtx_gpu_proj_sum, nvtx_kern_sum


@pytest.fixture
def two(tmp_path):
    return read(write_nsys(tmp_path / "two.sqlite", two_steps()))


def rows(frame):
    return [tuple(row) for row in frame.itertuples(index=False, name=None)]


def test_cuda_gpu_kern_sum(two):
    frame = cuda_gpu_kern_sum(two)
    assert list(frame.columns) == [
        "Time (%)", "Total Time (ns)", "Instances", "Avg (ns)", "Med (ns)", "Min (ns)", "Max (ns)", "StdDev (ns)",
        "Name",
    ]  # fmt: skip
    assert rows(frame) == [
        (78.7, 10_000, 4, 2500.0, 2500.0, 1000, 4000, 1291.0, "gdn_kernel"),  # 3000, 2000, 4000, 1000
        (13.4, 1700, 3, 566.7, 500.0, 200, 1000, 404.1, "norm_kernel"),  # 1000, 500, 200
        (7.9, 1000, 2, 500.0, 500.0, 300, 700, 282.8, "other_kernel"),  # 700, 300
    ]


def test_nvtx_kern_sum(two):
    frame = nvtx_kern_sum(two)
    assert list(frame.columns) == [
        "NVTX Range", "Style", "PID", "TID", "NVTX Inst", "Kern Inst", "Total Time (ns)", "Avg (ns)", "Med (ns)",
        "Min (ns)", "Max (ns)", "StdDev (ns)", "Kernel Name",
    ]  # fmt: skip
    main, worker, other = ("PushPop", 100, 101), ("StartEnd", 100, 102), ("PushPop", 200, 201)
    assert rows(frame) == [
        (":gdn", *main, 2, 4, 10_000, 2500.0, 2500.0, 1000, 4000, 1291.0, "gdn_kernel"),
        (":step", *main, 2, 4, 10_000, 2500.0, 2500.0, 1000, 4000, 1291.0, "gdn_kernel"),
        (":step", *main, 2, 2, 1500, 750.0, 750.0, 500, 1000, 353.6, "norm_kernel"),
        (":norm", *main, 1, 1, 1000, 1000.0, 1000.0, 1000, 1000, 0.0, "norm_kernel"),
        ("", "", 100, 101, 0, 1, 700, 700.0, 700.0, 700, 700, 0.0, "other_kernel"),  # outside any range
        (":gdn", *main, 1, 1, 500, 500.0, 500.0, 500, 500, 0.0, "norm_kernel"),
        (":worker", *worker, 1, 1, 300, 300.0, 300.0, 300, 300, 0.0, "other_kernel"),
        (":step", *other, 1, 1, 200, 200.0, 200.0, 200, 200, 0.0, "norm_kernel"),  # never closed
    ]


def test_nvtx_gpu_proj_sum(two):
    frame = nvtx_gpu_proj_sum(two)
    assert list(frame.columns) == [
        "Range", "Style", "Total Proj Time (ns)", "Total Range Time (ns)", "Range Instances", "Proj Avg (ns)",
        "Proj Med (ns)", "Proj Min (ns)", "Proj Max (ns)", "Proj StdDev (ns)", "Total GPU Ops", "Avg GPU Ops",
        "Avg Range Lvl", "Avg Num Child",
    ]  # fmt: skip
    assert rows(frame) == [
        # 3000…10600 with the copy, 13000…18600, and 2500…2700 in the one that lasts from 2000 to 30000, the last end;
        # four calls, a graph's and one; two, one and no ranges inside
        (":step", "PushPop", 13_400, 45_000, 3, 4466.7, 5600.0, 200, 7600, 3828.0, 6, 2.0, 0.0, 1.0),
        # 3000…8500 and 13000…18600; two calls, and a graph's
        (":gdn", "PushPop", 11_100, 4000, 2, 5550.0, 5550.0, 5500, 5600, 70.7, 3, 1.5, 1.0, 0.0),
        (":norm", "PushPop", 1000, 1000, 1, 1000.0, 1000.0, 1000, 1000, 0.0, 1, 1.0, 1.0, 0.0),
        (":worker", "StartEnd", 300, 29_000, 1, 300.0, 300.0, 300, 300, 0.0, 1, 1.0, 0.0, 0.0),
    ]


def test_children_have_work_and_levels_count_every_style(tmp_path):
    program = Program()
    for name, start, end in (("step", 0, 1000), ("idle", 10, 100), ("busy", 200, 300), ("outer", 150, 400)):
        program.range(name, start, end, style=60 if name == "outer" else 59)
    program.launch(210, 220, 1)
    program.kernel("k", 500, 600, 1)
    frame = nvtx_gpu_proj_sum(read(write_nsys(tmp_path / "c.sqlite", program)))
    assert list(frame[["Range", "Style", "Avg Range Lvl", "Avg Num Child"]].itertuples(index=False, name=None)) == [
        (":busy", "PushPop", 2.0, 0.0), (":outer", "StartEnd", 1.0, 1.0), (":step", "PushPop", 0.0, 1.0),
    ]  # fmt: skip


def test_a_kernel_without_its_launch_has_no_thread(tmp_path):
    program = Program()
    program.range("step", 0, 1000)
    program.launch(10, 20, 1)
    program.kernel("k", 100, 200, 1)
    program.kernel("k", 300, 450, 77)
    frame = nvtx_kern_sum(read(write_nsys(tmp_path / "c.sqlite", program)))
    assert frame["NVTX Range"].tolist() == ["", ":step"] and frame["PID"].isna().tolist() == [True, False]
    assert frame["Total Time (ns)"].tolist() == [150, 100]


def test_rounding_is_that_of_sqlite():
    values = [n / 8 for n in range(40)] + [2500.05, 1e9 + 0.35, 0.0, 1234567.849999]
    with sqlite3.connect(":memory:") as connection:
        expected = [connection.execute("SELECT round(?, 1)", (value,)).fetchone()[0] for value in values]
    assert summaries._rounded(pandas.Series(values)).tolist() == expected


intervals = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 8), st.integers(1, 2)).map(lambda x: (x[0], x[0] + x[1], x[2])),
    max_size=12,
)


@given(intervals, intervals)
def test_enclosing_is_what_it_says(ranges, launches):
    """Start, end and thread at random, overlapping at will: what is found is what encloses, outermost first."""
    start, end, thread = numpy.array(ranges, numpy.int64).reshape(-1, 3).T
    launch_start, launch_end, launch_thread = numpy.array(launches, numpy.int64).reshape(-1, 3).T
    names = numpy.arange(len(ranges))
    stacks, nodes, own_nodes = attribute(start, end, thread, names, launch_start, launch_end, launch_thread)
    for (begins, ends, on), node in zip(launches, nodes.tolist(), strict=True):
        encloses = [row for row, (a, b, t) in enumerate(ranges) if t == on and a <= begins and ends <= b]
        found = stacks.rows(node)[::-1]
        assert sorted(found) == encloses
        assert [ranges[row][0] for row in found] == sorted(ranges[row][0] for row in found)
        below, name = stacks.paths[stacks.path[node]] if node >= 0 else (-1, -1)
        assert (below < 0) == (len(found) < 2) and name == (found[-1] if found else -1)
    assert [stacks.range[node] for node in own_nodes.tolist()] == names.tolist()
