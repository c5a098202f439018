"""A step taken apart: how long each part keeps the device busy, and for how long nothing runs.

On a GPU: the kernels of a CUDA graph carry no range. So an eager run, recorded by Kineto, says which part each kernel
of the step belongs to, and graph replays, recorded by CUPTI, say how long it runs: the i-th kernel of a replay is the
i-th of the eager run (profiling/positions.py). Time in which kernels overlap, as with programmatic dependent launch,
counts for the one that began first: a kernel counts from when those before it have all ended. So parts and gaps add up
to the replay, from its first kernel's start to its last one's end.
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
WHOLE, GAPS, TRACED = "step", "gaps", "traced step"  # what rows call the whole, and what it has beside its parts
ALL_REDUCE = "all-reduce"  # what one GPU leaves out
OTHER = "outside the parts"  # kernels whose launch no part encloses
MOST_REPLAYS = 60  # recorded of each configuration: 60 replays of 4 layers of 30 kernels are 7,200 records

Steps = dict[str, list]  # of each configuration the steps of several layers, which are its calls


class Taken(NamedTuple):
    """parts: the Timing of each part, GAPS and TRACED, µs of one step. kernels: how many each has, TRACED all."""

    parts: dict[str, Timing]
    kernels: dict[str, int]


def take_apart(steps: Steps, device, samples: int) -> dict[str, Taken]:
    """{configuration: Taken} of `samples` replays, at most MOST_REPLAYS, taken in turns; on a CPU of eager steps.

    TimerUnavailable, one sentence, where CUPTI cannot record (inside Nsight Systems), or lost or mixed up records.
    """
    if torch.device(device).type == "cpu":
        return _on_the_host(steps, min(samples, MOST_REPLAYS))
    if reason := unavailable(PARTS_TIMER, device):
        raise TimerUnavailable(reason)
    start_cupti()
    eager = {name: kernels_of_parts(of[0]) for name, of in steps.items()}
    traced = trace_interleaved(steps, device=device, replays=min(samples, MOST_REPLAYS))
    taken = {}
    for name, replays in traced.items():
        named = [[(_plain(kernel), start, end) for kernel, start, end in replay] for replay in replays]
        try:
            in_parts = parts_of_replays(eager[name], named)
        except ValueError as error:
            raise TimerUnavailable(f"{name}: {error}") from error
        taken[name] = _taken(in_parts, len(steps[name]), eager[name])
    return taken


def kernels_of_parts(step) -> list[tuple[str, str]]:
    """(kernel, part) of all that one eager run of `step` launches, in order; OTHER where no part encloses a launch."""
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
    found = [
        (_plain(name), _part(path, step.parts))
        for name, path in zip(names, kernels["path"].astype(str), strict=True)
        if not is_marker(name)
    ]
    if not any(part != OTHER for _, part in found):
        raise TimerUnavailable("Kineto recorded kernels of an eager step, but none of them within its parts")
    return found


def _plain(kernel: str) -> str:
    """A name as traces and profiles both have it: traces change backslashes, and name a copy by its direction alone."""
    if kernel.startswith(("Memcpy", "Memset")):
        return re.sub(r"\s*\(.*", "", kernel)
    return kernel.replace("\\", "/").replace("\n", "")


def _part(path: str, parts) -> str:
    """The innermost range of a path that is a part."""
    return next((name for name in reversed(path.split(" / ")) if name in parts), OTHER)


def _taken(replays, layers: int, eager) -> Taken:
    """replays: [[(part, start, end) in ns of each kernel, in order of start]]."""
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
    timings = {part: timing_of(PARTS_TIMER, of, layers) for part, of in samples.items()}
    return Taken(timings, counts | {TRACED: len(eager)})


def _on_the_host(steps: Steps, samples: int) -> dict[str, Taken]:
    """By the host's clock, part by part, in turns; gaps: what lies between the parts."""
    taken = {name: [] for name in steps}
    for turn in range(samples + 1):  # the first one warms up
        for name, of in steps.items():
            sums = [_host_sums(step) for step in of]
            if turn:
                taken[name] += sums
    return {
        name: Taken({part: timing_of(CPU_TIMER, [sums[part] for sums in of], 1) for part in of[0]}, {})
        for name, of in taken.items()
    }


def _host_sums(step) -> dict[str, float]:
    """{part: µs} of one run, with GAPS and TRACED."""
    sums, start = {}, time.perf_counter_ns()
    for part, do in step.work:
        began = time.perf_counter_ns()
        do()
        sums[part] = (time.perf_counter_ns() - began) / 1e3
    whole = (time.perf_counter_ns() - start) / 1e3
    return sums | {GAPS: whole - sum(sums.values()), TRACED: whole}


def eager_interleaved(steps: Steps, samples: int) -> dict[str, Timing]:
    """{configuration: Timing} of steps launched kernel by kernel, in turns, by the events between two samples.

    Nothing waits for the GPU between them. Where launching takes longer than running, this is the time of launching.
    """
    taken = {name: [] for name in steps}
    with torch.cuda.device(next(iter(steps.values()))[0].out.device):
        for turn in range(samples + 1):  # the first one warms up
            for name, of in steps.items():
                events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                events[0].record()
                for step in of:
                    step()
                events[1].record()
                if turn:
                    taken[name].append(events)
        torch.cuda.synchronize()
    return {
        name: timing_of(EAGER_TIMER, [a.elapsed_time(b) * 1e3 / len(steps[name]) for a, b in events], len(steps[name]))
        for name, events in taken.items()
    }
