"""Steps, tables, sentences and figures of notebook 04, from made-up traces whose parts and gaps are known."""

import pytest
from matplotlib.figure import Figure
from recorded_traces import MAIN, Program, eager_and_graph, two_steps, write_kineto, write_nsys

from gdn_lab.report import recorded
from gdn_lab.studies.nsight_systems import analysis, figures, sentences
from gdn_lab.studies.nsight_systems.find_trace import find_trace, origin, traced
from gdn_lab.trace.choose_steps import COMMUNICATION, LAUNCH, PERIOD, WHOLE
from gdn_lab.trace.ranges import WARM_UP
from gdn_lab.trace.steps import NO_TRACE, REST, read_steps, short_name

STORED = recorded.DATA / "measured" / "h100" / "04_nsight_systems" / "capture.sqlite"
FIGURES = (figures.timeline, figures.gap_sizes, figures.where_time_goes)


@pytest.fixture
def both(tmp_path):
    """The same program as Nsight Systems and as Kineto record it."""
    nsight = read_steps(write_nsys(tmp_path / "n.sqlite", eager_and_graph()))
    return nsight, read_steps(write_kineto(tmp_path / "k.json", eager_and_graph(nodes=False)))


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def test_steps_and_their_parts(both):
    for trace in both:
        assert trace.step == "decode step" and trace.modes == ["graph", "eager"] and not trace.notes
        table = analysis.step_table(trace)
        assert table["steps"].tolist() == [6, 4] and table["kernels"].tolist() == [4, 4]
        assert table["step µs"].tolist() == pytest.approx([13.0, 25.0])
        assert table["kernels µs"].tolist() == pytest.approx([10.0, 10.0])
        assert table["gaps %"].tolist() == pytest.approx([100 * 3 / 13, 60.0])
        assert table["launching on the CPU µs"][0] == pytest.approx(0.15)  # 0.3 us for a graph of two steps
        parts = analysis.part_table(trace)
        assert parts["part"].tolist() == ["norm", "gdn", "mlp", "gaps", "the whole step"]
        assert parts["graph: µs"].tolist() == pytest.approx([2.0, 5.0, 3.0, 3.0, 13.0])
        assert parts["eager: µs"].tolist() == pytest.approx([2.0, 5.0, 3.0, 15.0, 25.0])
        gaps = analysis.gap_table(trace)
        assert list(zip(gaps["after"], gaps["before"], strict=True)) == [
            ("norm", "gdn"),
            ("gdn", "gdn"),
            ("gdn", "mlp"),
        ]
        assert gaps["µs in the step"].tolist() == pytest.approx([1.0] * 3)
        kernels = analysis.kernel_table(trace)
        assert kernels["kernel"].tolist() == ["gdn_kernel", "mm_kernel", "norm_kernel", "copy_kernel"]
        assert analysis.eager_over_replayed(trace) == pytest.approx(25 / 13)


def test_parts_and_gaps_add_up_where_kernels_overlap(tmp_path):
    program = Program()
    program.range("decode step", 0, 1000)
    for part, start, end, at in (
        ("a", 100, 1100, 10),
        ("b", 900, 2000, 110),
        ("c", 1500, 1800, 210),
        ("a", 2500, 3000, 310),
    ):
        program.range(part, at, at + 90)
        program.launch(at + 5, at + 10, at)
        program.kernel(f"{part}_kernel", start, end, at)
    trace = read_steps(write_nsys(tmp_path / "c.sqlite", program))
    times = analysis.part_times(trace, "eager")
    assert times.to_dict() == pytest.approx({"a": 1.5, "b": 0.9, "c": 0.0, "gaps": 0.5})
    assert times.sum() == pytest.approx(trace.steps["step_us"][0])


