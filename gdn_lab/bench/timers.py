"""Three timers. A row of results names the one it used; one that cannot run here refuses, none stands in for another.

    cuda_graph_replay   all calls of a variant in one CUDA graph, CUDA events around its replay: as an engine waits
    cupti_kernel        how long the kernels ran in replays of the same graph, from CUPTI through torch.profiler:
                        without the gaps between them
    host_clock          perf_counter_ns around plain calls: the CPU only

Compared variants are timed in turns in one process, so that drifting clocks and temperature meet them all alike.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import ceil

import numpy
import torch

TIMERS = ("cuda_graph_replay", "cupti_kernel", "host_clock")
MIN_SAMPLES = 10  # what even the slowest variant gets
_GPU_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}  # Kineto's names of what runs on the GPU in a graph


class TimerUnavailable(RuntimeError):
    """A timer cannot run here, or lost what it recorded; the message says why and what to use instead."""


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: median, 20th and 80th percentile of `count` samples.

    calls_per_sample: calls that one sample averages over (1 for cupti_kernel, which sees each call).
    """

    timer: str
    median_us: float
    p20_us: float
    p80_us: float
    count: int
    calls_per_sample: int


Calls = dict[str, Sequence[Callable[[], None]]]


def unavailable(timer: str, device) -> str | None:
    """Why `timer` cannot time work on `device`: one sentence, or None. ValueError if there is no such timer."""
    if timer not in TIMERS:
        raise ValueError(f"timer: {timer!r} is unknown; choose one of {', '.join(TIMERS)}")
    device = torch.device(device)
    if timer == "host_clock":
        if device.type == "cpu":
            return None
        return f"host_clock times the CPU, and calls on {device} return before they are done; use cuda_graph_replay"
    if device.type != "cuda":
        return f"{timer} needs a CUDA device; this is {device}, use host_clock"
    if not torch.cuda.is_available():
        return f"{timer} needs a CUDA device, and torch {torch.__version__} finds none here"
    return _cupti_refusal() if timer == "cupti_kernel" else None


def _cupti_refusal() -> str | None:
    if "NSYS_PROFILING_SESSION_ID" in os.environ:
        return (
            "cupti_kernel cannot run inside Nsight Systems, because CUPTI takes one subscriber; "
            "read the kernel times from the Nsight Systems report, or run without it"
        )
    if torch.profiler.ProfilerActivity.CUDA not in torch.profiler.supported_activities():
        return f"cupti_kernel needs a torch built with CUPTI; torch {torch.__version__} is not, use cuda_graph_replay"
    if torch.autograd._profiler_enabled():
        return "cupti_kernel cannot run while a torch profiler records, because CUPTI takes one subscriber; stop it"
    return None


def time_interleaved(
    calls: Calls, *, timer: str, device, samples: int = 50, warmup: int = 3, min_sample_us: float = 200.0,
    max_seconds: float = 2.0, progress=None,
) -> dict[str, Timing]:  # fmt: skip
    """Times variants against each other: {key: Timing}, keys and their order as in `calls`.

    calls: for each variant its calls, functions without arguments. For a cold cache each works on data of its own,
    all together several times the L2. They are called in order, many times over, and must not synchronise.
    timer: one of TIMERS. device: where the calls work.
    samples: for each variant, taken in turns: a, b, c, a, b, c, …; one that would need more than `max_seconds` for
    them takes fewer and drops out of the later turns, but never fewer than MIN_SAMPLES (or `samples`, if that is less).
    warmup: untimed turns before, at least 1. min_sample_us: a sample repeats all calls until it lasts this long.
    progress: anything with update(fraction); the fractions of one call of this function add up to 1.

    cupti_kernel takes each call of each replay for a sample, replays at least twice and at least `samples` calls, and
    counts copies and fills on the GPU as kernels. Where kernels overlap, the time they share counts once.

    Raises TimerUnavailable, RuntimeError naming the variant that fails, ValueError for what cannot be timed.
    """
    if reason := unavailable(timer, device):
        raise TimerUnavailable(reason)
    empty = [key for key, thunks in calls.items() if not thunks]
    if empty or not calls:
        raise ValueError(f"calls: expected at least one for each variant, got none for {', '.join(empty) or 'any'}")
    if samples < 1 or warmup < 1:
        raise ValueError(f"samples, warmup: expected at least 1, got {samples} and {warmup}")
    advance = progress.update if progress is not None else _ignore
    if timer == "host_clock":
        return _host_clock(calls, samples, warmup, min_sample_us, max_seconds, advance)
    with torch.cuda.device(device):
        if timer == "cupti_kernel":
            start_cupti()
        with _captured(calls) as graphs:
            sizes = {key: len(thunks) for key, thunks in calls.items()}
            if timer == "cupti_kernel":
                return _cupti_kernel(graphs, sizes, samples, warmup, advance)
            return _graph_replay(graphs, sizes, samples, warmup, min_sample_us, max_seconds, advance)


def _ignore(_fraction: float) -> None:
    pass


