"""Kernels of CUDA graphs get the ranges open at graph capture, or by position those of an eager run."""

import sqlite3

import pytest
from recorded_traces import OTHER_PROCESS, Program, eager_and_graph, write_kineto, write_nsys

from gdn_lab.trace import graphs, range_table, read, summaries, table
from gdn_lab.trace.scrubber import scrub

SUMMARIES = (summaries.cuda_gpu_kern_sum, summaries.nvtx_kern_sum, summaries.nvtx_gpu_proj_sum)


@pytest.fixture
def recorded(tmp_path):
    """With the making of the nodes."""
    return write_nsys(tmp_path / "recorded.sqlite", eager_and_graph())


def rows(frame, *columns):
    return list(frame[list(columns)].itertuples(index=False, name=None))


def check_parts(trace):
    """Three replays of two steps each, and two eager runs of two steps."""
    frame = range_table(trace).set_index("path")
    for part, kernels, us in (("norm", 1, 2.0), ("gdn", 2, 5.0), ("mlp", 1, 3.0)):
        graph, eager = (frame.loc[f"{way} / decode step / {part}"] for way in ("graph", "eager"))
        assert (graph.instances, graph.kernels, eager.instances, eager.kernels) == (6, 6 * kernels, 4, 4 * kernels)
        assert graph.total_us == pytest.approx(6 * us) and eager.total_us == pytest.approx(4 * us)
    gdn = frame.loc["graph / decode step / gdn"]
    assert gdn.span_us == pytest.approx(6.0) and gdn.depth == 3 and gdn.host_us != gdn.host_us
    step = frame.loc["graph / decode step"]
    assert step.instances == 6 and step.kernels == 24 and step.span_us == pytest.approx(13.0)  # 10 us and three gaps
    assert frame.loc["graph"].instances == 3 and frame.loc["graph"].kernels == 24
    by_kernel = {row[:2]: row[2] for row in rows(table(trace), "path", "kernel", "count")}
    assert by_kernel["graph / decode step / gdn", "copy_kernel"] == 6
    assert not any(path == "graph" for path, _ in by_kernel)


def test_unfolded(recorded):
    trace = read(recorded)
    kernels = trace.kernels[trace.kernels["graph"]]
    assert set(kernels["path"]) == {"graph"}
    assert kernels["captured_path"].tolist()[:4] == [f"decode step / {part}" for part in ("norm", "gdn", "gdn", "mlp")]
    assert set(trace.kernels[~trace.kernels["graph"]]["captured_path"]) == {""}
    assert graphs.has_graph_capture(trace)
    check_parts(graphs.unfolded(trace))


@pytest.mark.parametrize("write", [write_nsys, write_kineto])
def test_by_position(tmp_path, write):
    trace = read(write(tmp_path / f"c.{'sqlite' if write is write_nsys else 'json'}", eager_and_graph(nodes=False)))
    assert not graphs.has_graph_capture(trace) and graphs.unfolded(trace) is trace
    check_parts(graphs.by_position(trace, "eager", "graph"))


def test_a_graph_of_several_steps_by_one_eager_step(tmp_path):
    trace = read(write_kineto(tmp_path / "c.json", eager_and_graph(nodes=False)))
    step = graphs.by_position(trace, "eager / decode step", "graph")
    frame = range_table(step).set_index("path")
    assert frame.loc["graph / gdn"].instances == 6 and frame.loc["graph / gdn"].kernels == 12


def test_disagreement_and_absence_are_sentences(tmp_path):
    program = eager_and_graph(nodes=False)
    name, *rest = program.kernels[-1]
    program.kernels[-1] = ("another_kernel", *rest)
    trace = read(write_kineto(tmp_path / "c.json", program))
    with pytest.raises(ValueError, match="kernel 8 of replay 3 is another_kernel, but the eager run has mm_kernel"):
        graphs.by_position(trace, "eager", "graph")
    for eager, graph in (("eager", "replay"), ("nothing", "graph")):
        with pytest.raises(ValueError, match="no range '(replay|nothing)' has work of a GPU"):
            graphs.by_position(trace, eager, graph)


def test_summaries_do_not_see_what_was_made(recorded, tmp_path):
    trace = read(recorded)
    for summary in SUMMARIES:
        assert summary(graphs.unfolded(trace)).equals(summary(trace))
    assert read(scrub(recorded, tmp_path / "copy.sqlite")).kernels.equals(trace.kernels)


def test_gpu_operations_of_a_graph_are_one_call(recorded):
    frame = summaries.nvtx_gpu_proj_sum(read(recorded)).set_index("Range")
    assert frame.loc[":graph", "Total GPU Ops"] == 3 and frame.loc[":eager", "Total GPU Ops"] == 16


def test_ranges_around_capture_and_launch_count_once(tmp_path):
    program = Program()
    program.range("model", 0, 10_000)
    program.range("capture", 100, 1000)
    program.node(200, 210, 1)
    program.node(300, 310, 2, original=1)
    program.node(400, 410, 3, original=2)  # instantiated from an instantiated one
    program.range("replay", 2000, 3000)
    program.launch(2100, 2200, 1)
    program.kernel("k", 2500, 2600, 1, node=3)
    trace = graphs.unfolded(read(write_nsys(tmp_path / "c.sqlite", program)))
    assert trace.kernels["path"].tolist() == ["model / replay / capture"]
    made = trace.ranges.iloc[-1]
    assert (made["style"], made["start_ns"], made["end_ns"], made["depth"]) == ("Captured", 2100, 2100, 3)


def test_kernels_whose_graph_capture_is_not_recorded_stay(tmp_path):
    """A node whose making was not recorded, one of another process, and one of another thread."""
    program = Program()
    program.range("capture", 0, 1000)
    program.range("replay", 2000, 3000)
    program.node(100, 110, 11, original=1)  # instantiated here, captured before the recording
    program.node(120, 130, 2)
    program.node(140, 150, 3, thread=(100, 102))
    program.launch(2100, 2200, 1)
    program.launch(2100, 2200, 1, OTHER_PROCESS)
    program.kernel("k", 2500, 2600, 1, node=11)
    program.kernel("k", 2600, 2700, 1, node=3)
    program.kernel("k", 2700, 2800, 1, OTHER_PROCESS[0], node=2)
    path = write_nsys(tmp_path / "c.sqlite", program)
    assert not graphs.has_graph_capture(read(path))
    with sqlite3.connect(path) as connection:  # an older release: which nodes are copies is not said
        connection.execute("ALTER TABLE CUDA_GRAPH_NODE_EVENTS DROP COLUMN originalGraphNodeId")
        connection.execute("UPDATE CUDA_GRAPH_NODE_EVENTS SET graphNodeId = 11 WHERE graphNodeId = 2")
    connection.close()
    assert not graphs.has_graph_capture(read(path))