def test_titles_name_what_a_trace_is_of(both, tmp_path):
    trace = both[0]
    known = {"model": "qwen3.5-397b-a17b", "tp": 8, "batch": 256, "gpu": "H100"}
    assert origin(trace, known) == "recorded: H100, qwen3.5-397b-a17b, tp 8, B = 256"
    assert traced(STORED) is None, "the stored run names no model, so titles must not"
    assert origin(trace, traced(tmp_path / "n.sqlite")) == "recorded: NVIDIA H100 80GB HBM3, n.sqlite"
    assert origin(read_steps(None), traced(None)) == ""
    for figure in FIGURES:
        assert title(figure(trace, origin(trace, None))).endswith("(recorded: NVIDIA H100 80GB HBM3, n.sqlite)")


def test_agreement(both):
    table = analysis.agreement(*both, least_us=2.5)
    assert table["part"].tolist() == ["gdn", "mlp"] and table["difference %"].tolist() == pytest.approx([0, 0])
    assert analysis.agreement(both[0], NO_TRACE).empty


def test_parts_of_one_trace_alone(tmp_path, both):
    """A part that only one trace has is listed without a difference, and makes no row."""
    program = eager_and_graph()
    program.ranges = [("ffn" if name == "mlp" else name, *rest) for name, *rest in program.ranges]
    (tmp_path / "other").mkdir()
    other = read_steps(write_nsys(tmp_path / "other" / "n.sqlite", program))
    table = analysis.agreement(both[0], other, least_us=2.5)
    assert table["part"].tolist() == ["gdn", "mlp", "ffn"] and table["difference %"].isna().tolist() == [
        False,
        True,
        True,
    ]
    assert len(table.columns) == 4  # two files of one name are two columns
    assert [row["part"] for row in analysis.agreement_rows(both[0], other)] == ["gdn"]
    assert sentences.comparison(both[0], other) == "One replayed step, parts of at least 5 µs in either trace"
    assert sentences.comparison(both[0], other, least_us=2.5).endswith("; mlp only in n.sqlite; ffn only in n.sqlite")


def test_a_part_that_is_rare_has_a_median_of_zero(tmp_path):
    program = Program()
    for number in range(3):
        begin, calls = 10_000 * number, 10 * number
        program.range("decode step", begin, begin + 1000)
        kernels = ("a", "b", "rare") if number == 1 else ("a", "b") if number else ("a",)
        for place, kernel in enumerate(kernels):
            program.range(kernel, begin + 100 * place + 10, begin + 100 * place + 90)
            program.launch(begin + 100 * place + 20, begin + 100 * place + 30, calls + place)
            program.kernel(
                f"{kernel}_kernel", begin + 2000 * (place + 1), begin + 2000 * (place + 1) + 1000, calls + place
            )
    trace = read_steps(write_nsys(tmp_path / "c.sqlite", program))
    assert analysis.part_times(trace, "eager").to_dict() == {"a": 1.0, "b": 1.0, "rare": 0.0, "gaps": 1.0}
    parts = analysis.part_table(trace, most=1)
    assert parts["part"].tolist() == ["a", "(other parts)", "gaps", "the whole step"]
    assert parts["eager: µs"].tolist() == [1.0, 1.0, 1.0, 3.0]
    program.kernels = program.kernels[:1]
    alone = read_steps(write_nsys(tmp_path / "one.sqlite", program))
    assert analysis.gap_table(alone).empty and sentences.answers(alone)
    assert all(isinstance(figure(alone), Figure) for figure in FIGURES)


def test_two_traces_without_a_mode_in_common(tmp_path):
    eager = read_steps(write_nsys(tmp_path / "e.sqlite", eager_and_graph(replays=0)))
    graph = read_steps(write_nsys(tmp_path / "g.sqlite", eager_and_graph(eager=0)))
    assert (eager.modes, graph.modes) == (["eager"], ["graph"])
    assert analysis.agreement(eager, graph).empty and analysis.agreement_rows(eager, graph) == []
    assert sentences.comparison(eager, graph) == (
        "Not compared: e.sqlite has steps launched kernel by kernel and g.sqlite has steps replayed as a CUDA graph."
    )
    for trace in (eager, graph):
        assert analysis.eager_over_replayed(trace) is None and len(sentences.answers(trace)) == 3
        assert all(isinstance(figure(trace), Figure) for figure in FIGURES)