def timing_of(timer: str, samples_us, calls_per_sample: int) -> Timing:
    """The Timing of samples, in µs of one call each."""
    p20, median, p80 = (float(x) for x in numpy.percentile(samples_us, (20, 50, 80)))
    return Timing(timer, median, p20, p80, len(samples_us), calls_per_sample)


def _plan(once_us: float, samples: int, min_sample_us: float, max_seconds: float) -> tuple[int, int]:
    """(repeats of all calls in one sample, samples) for a variant whose calls together last once_us."""
    repeats = max(1, ceil(min_sample_us / max(once_us, 1e-3)))
    affordable = int(max_seconds * 1e6 / max(repeats * once_us, 1e-3))
    return repeats, min(samples, max(MIN_SAMPLES, affordable))


def _turns(plans: dict[str, tuple[int, int]]):
    """[key of each sample] of each turn: every variant once, until it has the samples it is planned for."""
    for turn in range(max(count for _, count in plans.values())):
        yield [key for key, (_, count) in plans.items() if turn < count]


# --- host clock


def _host_clock(calls: Calls, samples, warmup, min_sample_us, max_seconds, advance) -> dict[str, Timing]:
    plans = {}
    for key, thunks in calls.items():
        try:
            once_us = min(_host_sample_us(thunks, 1) for _ in range(warmup))
        except Exception as error:
            raise RuntimeError(f"{key} failed in warm-up: {type(error).__name__}: {error}") from error
        plans[key] = _plan(once_us, samples, min_sample_us, max_seconds)
    turns = list(_turns(plans))
    taken = {key: [] for key in calls}
    for turn in turns:
        for key in turn:
            per_sample = plans[key][0] * len(calls[key])
            taken[key].append(_host_sample_us(calls[key], plans[key][0]) / per_sample)
        advance(1 / len(turns))
    return {key: timing_of("host_clock", taken[key], plans[key][0] * len(calls[key])) for key in calls}


