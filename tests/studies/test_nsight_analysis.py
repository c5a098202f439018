"""What a capture says of a step: on made-up captures whose steps, parts and gaps are known; and its figures."""

import pytest
from matplotlib.figure import Figure
from recorded_traces import MAIN, Program, eager_and_graph, two_steps, write_kineto, write_nsys

from gdn_lab.studies.decode_step.record import WARM_UP, find_capture
from gdn_lab.studies.nsight_systems import analysis as findings
from gdn_lab.studies.nsight_systems import figures as plots
from gdn_lab.studies.nsight_systems.analysis import LAUNCH, NOTHING, REST, WHOLE, analyse, short_name

FIGURES = (plots.timeline, plots.gap_sizes, plots.where_time_goes)


@pytest.fixture
def both(tmp_path):
    """The same program as Nsight Systems and as Kineto record it."""
    nsight = analyse(write_nsys(tmp_path / "n.sqlite", eager_and_graph()))
    return nsight, analyse(write_kineto(tmp_path / "k.json", eager_and_graph(nodes=False)))


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def test_steps_and_their_parts(both):
    for of in both:
        assert of.step == "decode step" and of.modes == ["graph", "eager"] and not of.notes
        table = findings.step_table(of)
        assert table["steps"].tolist() == [6, 4] and table["kernels"].tolist() == [4, 4]
        assert table["step µs"].tolist() == pytest.approx([13.0, 25.0])
        assert table["kernels µs"].tolist() == pytest.approx([10.0, 10.0])
        assert table["gaps %"].tolist() == pytest.approx([100 * 3 / 13, 60.0])
        assert table["launching on the CPU µs"][0] == pytest.approx(0.15)  # 0.3 us for a graph of two steps
        parts = findings.part_table(of)
        assert parts["part"].tolist() == ["norm", "gdn", "mlp", "gaps"]
        assert parts["graph: µs"].tolist() == pytest.approx([2.0, 5.0, 3.0, 3.0])
        assert parts["eager: µs"].tolist() == pytest.approx([2.0, 5.0, 3.0, 15.0])
        gaps = findings.gap_table(of)
        assert list(zip(gaps["after"], gaps["before"], strict=True)) == [
            ("norm", "gdn"),
            ("gdn", "gdn"),
            ("gdn", "mlp"),
        ]
        assert gaps["µs in a step"].tolist() == pytest.approx([1.0] * 3)
        kernels = findings.kernel_table(of)
        assert kernels["kernel"].tolist() == ["gdn_kernel", "mm_kernel", "norm_kernel", "copy_kernel"]
        assert findings.overhead(of) == pytest.approx(25 / 13)


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
    of = analyse(write_nsys(tmp_path / "c.sqlite", program))
    times = findings.part_times(of, "eager")
    assert times.to_dict() == pytest.approx({"a": 1.5, "b": 0.9, "c": 0.0, "gaps": 0.5})
    assert times.sum() == pytest.approx(of.steps["step_us"][0])


def test_agreement(both):
    table = findings.agreement(*both, least_us=2.5)
    assert table["part"].tolist() == ["gdn", "mlp"] and table["difference %"].tolist() == pytest.approx([0, 0])
    assert findings.agreement(both[0], NOTHING).empty


def test_two_captures_without_a_step_in_common(tmp_path):
    eager = analyse(write_nsys(tmp_path / "e.sqlite", eager_and_graph(replays=0)))
    graph = analyse(write_nsys(tmp_path / "g.sqlite", eager_and_graph(eager=0)))
    assert (eager.modes, graph.modes) == (["eager"], ["graph"])
    with pytest.raises(ValueError, match="have no steps of the same kind"):
        findings.agreement(eager, graph)
    for of in (eager, graph):
        assert findings.overhead(of) is None and len(findings.answers(of)) == 3
        assert all(isinstance(figure(of), Figure) for figure in FIGURES)


def test_the_warm_up_does_not_count(tmp_path):
    program = eager_and_graph()
    before = analyse(write_nsys(tmp_path / "a.sqlite", program)).steps
    end = max(kernel[2] for kernel in program.kernels) + 10_000
    program.range(WARM_UP, end, end + 9000)
    program.range("decode step", end + 10, end + 8000)
    program.launch(end + 20, end + 30, 999)
    program.kernel("slow_kernel", end + 100, end + 900_000, 999)
    assert len(analyse(write_nsys(tmp_path / "b.sqlite", program)).steps) == len(before)


# ---- captures of others ---------------------------------------------------------------------------------------------


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
    of = analyse(path)
    assert of.step == "attention" and len(of.steps) == 12 and set(of.kernels["part"]) == {"flash", "rope"}
    of = analyse(path, "forward")
    assert len(of.steps) == 4 and set(of.kernels["part"]) == {"attention", REST}
    assert all(isinstance(figure(of), Figure) for figure in FIGURES)
    with pytest.raises(
        ValueError, match=r"no range 'forwards' .*\(did you mean 'forward'\?\); those that have: attention"
    ):
        analyse(path, "forwards")


@pytest.mark.parametrize("graphs", [True, False])
def test_a_capture_without_ranges(tmp_path, graphs):
    program = eager_and_graph(nodes=False, eager=0) if graphs else server()
    program.ranges.clear()
    of = analyse(write_nsys(tmp_path / "c.sqlite", program))
    assert of.step == (LAUNCH if graphs else WHOLE) and len(of.steps) == (3 if graphs else 1)
    assert set(of.kernels["part"]) >= ({"gdn_kernel"} if graphs else {"flash", "rope", "sample"})
    assert len(of.notes) == graphs
    assert all(isinstance(figure(of), Figure) for figure in FIGURES) and findings.answers(of)