def test_the_warm_up_does_not_count(tmp_path):
    program = eager_and_graph()
    before = read_steps(write_nsys(tmp_path / "a.sqlite", program)).steps
    end = max(kernel[2] for kernel in program.kernels) + 10_000
    program.range(WARM_UP, end, end + 9000)
    program.range("decode step", end + 10, end + 8000)
    program.launch(end + 20, end + 30, 999)
    program.kernel("slow_kernel", end + 100, end + 900_000, 999)
    assert len(read_steps(write_nsys(tmp_path / "b.sqlite", program)).steps) == len(before)


# ---- traces of other programs ---------------------------------------------------------------------------------------


def server(layers=3, steps=4):
    """A server's steps: ranges of other names, a part with kernels of its own and two inside."""
    program, time, call = Program(), 0, 0
    for _ in range(steps):
        begin = time
        for _ in range(layers):
            program.range("attention", time + 10, time + 2000)
            for kernel in ("flash<128>", "void ns::rope<float>(float*)"):
                call += 1
                program.launch(time + 20, time + 30, call)
                program.kernel(kernel, time + 100, time + 700, call)
                time += 1000
        call += 1
        program.launch(time + 20, time + 30, call)
        program.kernel("sample", time + 100, time + 200, call)
        time += 1000
        program.range("forward", begin, time)
        time += 5000
    return program


def test_the_most_frequent_range_is_a_step_and_another_can_be_named(tmp_path):
    path = write_nsys(tmp_path / "c.sqlite", server())
    trace = read_steps(path)
    assert trace.step == "attention" and len(trace.steps) == 12 and set(trace.kernels["part"]) == {"flash", "rope"}
    trace = read_steps(path, "forward")
    assert len(trace.steps) == 4 and set(trace.kernels["part"]) == {"attention", REST}
    assert all(isinstance(figure(trace), Figure) for figure in FIGURES)
    says = r"has no range 'forwards' with work of a GPU \(step_range\) \(did you mean 'forward'\?\); .*: attention"
    with pytest.raises(ValueError, match=says):
        read_steps(path, "forwards")


@pytest.mark.parametrize("graphs", [True, False])
def test_a_trace_without_ranges(tmp_path, graphs):
    program = eager_and_graph(nodes=False, eager=0) if graphs else server()
    program.ranges.clear()
    trace = read_steps(write_nsys(tmp_path / "c.sqlite", program))
    assert trace.step == (LAUNCH if graphs else PERIOD) and len(trace.steps) == (3 if graphs else 4)
    assert set(trace.kernels["part"]) >= ({"gdn_kernel"} if graphs else {"flash", "rope", "sample"})
    assert len(trace.notes) == 1
    assert all(isinstance(figure(trace), Figure) for figure in FIGURES) and sentences.answers(trace)


def test_a_period_of_the_kernels_is_a_step(tmp_path):
    """Without ranges and graphs: seven kernels that follow each other, from the longest gap on; others are left out."""
    program = server(steps=6)
    program.ranges.clear()
    for call in (900, 901):  # before the first step
        program.launch(-9000 + call, -8999 + call, call)
        program.kernel("ncclDevKernel_AllReduce_Sum", -8990 + call, -8980 + call, call)
    trace = read_steps(write_nsys(tmp_path / "c.sqlite", program))
    assert trace.step == PERIOD and len(trace.steps) == 6 and set(trace.steps["kernels"]) == {7}
    assert "the same 7 kernels follow each other 6 times" in trace.notes[0]
    assert [trace.kernels["name"].iloc[row] for row in (0, 6)] == ["flash<128>", "sample"]
    names = trace.kernels["name"].to_numpy().reshape(6, 7)
    assert (names == names[0]).all()


def test_kernels_that_do_not_repeat_are_one_step(tmp_path):
    program = Program()
    for call in range(40):
        program.launch(1000 * call, 1000 * call + 10, call)
        name = "ncclDevKernel_AllReduce" if call == 7 else f"kernel_{call * call % 17}"
        program.kernel(name, 1000 * call + 100, 1000 * call + 200, call)
    trace = read_steps(write_nsys(tmp_path / "c.sqlite", program))
    assert trace.step == WHOLE and len(trace.steps) == 1
    assert (trace.kernels["part"] == COMMUNICATION).sum() == 1


