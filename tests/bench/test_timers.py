"""Timers: order, statistics, refusals; on a GPU, that two timers agree."""

import subprocess
import sys
import time

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gdn_lab import clock as bound
from gdn_lab.bench import timers
from gdn_lab.bench.cupti import TimerUnavailable
from gdn_lab.bench.timers import TIMERS, time_interleaved, unavailable


def host(calls, **options):
    return time_interleaved(calls, timer="host_clock", device="cpu", **options)


def test_variants_take_turns():
    order = []
    calls = {"a": [lambda: order.append("a1"), lambda: order.append("a2")], "b": [lambda: order.append("b")]}
    host(calls, samples=3, warmup=1, min_sample_us=0)
    assert order == ["a1", "a2", "b"] * 4


def test_a_slow_variant_takes_fewer_samples_and_leaves_the_others_theirs():
    timings = host(
        {"slow": [lambda: time.sleep(0.002)], "quick": [lambda: None]}, samples=40, warmup=1, max_seconds=0.01
    )
    assert timings["slow"].count == timers.MIN_SAMPLES and timings["quick"].count == 40


def test_samples_are_long_enough():
    result = host({"a": [lambda: None] * 2}, samples=3, warmup=1, min_sample_us=500)["a"]
    assert result.calls_per_sample % 2 == 0 and result.calls_per_sample > 100
    assert result.median_us < 10


def test_a_timing_is_of_one_call():
    result = host({"a": [lambda: time.sleep(0.001)] * 3}, samples=3, warmup=1)["a"]
    assert result.timer == "host_clock" and result.calls_per_sample == 3 and result.count == 3
    assert 1000 <= result.p20_us <= result.median_us <= result.p80_us < 20000


@given(st.lists(st.floats(0.001, 1e7), min_size=1, max_size=60))
def test_quantiles(samples):
    result = timers.timing_of("host_clock", samples, 1)
    assert min(samples) <= result.p20_us <= result.median_us <= result.p80_us <= max(samples)
    assert result.count == len(samples)
    assert numpy.mean(numpy.array(samples) <= result.p80_us) >= 0.8 - 1 / len(samples)


def test_quantiles_are_the_20th_50th_and_80th():
    timing = timers.timing_of("host_clock", list(range(101)), 1)
    assert (timing.p20_us, timing.median_us, timing.p80_us) == (20.0, 50.0, 80.0)


@given(st.floats(1e-4, 1e7), st.integers(1, 200), st.floats(0, 1e4), st.floats(0, 10))
def test_plan(once_us, samples, min_sample_us, max_seconds):
    repeats, count = timers._plan(once_us, samples, min_sample_us, max_seconds)
    assert repeats >= 1 and repeats * max(once_us, 1e-3) >= min_sample_us * 0.999
    assert min(samples, timers.MIN_SAMPLES) <= count <= samples
    assert count <= timers.MIN_SAMPLES or count * repeats * once_us <= max_seconds * 1.001e6


def test_progress_adds_up():
    fractions = []
    host({"a": [lambda: None], "b": [lambda: None]}, samples=7, progress=fractions.append)
    assert sum(fractions) == pytest.approx(1)


def test_unknown_timer():
    with pytest.raises(
        ValueError, match="timer: 'stopwatch' is unknown; choose one of cuda_graph_replay, cupti_kernel"
    ):
        unavailable("stopwatch", "cpu")


@pytest.mark.parametrize("timer", ["cuda_graph_replay", "cupti_kernel"])
def test_gpu_timers_refuse_a_cpu(timer):
    with pytest.raises(TimerUnavailable, match=f"{timer} needs a CUDA device; this is cpu, use host_clock"):
        time_interleaved({"a": [lambda: None]}, timer=timer, device="cpu")