def test_replays_that_cannot_be_told_apart_are_said(tmp_path):
    program = eager_and_graph(nodes=False)
    program.kernels[-1] = ("other", *program.kernels[-1][1:])
    of = analyse(write_kineto(tmp_path / "c.json", program))
    assert "cannot be told apart by part: kernel 8 of replay 3 is other" in of.notes[0]
    assert of.modes == ["eager"]  # of the replays no range says which step is which
    program = eager_and_graph(nodes=False, eager=0)
    assert "capture the graph while" in analyse(write_nsys(tmp_path / "c.sqlite", program), "graph").notes[0]


def test_the_busiest_gpu_is_taken(tmp_path):
    of = analyse(write_nsys(tmp_path / "c.sqlite", two_steps()), "step")
    assert set(of.kernels["device"]) == {0} and "others in the capture: [1]" in of.notes[-1]


def test_many_parts_share_a_colour(tmp_path):
    program = Program()
    program.range("decode step", 0, 100_000)
    for number in range(30):
        program.range(f"layer {number}", 1000 * number + 10, 1000 * number + 900)
        program.launch(1000 * number + 20, 1000 * number + 30, number + 1)
        program.kernel("k", 1000 * number + 100, 1000 * number + 200 + number, number + 1)
    of = analyse(write_nsys(tmp_path / "c.sqlite", program))
    _, colours = plots._drawn_parts(of)
    assert len(set(colours.values())) == len(colours) == 10 and plots.OTHERS in colours
    assert all(isinstance(figure(of), Figure) for figure in FIGURES)


def test_short_names():
    assert short_name("void at::native::gatherTopK<float, 4>(float*, int)") == "gatherTopK"
    assert short_name("void (anonymous namespace)::softmax<1>(float)") == "softmax"
    assert short_name("triton_kernel_0d1d2d") == "triton_kernel_0d1d2d"
    assert len(short_name("k" * 100)) == 48 and short_name("Memcpy DtoD") == "Memcpy DtoD"


# ---- figures, rows, finding a capture -------------------------------------------------------------------------------


def test_titles_state_what_was_found(both):
    of = both[0]
    assert title(plots.timeline(of)) == (
        "Replayed step of 13 µs: 3 gaps, 3 µs together; eager step of 25 µs: 3 gaps, 15 µs together"
    )
    assert title(plots.gap_sizes(of)).endswith("replayed step: 1.00 µs, eager step: 5.00 µs")
    assert title(plots.where_time_goes(of)) == (
        "A replayed step takes 13.0 µs, 23 % of it gaps; launched kernel by kernel 1.92 times as long; "
        "the longest part is gdn, 50 % of the kernels' time"
    )
    said = " ".join(findings.answers(of))
    assert "takes 13.0 µs; for 10.0 of them (77 %) a kernel runs, 3 gaps of 1.00 µs" in said
    assert "gdn 5.0 µs (50 %)" in said and "1.92 times as long as replayed" in said


def test_rows(both):
    rows = findings.rows(both[0])
    assert {(row["mode"], row["part"]): row["median_us"] for row in rows} == pytest.approx({
        ("graph", "step"): 13, ("graph", "norm"): 2, ("graph", "gdn"): 5, ("graph", "mlp"): 3, ("graph", "gaps"): 3,
        ("eager", "step"): 25, ("eager", "norm"): 2, ("eager", "gdn"): 5, ("eager", "mlp"): 3, ("eager", "gaps"): 15,
    })  # fmt: skip
    assert {row["timer"] for row in rows} == {"Nsight Systems"} and {row["status"] for row in rows} == {"fact"}


def test_nothing_is_said_and_drawn_of_no_capture():
    of = analyse(None)
    assert of.modes == [] and findings.answers(of) == ["There is no capture."]
    assert findings.rows(of) == [] and findings.conditions(of) == "no capture"
    tables = ("step_table", "part_table", "gap_table", "kernel_table", "ranges")
    assert all(getattr(findings, table)(of).empty for table in tables)
    assert [title(figure(of)) for figure in FIGURES] == ["Nothing to draw"] * 3


def test_a_capture_is_found(tmp_path, capsys):
    runs, data = tmp_path / "runs", tmp_path / "data"
    assert find_capture("", runs, "h100", data) is None
    assert "make profile makes one on a GPU" in capsys.readouterr().out
    stored = data / "measured" / "h100" / "04_nsight_systems" / "capture.sqlite"
    older, newer = runs / "20260101T000000Z-03_decode_step", runs / "20260102T000000Z-03_decode_step"
    for file in (stored, older / "capture.sqlite", newer / "capture.json.gz"):
        assert find_capture("", runs, "h100", data) != file
        file.parent.mkdir(parents=True)
        file.touch()
        assert find_capture("", runs, "h100", data) == file
    assert "the run 20260102T000000Z-03_decode_step, the newest" in capsys.readouterr().out
    assert find_capture(str(stored), runs, "h100", data) == stored
    assert find_capture("runs/20260101T000000Z-03_decode_step/capture.sqlite", runs, "", data) == (
        older / "capture.sqlite"
    )
    with pytest.raises(FileNotFoundError, match="there is no capture mine.sqlite; give"):
        find_capture("mine.sqlite", runs, "h100", data)


def test_threads_of_a_step_are_its_own(tmp_path):
    """Two threads each run steps at the same time."""
    program = Program()
    for thread in (MAIN, (100, 102)):
        program.range("decode step", 0, 1000, thread)
        program.launch(100, 110, thread[1], thread)
        program.kernel("k", 200, 300 + thread[1], thread[1])
    assert len(analyse(write_nsys(tmp_path / "c.sqlite", program)).steps) == 2
