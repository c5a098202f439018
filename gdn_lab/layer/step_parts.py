"""How long each part of a step keeps the device busy, and for how long nothing runs.

On a GPU, kernels of a CUDA graph carry no range. So Kineto records an eager run, which tells which part each kernel of
the step belongs to, and CUPTI records graph replays, which tell how long it runs: the i-th kernel of a replay is the
i-th of the eager run (trace/positions.py). Where kernels overlap, as with programmatic dependent launch (PDL), the time
counts for the one that began first: a kernel counts from when all before it have ended. So parts and gaps add up to the
replay, from its first kernel's start to its last one's end.
"""

import re
import time
from typing import NamedTuple

import torch

from ..bench.cupti import TimerUnavailable, busy_us, is_marker, lead_in, start_cupti
from ..bench.timers import Timing, timing_of, trace_interleaved, unavailable
from ..trace import kineto
from ..trace.positions import parts_of_replays

GRAPH_TIMER, EAGER_TIMER = "cuda_graph_replay", "cuda_events_eager"
PARTS_TIMER, CPU_TIMER = "cupti_kernel", "host_clock"
WHOLE, GAPS, TRACED = "step", "gaps", "traced step"  # parts in rows that are not parts of a step
ALL_REDUCE = "all-reduce"  # what one GPU cannot run
OTHER = "outside the parts"  # kernels whose launch no part encloses
MAX_REPLAYS = 60  # of each configuration: 60 replays of 4 layers of 30 kernels are 7,200 records

Steps = dict[str, list]  # {configuration: the steps of several layers}


class PartTimes(NamedTuple):
    """parts: {part, GAPS or TRACED: Timing}, µs of one step. kernels: {part or TRACED: number of kernels}."""

    parts: dict[str, Timing]
    kernels: dict[str, int]


def measure_parts(steps: Steps, device, samples: int) -> dict[str, PartTimes]:
    """Time the parts of each configuration's step over `samples` replays, at most MAX_REPLAYS, interleaved.

    On a CPU over eager runs. TimerUnavailable, one sentence, where CUPTI cannot record (inside Nsight Systems), or lost
    or mixed up records.
    """
    if torch.device(device).type == "cpu":
        return _on_host(steps, min(samples, MAX_REPLAYS))
    if reason := unavailable(PARTS_TIMER, device):
        raise TimerUnavailable(reason)
    start_cupti()
    eager = {name: kernels_of_parts(layers[0]) for name, layers in steps.items()}
    traced = trace_interleaved(steps, device=device, replays=min(samples, MAX_REPLAYS))
    measured = {}
    for name, replays in traced.items():
        named = [[(_plain(kernel), start, end) for kernel, start, end in replay] for replay in replays]
        try:
            in_parts = parts_of_replays(eager[name], named)
        except ValueError as error:
            raise TimerUnavailable(f"{name}: {error}") from error
        measured[name] = _part_times(in_parts, len(steps[name]), eager[name])
    return measured


def kernels_of_parts(step) -> list[tuple[str, str]]:
    """Run `step` eagerly; return (kernel, part) of each kernel in launch order, OTHER where no part encloses it."""
    step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        lead_in()
        step()
        torch.cuda.synchronize()
    try:
        kernels = kineto.read(profile).kernels
    except ValueError as error:
        raise TimerUnavailable(f"Kineto recorded nothing of an eager step: {error}") from error
    names = kernels["name"].astype(str).tolist()
    if not is_marker(names[0]):
        raise TimerUnavailable("CUPTI lost the first kernels of an eager step; start a new process")
    in_parts = [
        (_plain(name), _part(path, step.parts))
        for name, path in zip(names, kernels["path"].astype(str), strict=True)
        if not is_marker(name)
    ]
    if not any(part != OTHER for _, part in in_parts):
        raise TimerUnavailable("Kineto recorded kernels of an eager step, but none of them within its parts")
    return in_parts


def _plain(kernel: str) -> str:
    """A kernel's name as traces and profiles both have it: traces change backslashes and shorten names of copies."""
    if kernel.startswith(("Memcpy", "Memset")):
        return re.sub(r"\s*\(.*", "", kernel)
    return kernel.replace("\\", "/").replace("\n", "")


def _part(path: str, parts) -> str:
    """The innermost range of a path that is a part."""
    return next((name for name in reversed(path.split(" / ")) if name in parts), OTHER)


def _part_times(replays, layers: int, eager) -> PartTimes:
    """replays: for each replay [(part, start, end) of each kernel], ns, in order of start."""
    samples = {}
    for replay in replays:
        sums = dict.fromkeys([part for _, part in eager], 0.0)
        for (part, _, _), us in zip(replay, busy_us([kernel[1:] for kernel in replay]), strict=True):
            sums[part] += us
        whole = (max(end for _, _, end in replay) - replay[0][1]) / 1e3
        sums |= {GAPS: max(0.0, whole - sum(sums.values())), TRACED: whole}
        for part, us in sums.items():
            samples.setdefault(part, []).append(us / layers)
    counts = {part: sum(other == part for _, other in eager) for part in samples if part not in (GAPS, TRACED)}
    timings = {part: timing_of(PARTS_TIMER, times, layers) for part, times in samples.items()}
    return PartTimes(timings, counts | {TRACED: len(eager)})


def _on_host(steps: Steps, samples: int) -> dict[str, PartTimes]:
    """Time part by part with the host's clock, interleaved; gaps: the time between the parts."""
    samples_of = {name: [] for name in steps}
    for turn in range(samples + 1):  # the first one warms up
        for name, layers in steps.items():
            times = [_host_times(step) for step in layers]
            if turn:
                samples_of[name] += times
    return {
        name: PartTimes({part: timing_of(CPU_TIMER, [run[part] for run in runs], 1) for part in runs[0]}, kernels={})
        for name, runs in samples_of.items()
    }


def _host_times(step) -> dict[str, float]:
    """{part: µs} of one run, with GAPS and TRACED."""
    times, start = {}, time.perf_counter_ns()
    for part, run in step.stages:
        began = time.perf_counter_ns()
        run()
        times[part] = (time.perf_counter_ns() - began) / 1e3
    whole = (time.perf_counter_ns() - start) / 1e3
    return times | {GAPS: whole - sum(times.values()), TRACED: whole}


def eager_interleaved(steps: Steps, samples: int) -> dict[str, Timing]:
    """Time each configuration's step launched kernel by kernel, interleaved, by CUDA events around each sample.

    Nothing waits for the GPU between samples, so where launching takes longer than running, this is launch overhead.
    """
    events_of = {name: [] for name in steps}
    with torch.cuda.device(next(iter(steps.values()))[0].out.device):
        for turn in range(samples + 1):  # the first one warms up
            for name, layers in steps.items():
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                for step in layers:
                    step()
                end.record()
                if turn:
                    events_of[name].append((start, end))
        torch.cuda.synchronize()
    timings = {}
    for name, events in events_of.items():
        layers = len(steps[name])
        samples_us = [start.elapsed_time(end) * 1e3 / layers for start, end in events]
        timings[name] = timing_of(EAGER_TIMER, samples_us, layers)
    return timings
