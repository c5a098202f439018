"""The summaries of recorded traces are exactly what nsys stats wrote of them, and any difference shows."""

import re

import pytest
from recorded_traces import eager_and_graph, two_steps, write_nsys

from gdn_lab.report import recorded as data
from gdn_lab.trace import crosscheck, read

MEASURED = data.DATA / "measured"
TRACES = sorted(path.parent for path in MEASURED.glob("*/*/capture.sqlite"))


def test_recorded_traces_equal_nsys_stats():
    """Every column of every row of the three reports; a trace and its reports are there together, and small."""
    reported = {path.parent for report in crosscheck.REPORTS for path in MEASURED.glob(f"*/*/{report}.csv")}
    assert sorted(reported) == TRACES
    for folder in TRACES:
        assert (folder / "capture.sqlite").stat().st_size < 2 << 20
        assert crosscheck.differences(read(folder / "capture.sqlite"), folder, most=100) == []


@pytest.fixture
def reported(tmp_path):
    trace = read(write_nsys(tmp_path / "c.sqlite", two_steps()))
    for report, (summary, _) in crosscheck.REPORTS.items():
        summary(trace).sample(frac=1, random_state=1).to_csv(tmp_path / f"{report}.csv", index=False)
    return trace


def test_equal_whatever_the_order(reported, tmp_path):
    assert crosscheck.differences(reported, tmp_path) == []


@pytest.mark.parametrize(
    ("report", "before", "after", "says"),
    [
        ("cuda_gpu_kern_sum", "10000", "10001", "Total Time .ns. of ..gdn_kernel.,. is 10000, expected 10001"),
        ("cuda_gpu_kern_sum", "StdDev (ns)", "Std (ns)", "columns are Time"),
        ("nvtx_kern_sum", ":norm,", ":other,", "has no row .*:other"),
        ("nvtx_kern_sum", ",100,101,", ",100,103,", "that nsys has not"),
        ("nvtx_gpu_proj_sum", "1414.2", "", ""),
    ],
)
def test_a_difference_is_said(reported, tmp_path, report, before, after, says):
    path = tmp_path / f"{report}.csv"
    text = path.read_text()
    if says:
        assert before in text
        path.write_text(text.replace(before, after, 1))
        assert any(re.search(says, sentence) for sentence in crosscheck.differences(reported, tmp_path))
    path.write_text("".join(text.splitlines(keepends=True)[:-1]))
    assert any("rows, expected" in sentence for sentence in crosscheck.differences(reported, tmp_path, most=100))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{report}.csv; write it with nsys stats"):
        crosscheck.differences(reported, tmp_path)


def test_graphs_are_read_as_nsys_has_them(tmp_path):
    """Written by hand, from the launches: a graph's kernels belong to the range around its launch alone."""
    trace = read(write_nsys(tmp_path / "c.sqlite", eager_and_graph(replays=1, layers=1, eager=1)))
    kernels = crosscheck.REPORTS["nvtx_kern_sum"][0](trace).set_index(["NVTX Range", "Kernel Name"])["Kern Inst"]
    assert kernels[":graph", "gdn_kernel"] == 1 and kernels[":gdn", "gdn_kernel"] == 1