def test_replayed_and_launched_ranges_are_paired_and_others_are_named(tmp_path):
    program, call = Program(), 0
    for number in range(5):
        for name, offset, graph in (
            ("eager step", 0, False),
            ("graph step", 20_000, True),
            ("sampling", 40_000, False),
        ):
            start = 100_000 * number + offset
            call += 1
            program.range(name, start, start + 9000)
            program.launch(start + 10, start + 20, call)
            kernels = 2 if name == "sampling" else 4
            for kernel in range(kernels):
                at = start + 1000 * kernel + 100
                program.kernel(f"k{kernel}", at, at + 500, call, node=10 + kernel if graph else None)
    path = write_nsys(tmp_path / "c.sqlite", program)
    trace = read_steps(path)
    assert trace.step == "eager step and graph step" and trace.modes == ["graph", "eager"]
    assert any("'eager step' × 5 and 'graph step' × 5" in note and "'sampling' × 5" in note for note in trace.notes)
    assert analysis.eager_over_replayed(trace) == pytest.approx(1.0)
    asked = read_steps(path, "eager step, sampling")
    assert asked.step == "eager step and sampling" and len(asked.steps) == 10
    with pytest.raises(ValueError, match="did you mean 'sampling'"):
        read_steps(path, "eager step, samplin")


def test_replays_that_cannot_be_attributed_are_reported(tmp_path):
    program = eager_and_graph(nodes=False)
    program.kernels[-1] = ("other", *program.kernels[-1][1:])
    trace = read_steps(write_kineto(tmp_path / "c.json", program))
    assert "cannot be attributed to parts: kernel 8 of replay 3 is other" in trace.notes[0]
    assert trace.modes == ["eager"]  # of the replays no range says which step is which
    program = eager_and_graph(nodes=False, eager=0)
    assert "capture the graph while" in read_steps(write_nsys(tmp_path / "c.sqlite", program), "graph").notes[0]


def test_the_busiest_gpu_is_taken(tmp_path):
    trace = read_steps(write_nsys(tmp_path / "c.sqlite", two_steps()), "step")
    assert set(trace.kernels["device"]) == {0} and "others in the trace: [1]" in trace.notes[-1]


def test_many_parts_share_a_colour(tmp_path):
    program = Program()
    program.range("decode step", 0, 100_000)
    for number in range(30):
        program.range(f"layer {number}", 1000 * number + 10, 1000 * number + 900)
        program.launch(1000 * number + 20, 1000 * number + 30, number + 1)
        program.kernel("k", 1000 * number + 100, 1000 * number + 200 + number, number + 1)
    trace = read_steps(write_nsys(tmp_path / "c.sqlite", program))
    _, colours = figures._drawn_parts(trace)
    assert len(set(colours.values())) == len(colours) == 11 and figures.OTHERS in colours
    assert all(isinstance(figure(trace), Figure) for figure in FIGURES)


def test_short_names():
    assert short_name("void at::native::gatherTopK<float, 4>(float*, int)") == "gatherTopK"
    assert short_name("void (anonymous namespace)::softmax<1>(float)") == "softmax"
    assert short_name("triton_kernel_0d1d2d") == "triton_kernel_0d1d2d"
    assert len(short_name("k" * 100)) == 48 and short_name("Memcpy DtoD") == "Memcpy DtoD"


# ---- figures, rows, finding a trace ---------------------------------------------------------------------------------


