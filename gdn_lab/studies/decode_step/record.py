"""Record a few runs of a step for a profiler: launched kernel by kernel, and as replays of a CUDA graph.

Each run lies in a range of the trace (names in trace/ranges.py):

    warm-up     one run of each kind, which does not count
    eager       around each run launched kernel by kernel; the step's own ranges lie inside
    graph       around each replay of one CUDA graph of the same calls

Under Nsight Systems (make profile) everything between cudaProfilerStart and cudaProfilerStop is recorded, the graph
capture included, so its kernels can be attributed to the ranges of the step. Otherwise Kineto records; it does not see
the graph capture, so the kernels of a replay are attributed by their position in an eager run (trace/graphs.py).
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from ...bench.cupti import is_marker, lead_in, start_cupti
from ...bench.results import Run
from ...bench.timers import unavailable
from ...trace import kineto, nvtx_range
from ...trace.ranges import EAGER, GRAPH, WARM_UP

KINETO_FILE = "capture.json.gz"  # the trace that Kineto recorded, in the run's folder
NSIGHT_FILE = "capture.sqlite"  # the trace that Nsight Systems recorded, scrubbed, there and in data/measured
NSIGHT_SESSION = "NSYS_PROFILING_SESSION_ID"  # set inside a session of Nsight Systems


def record_step(
    steps: Callable | list[Callable], run: Run, *, eager: int = 8, replays: int = 16, device=None
) -> Path | None:
    """Record `eager` runs and `replays` replays, print where they are, and return the file if there is one.

    steps: one step, or the steps of several layers: functions without arguments that enqueue work on `device` (default:
    the GPU if there is one) and do not synchronise. All of them together are one run. Kineto's trace is KINETO_FILE in
    run.folder. Inside Nsight Systems nothing is returned: it writes its report when the program ends. On a CPU the
    steps run once. RuntimeError if a step fails or cannot be captured in a CUDA graph.
    """
    steps = list(steps) if isinstance(steps, list | tuple) else [steps]
    if not steps or eager < 1 or replays < 1:
        raise ValueError(f"steps, eager, replays: expected at least 1, got {len(steps)}, {eager} and {replays}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with nvtx_range(WARM_UP):
        _call(steps)
    if device.type == "cpu":
        print(
            "Not recorded: no kernel of a GPU runs on a CPU, so there is nothing for notebook 04 to analyse; it shows "
            "the recorded trace."
        )
        return None
    with torch.cuda.device(device):
        if NSIGHT_SESSION in os.environ:
            _under_nsight(steps, eager, replays)
            return None
        return _under_kineto(steps, eager, replays, run.folder / KINETO_FILE)


def _under_nsight(steps, eager: int, replays: int) -> None:
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    try:
        graph = _graph_of(steps)
        _runs(steps, graph, eager, replays)
    finally:
        torch.cuda.profiler.stop()
    print(f"Nsight Systems recorded {eager} eager runs of the step and {replays} replays.")


def _under_kineto(steps, eager: int, replays: int, out: Path) -> Path | None:
    if reason := unavailable("cupti_kernel", torch.device("cuda")):
        print(f"Not recorded: {reason}.")
        return None
    start_cupti()  # before the graph exists, so that its kernels are recorded one by one
    graph = _graph_of(steps)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        lead_in()
        _runs(steps, graph, eager, replays)
    try:
        kineto.keep(profile, out, is_marker)
        kineto.read(out)
    except ValueError as error:  # CUPTI lost its records: the run goes on, without a file that nobody can read
        out.unlink(missing_ok=True)
        print(f"Not recorded: {error}.")
        return None
    print(f"Kineto recorded {eager} eager runs of the step and {replays} replays: {out.name} in the run's folder.")
    return out


def _runs(steps, graph, eager: int, replays: int) -> None:
    """Run everything that is recorded. The GPU is idle before each run, so that runs do not mix."""
    with nvtx_range(WARM_UP):
        _call(steps)
        graph.replay()
        torch.cuda.synchronize()
    for name, count, run in ((EAGER, eager, lambda: _call(steps)), (GRAPH, replays, graph.replay)):
        for _ in range(count):
            with nvtx_range(name):
                run()
            torch.cuda.synchronize()


def _call(steps) -> None:
    for step in steps:
        step()


def _graph_of(steps) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                _call(steps)
    except Exception as error:
        raise RuntimeError(f"the step cannot be captured in a CUDA graph: {type(error).__name__}: {error}") from error
    return graph
