"""Notebook 04: the parts and gaps of the step shown add up to it, of the stored trace and of any made-up one."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded_traces import Program, write_nsys

from gdn_lab.report.recorded import DATA
from gdn_lab.studies.nsight_systems import analysis, sentences
from gdn_lab.trace.steps import MODES, read_steps

STORED = DATA / "measured" / "h100" / "04_nsight_systems" / "capture.sqlite"


def check_sums(trace):
    """Every table, and the sentence of each mode, is of one step, to whose length its parts and gaps add up."""
    steps, parts = analysis.step_table(trace), analysis.part_table(trace)
    for mode, line in zip(trace.modes, steps.to_dict("records"), strict=True):
        assert line["kernels µs"] + line["gaps µs"] == pytest.approx(line["step µs"], abs=1e-6)
        assert line["gaps %"] == pytest.approx(100 * line["gaps µs"] / line["step µs"])
        assert analysis.parts_of_step(trace, mode).sum() == pytest.approx(line["step µs"], abs=1e-6)
        column = parts[f"{mode}: µs"]
        assert column.iloc[:-1].sum() == pytest.approx(column.iloc[-1]) == pytest.approx(line["step µs"])
        assert parts[f"{mode}: %"].iloc[:-1].sum() == pytest.approx(100)
        assert parts[f"{mode}: kernels"].iloc[-1] == line["kernels"]
        text = next(each for each in sentences.answers(trace) if each.startswith(f"A step {MODES[mode]} takes"))
        assert f"takes {line['step µs']:,.1f} µs; kernels run for {line['kernels µs']:,.1f} µs" in text
        if line["gaps"] > 1:
            assert (
                f"{line['gaps']} gaps, {line['gaps µs']:,.1f} µs together, the longest {line['longest gap µs']:,.1f}"
                in text
            )
    first = steps.iloc[0]
    where = analysis.gap_table(trace, most=10**6)
    assert where["gaps"].sum() == first["gaps"] and where["µs in the step"].sum() == pytest.approx(first["gaps µs"])
    kernels = analysis.kernel_table(trace, most=10**6)
    assert kernels["kernels"].sum() == first["kernels"] and kernels["% of kernels"].sum() == pytest.approx(100)


@pytest.mark.parametrize("step_range", ["", "eager", "gdn"])
def test_the_stored_trace_adds_up(step_range):
    check_sums(read_steps(STORED, step_range))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 900), st.integers(1, 900)), min_size=1, max_size=6),
        min_size=1,
        max_size=6,
    )
)
def test_any_trace_adds_up(tmp_path, steps):
    """Steps of kernels of parts a, b, c: (part, ns after the one before it began, ns it runs), overlapping or not."""
    program, call = Program(), 0
    for number, kernels in enumerate(steps):
        begin = start = 100_000 * number
        program.range("decode step", begin, begin + 50_000)
        for place, (part, after, runs) in enumerate(kernels):
            call, start = call + 1, start + after
            program.range(part, begin + 100 * place + 10, begin + 100 * place + 90)
            program.launch(begin + 100 * place + 20, begin + 100 * place + 30, call)
            program.kernel(f"{part}_kernel", start + 1000, start + 1000 + runs, call)
    path = tmp_path / "c.sqlite"
    path.unlink(missing_ok=True)
    check_sums(read_steps(write_nsys(path, program)))
