"""Sentences of notebook 04 about traces with odd times."""

from recorded_traces import eager_and_graph, write_nsys

from gdn_lab.studies.nsight_systems import sentences
from gdn_lab.trace.steps import read_steps


def test_kernels_that_take_no_time_have_a_share_of_none(tmp_path):
    program = eager_and_graph(replays=0)
    program.kernels = [(name, start, start, *rest) for name, start, end, *rest in program.kernels]
    text = " ".join(sentences.answers(read_steps(write_nsys(tmp_path / "c.sqlite", program))))
    assert "0.0 µs (0%)" in text and "nan" not in text
