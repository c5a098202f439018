"""Records a few runs of a step for a profiler: launched kernel by kernel, and as replays of a CUDA graph.

    warm-up     one of each, not to be counted
    eager       around each run kernel by kernel; the step's own ranges lie inside
    graph       around each replay of one graph of the same calls

Under Nsight Systems (make profile) what runs between cudaProfilerStart and Stop is recorded, the capture of the graph
included, so that its kernels can be led back to the ranges of the step. Otherwise Kineto records, which does not see
that, and the kernels of a replay are led back by their position in an eager run (profiling/graphs.py).
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from ...bench.cupti import is_marker, lead_in, start_cupti
from ...bench.results import Run
from ...bench.timers import unavailable
from ...report.recorded import DATA
from ...trace import kineto, span

WARM_UP, EAGER, GRAPH = "warm-up", "eager", "graph"
FILE = "capture.json.gz"  # what Kineto recorded, in the run's folder
SQLITE = "capture.sqlite"  # what Nsight Systems recorded, scrubbed, there and in data/measured
NSYS = "NSYS_PROFILING_SESSION_ID"  # set inside a session of Nsight Systems


def capture_step(
    steps: Callable | list[Callable], run: Run, *, eager: int = 8, replays: int = 16, device=None
) -> Path | None:
    """Records `eager` runs and `replays` replays; says where they are, and returns the file if there is one.

    steps: one step, or the steps of several layers, functions without arguments that enqueue work on `device` (default:
    the GPU if there is one) and do not synchronise; all of them make one run. Kineto's recording is FILE in run.folder.
    Inside Nsight Systems nothing is returned: it writes its report when the program ends. On a CPU the steps run once.
    RuntimeError if a step fails or cannot be captured in a CUDA graph.
    """
    steps = list(steps) if isinstance(steps, list | tuple) else [steps]
    if not steps or eager < 1 or replays < 1:
        raise ValueError(f"steps, eager, replays: expected at least 1, got {len(steps)}, {eager} and {replays}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with span(WARM_UP):
        _call(steps)
    if device.type == "cpu":
        print(
            "Not recorded: on a CPU no kernel of a GPU runs, so there is nothing for notebook 04 to take apart; it "
            "shows the stored capture."
        )
        return None
    with torch.cuda.device(device):
        if NSYS in os.environ:
            _under_nsight(steps, eager, replays)
            return None
        return _under_kineto(steps, eager, replays, run.folder / FILE)


def _under_nsight(steps, eager: int, replays: int) -> None:
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    try:
        graph = _captured(steps)
        _runs(steps, graph, eager, replays)
    finally:
        torch.cuda.profiler.stop()
    print(f"Nsight Systems recorded {eager} eager runs of the step and {replays} replays.")


def _under_kineto(steps, eager: int, replays: int, out: Path) -> Path | None:
    if reason := unavailable("cupti_kernel", torch.device("cuda")):
        print(f"Not recorded: {reason}.")
        return None
    start_cupti()  # before the graph exists, so that its kernels are seen one by one
    graph = _captured(steps)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        lead_in()
        _runs(steps, graph, eager, replays)
    try:
        kineto.keep(profile, out, is_marker)
        kineto.read(out)
    except ValueError as error:  # CUPTI lost everything: the run goes on, and leaves no file that cannot be read
        out.unlink(missing_ok=True)
        print(f"Not recorded: {error}.")
        return None
    print(f"Kineto recorded {eager} eager runs of the step and {replays} replays: {out.name} in the run's folder.")
    return out


def _runs(steps, graph, eager: int, replays: int) -> None:
    """The GPU is idle before each run, so that runs do not mix."""
    with span(WARM_UP):
        _call(steps)
        graph.replay()
        torch.cuda.synchronize()
    for name, count, run in ((EAGER, eager, lambda: _call(steps)), (GRAPH, replays, graph.replay)):
        for _ in range(count):
            with span(name):
                run()
            torch.cuda.synchronize()


def _call(steps) -> None:
    for step in steps:
        step()


def _captured(steps) -> torch.cuda.CUDAGraph:
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


def find_capture(given: str, runs: Path, gpu: str, data: Path = DATA) -> Path | None:
    """The capture to analyse, said in a line; None, said too, where there is none.

    given: its path, as seen from the current folder or from the repository. "": of the newest run in `runs` that has
    one, else the recorded one of data/measured/<gpu>. FileNotFoundError if a given one is not there.
    """
    if given:
        places = [Path(given).expanduser(), data.parent / given]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"there is no capture {given}; give a .nsys-rep or .sqlite file of Nsight Systems, or a .json or "
                ".json.gz that torch.profiler exported"
            )
        print(f"The capture: {found.name}.")
        return found
    folders = sorted((path for path in runs.glob("*") if path.is_dir() and not path.is_symlink()), reverse=True)
    for folder in folders:
        for name in (SQLITE, FILE):
            if (folder / name).is_file():
                print(f"The capture: {name} of the run {folder.name}, the newest that has one.")
                return folder / name
    stored = data / "measured" / gpu / "04_nsight_systems" / SQLITE
    if stored.is_file():
        print(f"The capture: the recorded one, data/measured/{gpu}/04_nsight_systems/{SQLITE}; no run here has one.")
        return stored
    print(f"There is no capture: no run here has one, none is recorded of {gpu!r}; make profile makes one on a GPU.")
    return None