@pytest.mark.parametrize("timer", ["cuda_graph_replay", "cupti_kernel"])
def test_gpu_timers_refuse_a_machine_without_a_gpu(timer, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds none here" in unavailable(timer, "cuda:0")


def test_host_clock_refuses_a_gpu():
    assert unavailable("host_clock", "cpu") is None
    assert "calls on cuda:0 return before they are done; use cuda_graph_replay" in unavailable("host_clock", "cuda:0")


@pytest.fixture
def cuda_build(monkeypatch):
    monkeypatch.delenv("NSYS_PROFILING_SESSION_ID", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.profiler, "supported_activities", lambda: {torch.profiler.ProfilerActivity.CUDA})


def test_cupti_refuses_inside_nsight_systems(cuda_build, monkeypatch):
    assert unavailable("cupti_kernel", "cuda") is None
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    assert "inside Nsight Systems, because CUPTI takes one subscriber" in unavailable("cupti_kernel", "cuda")
    assert unavailable("cuda_graph_replay", "cuda") is None


def test_cupti_refuses_while_another_profiler_records(cuda_build, monkeypatch):
    monkeypatch.setattr(torch.autograd, "_profiler_enabled", lambda: True)
    assert "while a torch profiler records" in unavailable("cupti_kernel", "cuda")


def test_cupti_refuses_a_torch_without_it(cuda_build, monkeypatch):
    monkeypatch.setattr(torch.profiler, "supported_activities", lambda: set())
    assert "needs a torch built with CUPTI" in unavailable("cupti_kernel", "cuda")


@pytest.mark.parametrize("calls, message", [({}, "got none for any"), ({"a": [], "b": [print]}, "got none for a")])
def test_nothing_to_time(calls, message):
    with pytest.raises(ValueError, match=message):
        host(calls)


@pytest.mark.parametrize("options", [{"samples": 0}, {"warmup": 0}])
def test_too_few_samples(options):
    with pytest.raises(ValueError, match="samples, warmup: expected at least 1"):
        host({"a": [lambda: None]}, **options)


def test_a_failing_variant_is_named():
    def fail():
        raise ArithmeticError("no such slot")

    with pytest.raises(RuntimeError, match="triton/vk failed in warm-up: ArithmeticError: no such slot"):
        host({"torch/vk": [lambda: None], "triton/vk": [fail]})


# --- graph replay on a simulated GPU


class Clock:
    """A stream that runs what is enqueued in order; each replay of a graph takes the graph's time."""

    def __init__(self, monkeypatch):
        self.now, self.order = 0.0, []
        clock = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = clock.now

            def elapsed_time(self, end):
                return end.at - self.at

            def synchronize(self):
                assert self.at <= clock.now
                clock.order.append("wait")

        monkeypatch.setattr(bound, "Event", Event)
        monkeypatch.setattr(bound, "record", Event.record)
        monkeypatch.setattr(bound, "elapsed_ms", Event.elapsed_time)
        monkeypatch.setattr(bound, "synchronize_event", Event.synchronize)
        monkeypatch.setattr(bound, "replay", lambda graph: graph.replay())
        monkeypatch.setattr(bound, "synchronize", lambda: clock.order.append("synchronize"))

    def graph(self, name, milliseconds):
        clock = self

        class Graph:
            def replay(self):
                clock.now += milliseconds
                clock.order.append(name)

        return Graph()


def test_replays_take_turns_and_the_gpu_never_waits(monkeypatch):
    clock = Clock(monkeypatch)
    graphs = {"a": clock.graph("a", 0.125), "b": clock.graph("b", 0.5)}
    options = (3, 2, 200.0, 2.0, lambda fraction: None, lambda: clock.order.append("refresh"))
    timings = timers._graph_replay(graphs, {"a": 4, "b": 1}, *options)
    warmup = ["a", "b"] * 2 + ["synchronize", "b"]  # and one sample that runs ahead
    turns = ["refresh", "a", "a", "refresh", "b", "wait"] * 3
    assert clock.order == warmup + turns + ["synchronize"]
    assert timings["a"].median_us == 31.25 and timings["a"].calls_per_sample == 8
    assert timings["b"].median_us == 500 and timings["b"].count == 3


# --- on a GPU


def streams(megabytes, calls, kernels=1):
    """Calls that each negate a tensor of their own, `kernels` times."""
    tensors = [torch.randn(megabytes << 18, device="cuda") for _ in range(calls)]

    def call(tensor):
        for _ in range(kernels):
            tensor.neg_()

    return [lambda tensor=tensor: call(tensor) for tensor in tensors]


@pytest.mark.gpu
def test_two_timers_agree_on_long_kernels():
    calls = {"one": streams(64, 4), "three": streams(64, 4, kernels=3)}
    replay = time_interleaved(calls, timer="cuda_graph_replay", device="cuda", samples=20)
    cupti = time_interleaved(calls, timer="cupti_kernel", device="cuda", samples=20)
    for key in calls:
        assert replay[key].timer == "cuda_graph_replay" and cupti[key].timer == "cupti_kernel"
        assert cupti[key].median_us == pytest.approx(replay[key].median_us, rel=0.1)
        assert cupti[key].count >= 20 and cupti[key].calls_per_sample == 1
    assert cupti["three"].median_us == pytest.approx(3 * cupti["one"].median_us, rel=0.1)


@pytest.mark.gpu
def test_cupti_records_time_after_time():
    calls = {"small": streams(1, 16)}
    for _ in range(4):
        time.sleep(0.5)
        result = time_interleaved(calls, timer="cupti_kernel", device="cuda", samples=32)["small"]
        assert 0.5 < result.median_us < 100 and result.count == 32


@pytest.mark.gpu
def test_short_graphs_are_repeated():
    result = time_interleaved({"a": streams(1, 2)}, timer="cuda_graph_replay", device="cuda", samples=5)["a"]
    assert result.calls_per_sample > 2 and result.calls_per_sample % 2 == 0


@pytest.mark.gpu
def test_allocating_calls_and_memory():
    source = torch.randn(1 << 20, device="cuda")
    calls = {key: [lambda: source.clone().mul_(2).sum()] * 8 for key in "abc"}
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    time_interleaved(calls, timer="cuda_graph_replay", device="cuda", samples=5)
    assert torch.cuda.memory_allocated() == before


CANNOT_BE_CAPTURED = """
import torch
from gdn_lab.bench.timers import time_interleaved
x, stream = torch.ones(8, device="cuda"), torch.cuda.current_stream()
try:
    calls = {"good": [x.neg_], "waits": [lambda: x.sum().item()]}
    time_interleaved(calls, timer="cuda_graph_replay", device="cuda")
except RuntimeError as error:
    print(torch.cuda.current_stream() == stream, error)
"""


@pytest.mark.gpu
def test_a_call_that_cannot_be_captured_is_named():
    # In a process of its own: a failed graph capture leaves CUDA in no state to go on with.
    done = subprocess.run([sys.executable, "-c", CANNOT_BE_CAPTURED], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("True waits cannot be captured in a CUDA graph: "), done.stdout + done.stderr


def test_every_timer_is_named():
    assert TIMERS == ("cuda_graph_replay", "cupti_kernel", "host_clock")
