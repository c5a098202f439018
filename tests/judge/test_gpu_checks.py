"""The checks that need a GPU, on a simulated one: a capture that records calls, streams that are one stream."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from planted_kernels import Planted, planted
from torch.utils._python_dispatch import TorchDispatchMode

from gdn_lab.backends import author_files
from gdn_lab.judge import gpu_checks, judging
from gdn_lab.judge.attempt import Refused, Wrong, kept, taken
from gdn_lab.judge.candidate import Candidate


class Stream:
    wait_stream = synchronize = lambda *_: None


class Event:
    record = query = lambda _: False


class Graph:
    def replay(self):
        for call in self.calls:
            call()


@pytest.fixture
def simulated(monkeypatch):
    """torch.cuda on a CPU, as far as the checks use it. Returns what the simulation counts."""
    counts = {"allocation.all.allocated": 0}
    running = {}

    class Captures(Candidate):
        def run(self, made):
            if running.get("graph"):
                running["graph"].calls.append(lambda: super(Captures, self).run(made))
            return super().run(made)

    @contextmanager
    def graph(graph, stream):
        graph.calls = []
        running["graph"] = graph
        yield
        running["graph"] = None

    for name, value in {
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": graph,
        "stream": lambda _: nullcontext(),
        "current_stream": Stream,
        "synchronize": lambda *_: None,
        "memory_stats": lambda _: dict(counts),
        "_sleep": lambda _: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(gpu_checks, "needs_gpu", lambda candidate: None)
    counts["candidate"] = lambda name: Captures(name, torch.device("cpu"))
    return counts


def load(kernel_file, fault):
    return author_files.load(kernel_file(fault.source()))[0]


def test_a_right_kernel(kernel_file, simulated):
    candidate = simulated["candidate"](load(kernel_file, Planted((), {})))
    assert gpu_checks.cuda_graph(candidate, 1.0) == "4 replays"
    assert gpu_checks.streams(candidate, 1.0) == "a stream of its own, and the usual one"
    with pytest.raises(Refused, match="says that it allocates"):
        gpu_checks.no_allocation(candidate, 1.0)


def test_streams_need_work_before_the_call(kernel_file, simulated, monkeypatch):
    """A host that waits for the stream before each call would let every kernel pass."""
    monkeypatch.setattr(Event, "query", lambda _: True)
    candidate = simulated["candidate"](load(kernel_file, Planted((), {})))
    with pytest.raises(Refused, match="so no order can be seen"):
        gpu_checks.streams(candidate, 1.0)


class NoHostTensors(TorchDispatchMode):
    """Raises where a list or a number becomes a tensor, or a tensor's values a number: a GPU is waited for there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.ops.aten.lift_fresh.default, torch.ops.aten._local_scalar_dense.default), function
        return function(*args, **(kwargs or {}))


def test_what_is_kept_around_a_call_waits_for_no_gpu(kernel_file, simulated):
    candidate = simulated["candidate"](load(kernel_file, Planted((), {})))
    made = candidate.make(candidate.usual(batch=6, padding=(2,)))
    with NoHostTensors():
        kept(made)
        taken(made, made.out)
    with NoHostTensors(), pytest.raises(AssertionError, match="lift_fresh"):
        made.indices[made.live]


def test_a_graph_of_a_kernel_that_keeps_its_first_padding(kernel_file, simulated):
    live = "(first or first.append(indices >= 0) or first)[0] & (indices >= 0)"
    candidate = simulated["candidate"](load(kernel_file, planted(before="first = []", live=live)))
    with pytest.raises(Wrong, match="in replay 0 of its CUDA graph, with new values: the output is wrong in"):
        gpu_checks.cuda_graph(candidate, 1.0)


def test_allocations_are_counted(kernel_file, simulated):
    fault = planted(before="counts = {}", allocates="False", first="counts['allocation.all.allocated'] += 1")
    path = kernel_file(fault.source())
    (name,) = author_files.load(path)
    author_files.sys.modules[f"gdn_lab_kernel_{path.stem}_1"].counts = simulated
    with pytest.raises(Wrong, match=r"3 calls with out= made 3 allocations of GPU memory \(B = 1\)"):
        gpu_checks.no_allocation(simulated["candidate"](name), 1.0)


def test_a_gpu_that_is_broken_ends_the_checks(kernel_file):
    fault = planted(first="raise RuntimeError('CUDA error: device-side assert triggered')")
    found = judging.judge(load(kernel_file, fault))
    assert len(found) == 1 and found[0].status == "fail"
    assert found[0].sentence == "raised RuntimeError: CUDA error: device-side assert triggered" + judging.BROKEN


def test_a_gpu_has_a_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert judging.device_name("cuda:1") == "GPU 1" and judging.device_name("cpu") == "CPU"