def test_titles_state_what_was_found(both):
    trace = both[0]
    assert title(figures.timeline(trace)) == (
        "Replayed step: 3.0 µs of 13.0 µs are gaps; eager step: 15.0 µs of 25.0 µs are gaps"
    )
    assert title(figures.gap_sizes(trace)) == (
        "Replayed step: 3 gaps, 3.0 µs together, the longest 1.0 µs; eager step: 3 gaps, 15.0 µs together, the longest "
        "5.0 µs"
    )
    assert title(figures.where_time_goes(trace, "recorded: H100")) == (
        "Replayed step: 13.0 µs, 1.92× if launched kernel by kernel; 23% is gaps, 38% gdn (recorded: H100)"
    )
    text = " ".join(sentences.answers(trace))
    assert (
        "takes 13.0 µs; kernels run for 10.0 µs of it (77%), the rest is 3 gaps, 3.0 µs together, the longest 1.0"
        in text
    )
    assert "gdn 5.0 µs (38%)" in text and "1.92× as long as replayed" in text


def test_rows(both):
    rows = analysis.rows(both[0])
    assert {(row["mode"], row["part"]): row["median_us"] for row in rows} == pytest.approx({
        ("graph", "step"): 13, ("graph", "norm"): 2, ("graph", "gdn"): 5, ("graph", "mlp"): 3, ("graph", "gaps"): 3,
        ("eager", "step"): 25, ("eager", "norm"): 2, ("eager", "gdn"): 5, ("eager", "mlp"): 3, ("eager", "gaps"): 15,
    })  # fmt: skip
    assert {row["timer"] for row in rows} == {"Nsight Systems"} and {row["status"] for row in rows} == {"fact"}


def test_the_recorded_trace_gives_the_recorded_rows():
    _, recorded_rows = recorded.measured("h100", "04_nsight_systems")
    expected = [row for row in recorded_rows if "mode" in row]
    rows = analysis.rows(read_steps(STORED))
    assert [row | {"median_us": None} for row in rows] == [row | {"median_us": None} for row in expected]
    assert [row["median_us"] for row in rows] == pytest.approx([row["median_us"] for row in expected])


def test_without_a_trace_everything_is_empty():
    trace = read_steps(None)
    assert trace.modes == [] and sentences.answers(trace) == ["There is no trace."]
    assert analysis.rows(trace) == [] and sentences.conditions(trace) == "no trace"
    tables = ("step_table", "part_table", "gap_table", "kernel_table", "ranges")
    assert all(getattr(analysis, table)(trace).empty for table in tables)
    assert [title(figure(trace)) for figure in FIGURES] == ["Nothing to draw"] * 3


def test_a_trace_is_found(tmp_path, capsys):
    runs, data = tmp_path / "runs", tmp_path / "data"
    assert find_trace("", runs, "h100", data) is None
    assert "make profile records one on a GPU" in capsys.readouterr().out
    stored = data / "measured" / "h100" / "04_nsight_systems" / "capture.sqlite"
    older, newer = runs / "20260101T000000Z-03_decode_step", runs / "20260102T000000Z-03_decode_step"
    for file in (stored, older / "capture.sqlite", newer / "capture.json.gz"):
        assert find_trace("", runs, "h100", data) != file
        file.parent.mkdir(parents=True)
        file.touch()
        assert find_trace("", runs, "h100", data) == file
    assert "the run 20260102T000000Z-03_decode_step, the newest" in capsys.readouterr().out
    assert find_trace(str(stored), runs, "h100", data) == stored
    kept = tmp_path / "kept"
    kept.mkdir()
    assert find_trace("", tmp_path / "no runs", str(kept), data) is None
    (kept / "capture.sqlite").write_bytes(b"")
    assert find_trace("", tmp_path / "no runs", str(kept), data) == kept / "capture.sqlite"
    assert find_trace("runs/20260101T000000Z-03_decode_step/capture.sqlite", runs, "", data) == (
        older / "capture.sqlite"
    )
    with pytest.raises(FileNotFoundError, match="there is no trace mine.sqlite; give"):
        find_trace("mine.sqlite", runs, "h100", data)


def test_threads_of_a_step_are_its_own(tmp_path):
    """Two threads each run steps at the same time."""
    program = Program()
    for thread in (MAIN, (100, 102)):
        program.range("decode step", 0, 1000, thread)
        program.launch(100, 110, thread[1], thread)
        program.kernel("k", 200, 300 + thread[1], thread[1])
    assert len(read_steps(write_nsys(tmp_path / "c.sqlite", program)).steps) == 2