def _host_sample_us(thunks, repeats: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(repeats):
        for thunk in thunks:
            thunk()
    return (time.perf_counter_ns() - start) / 1e3


# --- CUDA graphs


@contextmanager
def _captured(calls: Calls):
    """{key: CUDAGraph of all its calls}, freed on leaving.

    The graphs share one memory pool: what a call allocates dies within its own graph, and graphs never run at once.
    """
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
    try:
        for key, thunks in calls.items():
            try:
                graphs[key] = _capture(thunks, stream, pool)
            except Exception as error:
                raise RuntimeError(
                    f"{key} cannot be captured in a CUDA graph: {type(error).__name__}: {error}"
                ) from error
        yield graphs
        torch.cuda.synchronize()
    finally:
        graphs.clear()  # nothing here may fail: after a failed capture the allocator may, and would hide the reason
    torch.cuda.empty_cache()


def _capture(thunks, stream, pool) -> torch.cuda.CUDAGraph:
    stream.wait_stream(torch.cuda.current_stream())
    # A failed capture leaves its own stream context open; this one puts the caller's stream back all the same.
    with torch.cuda.stream(stream):
        for thunk in thunks:  # eagerly once: compiles, and allocates what outlives a call
            thunk()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            for thunk in thunks:
                thunk()
    return graph


def _events_us(graph, repeats: int):
    """Enqueues `repeats` replays between two events; returns the pair."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    return start, end


def _graph_replay(graphs, sizes, samples, warmup, min_sample_us, max_seconds, advance) -> dict[str, Timing]:
    pairs = {}
    for _ in range(warmup):
        pairs = {key: _events_us(graph, 1) for key, graph in graphs.items()}
    torch.cuda.synchronize()
    plans = {
        key: _plan(start.elapsed_time(end) * 1e3, samples, min_sample_us, max_seconds)
        for key, (start, end) in pairs.items()
    }
    turns = list(_turns(plans))
    taken = {key: [] for key in graphs}
    # The GPU must never wait for the host, or the wait counts as the sample's. So one untimed sample runs ahead, and
    # the host waits only for the turn before the one it has just enqueued.
    last = list(graphs)[-1]
    before = _events_us(graphs[last], plans[last][0])
    for turn in turns:
        for key in turn:
            taken[key].append(_events_us(graphs[key], plans[key][0]))
        before[1].synchronize()
        before = taken[turn[-1]][-1]
        advance(1 / len(turns))
    torch.cuda.synchronize()
    timings = {}
    for key, events in taken.items():
        per_sample = plans[key][0] * sizes[key]
        timings[key] = timing_of(
            "cuda_graph_replay", [start.elapsed_time(end) * 1e3 / per_sample for start, end in events], per_sample
        )
    return timings


# --- CUPTI through Kineto
#
# What goes wrong in practice, and is met here. CUPTI misdates the first records of a profile, more with every profile
# of a process, and Kineto drops those (pytorch issue 192021): hence the lead-in of marker kernels, of which one
# must survive. The teardown after one profile may hit the next, which then sees no kernels (kineto pull request 1554):
# hence TEARDOWN_CUPTI=0. Whatever else is lost is an error: TimerUnavailable.

_LEAD_IN = 2000  # marker kernels at the start of a profile: 2 to 3 us each
_MARKER = "spin_kernel"  # what torch.cuda._sleep launches; no variant has a kernel of this name


@cache
def start_cupti() -> None:
    """One throwaway profile: the first one starts CUPTI, which takes seconds, before the graphs it is to see exist."""
    os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    _profiled_replays([lambda: torch.cuda._sleep(1)])


def lead_in() -> None:
    """Launches the marker kernels with which a profile begins, so that the records it loses are theirs."""
    for _ in range(_LEAD_IN):
        torch.cuda._sleep(1)


def is_marker(name: str) -> bool:
    """Whether a kernel of this name is one of lead_in()'s."""
    return _MARKER in name


def _profiled_replays(replays) -> list[tuple[str, int, int]]:
    """Runs the replays, a marker kernel after each, and returns (name, start, end) in ns of what ran on the GPU.

    In the order in which it started: kernels, copies and fills.
    """
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        lead_in()
        for replay in replays:
            replay()
            torch.cuda._sleep(1)
        torch.cuda.synchronize()
    events = [event for event in profile.profiler.kineto_results.events() if _is_gpu_work(event)]
    records = [(event.name(), event.start_ns(), event.start_ns() + event.duration_ns()) for event in events]
    return sorted(records, key=lambda record: record[1])


def _is_gpu_work(event) -> bool:
    if event.device_type() != torch.autograd.DeviceType.CUDA:
        return False
    activity = getattr(event, "activity_type", None)  # torch 2.12 and newer; before, only GPU work is of this device
    return activity is None or activity() in _GPU_WORK


def _split_at_markers(records) -> list[list[tuple[str, int, int]]]:
    """[(name, start, end) of each kernel] of each replay. TimerUnavailable if the lead-in did not survive."""
    if not records or not is_marker(records[0][0]):
        raise TimerUnavailable(
            f"CUPTI lost the first kernels of a recording ({len(records)} kernels arrived, none of the lead-in before "
            "the first replay): use cuda_graph_replay, or start a new process"
        )
    replays, current = [], []
    for record in records:
        if not is_marker(record[0]):
            current.append(record)
        elif current:
            replays.append(current)
            current = []
    return replays + [current] if current else replays


def busy_us(kernels: list[tuple[int, int]]) -> list[float]:
    """For each kernel, how much longer it kept the GPU busy than the kernels before it had already.

    That is its duration, unless it started before its predecessor had ended (programmatic dependent launch).
    """
    busy, until = [], 0
    for start, end in kernels:
        busy.append(max(0, end - max(start, until)) / 1e3)
        until = max(until, end)
    return busy


def trace_interleaved(calls: Calls, *, device, replays: int) -> dict[str, list[list[tuple[str, int, int]]]]:
    """What ran on the GPU in `replays` CUDA-graph replays of each variant, taken in turns.

    calls, device: as in time_interleaved(). {key: [[(name, start, end) of each kernel, copy and fill] of each replay]},
    in ns and in order of start. Raises TimerUnavailable where CUPTI cannot record or lost records.
    """
    if reason := unavailable("cupti_kernel", device):
        raise TimerUnavailable(reason)
    with torch.cuda.device(device):
        start_cupti()
        with _captured(calls) as graphs:
            for graph in graphs.values():
                graph.replay()
            order = list(graphs) * replays
            traced = {key: [] for key in graphs}
            for key, kernels in zip(order, _traced([graphs[key].replay for key in order]), strict=True):
                traced[key].append(kernels)
    return traced


def _traced(replays) -> list[list[tuple[str, int, int]]]:
    """[(name, start, end) of each kernel] of each of these replays; TimerUnavailable if records of some are lost."""
    found = _split_at_markers(_profiled_replays(replays))
    if len(found) != len(replays):
        raise TimerUnavailable(
            f"CUPTI recorded kernels of {len(found)} replays, expected {len(replays)}: it lost records; "
            "take fewer samples or use cuda_graph_replay"
        )
    return found


def _cupti_kernel(graphs, sizes, samples, warmup, advance) -> dict[str, Timing]:
    for _ in range(warmup):
        for graph in graphs.values():
            graph.replay()
    plans = {key: (1, max(2, ceil(samples / size))) for key, size in sizes.items()}
    order = [key for turn in _turns(plans) for key in turn]
    replays = _traced([graphs[key].replay for key in order])
    taken: dict[str, list[float]] = {key: [] for key in graphs}
    counts: dict[str, set[int]] = {key: set() for key in graphs}
    for key, kernels in zip(order, replays, strict=True):
        counts[key].add(len(kernels))
        if len(counts[key]) > 1 or len(kernels) % sizes[key]:
            raise TimerUnavailable(
                f"{key}: CUPTI recorded {' and '.join(map(str, sorted(counts[key])))} kernels in one replay of "
                f"{sizes[key]} calls, expected the same number for each call: it lost records, or the calls differ; "
                "take fewer samples or use cuda_graph_replay"
            )
        taken[key].extend(numpy.reshape(busy_us([kernel[1:] for kernel in kernels]), (sizes[key], -1)).sum(1))
    advance(1.0)
    return {key: timing_of("cupti_kernel", taken[key], 1) for key in graphs}
