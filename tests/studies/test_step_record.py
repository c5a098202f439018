"""What is recorded of a step: the order of ranges under either profiler, on a made-up GPU; and on a CPU."""

import gzip
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from recorded_traces import eager_and_graph, kineto_trace, write_kineto

from gdn_lab.bench.results import Run
from gdn_lab.studies.decode_step import record
from gdn_lab.trace import graphs, kineto, range_table, read


@pytest.fixture
def run(tmp_path):
    return Run.create("x", {}, root=tmp_path / "runs")


def test_on_a_cpu_the_step_runs_once_and_a_sentence_says_so(run, capsys):
    calls = []
    assert record.record_step([lambda: calls.append(1), lambda: calls.append(2)], run, device="cpu") is None
    assert calls == [1, 2] and "Not recorded: no kernel of a GPU runs on a CPU" in capsys.readouterr().out
    assert not (run.folder / record.KINETO_FILE).exists()
    with pytest.raises(ValueError, match="expected at least 1, got 0, 8 and 16"):
        record.record_step([], run)


@pytest.fixture
def seen(monkeypatch):
    """The list of what a made-up GPU is asked to do, in order."""
    seen = []

    class named(nullcontext):
        def __init__(self, name):
            super().__init__()
            seen.append(name)

    def notes(name):
        return lambda *_, **__: seen.append(name)

    class Graph:
        replay = staticmethod(notes("replay"))

    monkeypatch.setattr(record, "nvtx_range", named)
    monkeypatch.setattr(record, "_graph_of", lambda steps: seen.append("graph capture") or Graph)
    for name in ("lead_in", "start_cupti"):
        monkeypatch.setattr(record, name, notes(name))
    monkeypatch.setattr(record, "unavailable", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    profiler = SimpleNamespace(start=notes("start"), stop=notes("stop"))
    monkeypatch.setattr(torch.cuda, "profiler", profiler)
    return seen


RUNS = ["warm-up", "step", "replay", "eager", "step", "eager", "step", "graph", "replay"]


def test_nsight_systems_records_the_graph_capture(run, seen, monkeypatch, capsys):
    monkeypatch.setenv(record.NSIGHT_SESSION, "1")
    record.record_step(lambda: seen.append("step"), run, eager=2, replays=1, device="cuda")
    assert seen == ["warm-up", "step", "start", "graph capture", *RUNS, "stop"]
    assert "Nsight Systems recorded 2 eager runs" in capsys.readouterr().out


def test_a_step_that_fails_ends_the_recording(run, seen, monkeypatch):
    monkeypatch.setenv(record.NSIGHT_SESSION, "1")

    def fails():
        if "start" in seen:
            raise KeyError("x")

    with pytest.raises(KeyError):
        record.record_step(fails, run, device="cuda")
    assert seen[-1] == "stop"


def test_under_kineto_markers_come_first_and_cupti_before_the_graph(run, seen, monkeypatch):
    monkeypatch.delenv(record.NSIGHT_SESSION, raising=False)
    monkeypatch.setattr(torch.profiler, "profile", lambda **_: nullcontext("profile"))
    monkeypatch.setattr(kineto, "keep", lambda profile, out, dropped: seen.append((profile, out.name)))
    monkeypatch.setattr(kineto, "read", lambda out: None)
    out = record.record_step(lambda: seen.append("step"), run, eager=2, replays=1, device="cuda")
    assert out == run.folder / "capture.json.gz"
    assert seen[2:] == ["start_cupti", "graph capture", "lead_in", *RUNS, ("profile", "capture.json.gz")]


def test_a_trace_without_records_is_reported_and_not_kept(run, seen, monkeypatch, capsys):
    monkeypatch.delenv(record.NSIGHT_SESSION, raising=False)
    monkeypatch.setattr(torch.profiler, "profile", type("profile", (nullcontext,), {"__init__": lambda *_, **__: None}))
    monkeypatch.setattr(torch.profiler.profile, "__enter__", lambda _: "profile")
    monkeypatch.setattr(kineto, "_export", lambda profile, path: path.write_text('{"traceEvents": []}'))
    assert record.record_step(lambda: None, run, device="cuda") is None
    assert "holds no work of a GPU" in capsys.readouterr().out
    assert sorted(path.name for path in run.folder.iterdir()) == ["run.json"]


def test_without_cupti_a_sentence_says_so(run, seen, monkeypatch, capsys):
    monkeypatch.delenv(record.NSIGHT_SESSION, raising=False)
    monkeypatch.setattr(record, "unavailable", lambda *_: "cupti_kernel needs a torch built with CUPTI")
    assert record.record_step(lambda: None, run, device="cuda") is None
    assert capsys.readouterr().out == "Not recorded: cupti_kernel needs a torch built with CUPTI.\n"


def test_what_is_kept_of_a_trace_reads_alike_and_holds_nothing_else(tmp_path, monkeypatch):
    program = eager_and_graph(nodes=False)
    program.launch(1, 2, 900)
    program.kernel("spin_kernel(long)", 3, 4, 900)
    trace = kineto_trace(program) | {"hostname": "secret", "distributedInfo": {"path": "secret"}}
    for entry in trace["traceEvents"]:
        entry.setdefault("args", {})["stack"] = "/home/secret"
    monkeypatch.setattr(kineto, "_export", lambda profile, path: path.write_text(json.dumps(trace)))
    out = kineto.keep("a profile", tmp_path / "kept.json.gz", lambda name: name.startswith("spin_kernel"))
    text = gzip.decompress(out.read_bytes()).decode()
    for lost in ("secret", "spin", "aten::mm", '"correlation": 900', "process_name"):
        assert lost not in text
    expected = read(write_kineto(tmp_path / "whole.json", eager_and_graph(nodes=False)))
    assert read(out).kernels.equals(expected.kernels) and read(out).gpus == expected.gpus
    assert range_table(graphs.by_position(read(out), "eager", "graph")).equals(
        range_table(graphs.by_position(expected, "eager", "graph"))
    )
