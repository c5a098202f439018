"""Three timers. A row of results names the one it used; one that cannot run here refuses, and no other replaces it.

    cuda_graph_replay   all calls of a variant in one CUDA graph, CUDA events around its replay: includes the gaps
                        between kernels, as an engine sees them
    cupti_kernel        how long the kernels ran in replays of the same graph (cupti.py): without the gaps
    host_clock          perf_counter_ns around plain calls: the CPU only

Variants are interleaved in one process (a, b, c, a, b, c, …), so drift of clocks and temperature affects all equally.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil

import numpy
import torch

from .. import clock
from . import clocks, cupti
from .cupti import Record, TimerUnavailable

TIMERS = ("cuda_graph_replay", "cupti_kernel", "host_clock")
MIN_SAMPLES = 10  # of each variant, however slow it is

Calls = dict[str, Sequence[Callable[[], None]]]


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: median, 20th and 80th percentile of `count` samples.

    calls_per_sample: calls that one sample averages over (1 for cupti_kernel, which sees each call). kernels: launched
    by one call, copies and fills included; only cupti_kernel knows.
    """

    timer: str
    median_us: float
    p20_us: float
    p80_us: float
    count: int
    calls_per_sample: int
    kernels: int | None = None


def unavailable(timer: str, device) -> str | None:
    """Say in one sentence why `timer` cannot time work on `device`, or return None. ValueError for an unknown timer."""
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
    return cupti.refusal() if timer == "cupti_kernel" else None


def time_interleaved(
    calls: Calls,
    *,
    timer: str,
    device,
    samples: int = 50,
    warmup: int = 3,
    min_sample_us: float = 200.0,
    max_seconds: float = 2.0,
    progress: Callable[[float], None] | None = None,
    refresh: Callable[[], None] | None = None,
    after: Callable[[dict[str, Callable[[], None]]], None] | None = None,
) -> dict[str, Timing]:
    """Time variants against each other: {key: Timing}, keys and their order as in `calls`.

    calls: for each variant its calls, functions without arguments that must not synchronise. They run in order, many
    times over. For a cold cache each works on data of its own, all together several times the L2.
    timer: one of TIMERS. device: where the calls work.
    samples: of each variant, interleaved: a, b, c, a, b, c, … A variant that would need more than `max_seconds` for
    them takes fewer, and drops out of the later turns, but takes no fewer than MIN_SAMPLES (or `samples`, if less).
    warmup: untimed turns before, at least 1. min_sample_us: a sample repeats all calls until it lasts this long.
    progress: called with fractions that add up to 1.
    refresh: called before each sample, and not timed: puts new values into what the calls read. cupti_kernel, which
    would count what it launches, calls it once before its replays.
    after: called last with a function for each variant that runs all its calls once, on a GPU the very graph timed.

    cupti_kernel takes each call of each replay as a sample, replays at least twice and at least `samples` calls, and
    counts copies and fills on the GPU as kernels. Where kernels overlap, the time they share counts once.

    Raises TimerUnavailable, RuntimeError naming the variant that fails, ValueError for calls or counts out of range.
    """
    if reason := unavailable(timer, device):
        raise TimerUnavailable(reason)
    empty = [key for key, thunks in calls.items() if not thunks]
    if empty or not calls:
        raise ValueError(f"calls: expected at least one for each variant, got none for {', '.join(empty) or 'any'}")
    if samples < 1 or warmup < 1:
        raise ValueError(f"samples, warmup: expected at least 1, got {samples} and {warmup}")
    advance, refresh, after = progress or _ignore, refresh or _nothing, after or _ignore
    if timer == "host_clock":
        timings = _host_clock(calls, samples, warmup, min_sample_us, max_seconds, advance, refresh)
        after({key: partial(_run_all, thunks) for key, thunks in calls.items()})
        return timings
    with torch.cuda.device(device):
        if timer == "cupti_kernel":
            cupti.start_cupti()
        with _captured(calls) as graphs:
            sizes = {key: len(thunks) for key, thunks in calls.items()}
            with clocks.sampled(device):
                if timer == "cupti_kernel":
                    refresh()
                    timings = _cupti_kernel(graphs, sizes, samples, warmup, advance)
                else:
                    options = (samples, warmup, min_sample_us, max_seconds, advance, refresh)
                    timings = _graph_replay(graphs, sizes, *options)
            after({key: partial(clock.replay, graph) for key, graph in graphs.items()})
            return timings


def trace_interleaved(calls: Calls, *, device, replays: int) -> dict[str, list[list[Record]]]:
    """Record what runs on the GPU in `replays` CUDA-graph replays of each variant, interleaved.

    calls, device: as in time_interleaved(). Returns {key: [records of each replay]}: kernels, copies and fills as
    (name, start, end) in ns, in order of start. Raises TimerUnavailable where CUPTI cannot record or lost records.
    """
    if reason := unavailable("cupti_kernel", device):
        raise TimerUnavailable(reason)
    with torch.cuda.device(device):
        cupti.start_cupti()
        with _captured(calls) as graphs:
            for graph in graphs.values():
                graph.replay()
            order = list(graphs) * replays
            traces = {key: [] for key in graphs}
            recorded = cupti.record_replays([graphs[key].replay for key in order])
            for key, records in zip(order, recorded, strict=True):
                traces[key].append(records)
    return traces


def _ignore(_) -> None:
    pass


def _nothing() -> None:
    pass


def _run_all(thunks) -> None:
    for thunk in thunks:
        thunk()


def timing_of(timer: str, samples_us, calls_per_sample: int, kernels: int | None = None) -> Timing:
    """Summarise samples, in µs of one call each, as a Timing."""
    p20, median, p80 = (float(x) for x in numpy.percentile(samples_us, (20, 50, 80)))
    return Timing(timer, median, p20, p80, len(samples_us), calls_per_sample, kernels)


def _plan(once_us: float, samples: int, min_sample_us: float, max_seconds: float) -> tuple[int, int]:
    """(repeats of all calls in one sample, samples) of a variant whose calls together take once_us."""
    repeats = max(1, ceil(min_sample_us / max(once_us, 1e-3)))
    affordable = int(max_seconds * 1e6 / max(repeats * once_us, 1e-3))
    return repeats, min(samples, max(MIN_SAMPLES, affordable))


def _turns(plans: dict[str, tuple[int, int]]):
    """Yield the keys of each turn: every variant once, until it has the samples it is planned for."""
    for turn in range(max(count for _, count in plans.values())):
        yield [key for key, (_, count) in plans.items() if turn < count]


# --- host clock


def _host_clock(calls: Calls, samples, warmup, min_sample_us, max_seconds, advance, refresh) -> dict[str, Timing]:
    plans = {}
    for key, thunks in calls.items():
        try:
            once_us = min(_host_sample_us(thunks, 1) for _ in range(warmup))
        except Exception as error:
            raise RuntimeError(f"{key} failed in warm-up: {type(error).__name__}: {error}") from error
        plans[key] = _plan(once_us, samples, min_sample_us, max_seconds)
    turns = list(_turns(plans))
    sampled = {key: [] for key in calls}
    for turn in turns:
        for key in turn:
            per_sample = plans[key][0] * len(calls[key])
            refresh()
            sampled[key].append(_host_sample_us(calls[key], plans[key][0]) / per_sample)
        advance(1 / len(turns))
    return {key: timing_of("host_clock", sampled[key], plans[key][0] * len(calls[key])) for key in calls}


def _host_sample_us(thunks, repeats: int) -> float:
    start = clock.perf_counter_ns()
    for _ in range(repeats):
        for thunk in thunks:
            thunk()
    return (clock.perf_counter_ns() - start) / 1e3


# --- CUDA graphs


@contextmanager
def _captured(calls: Calls):
    """Yield {key: CUDAGraph of all its calls}, and free the graphs on leaving.

    The graphs share one memory pool: what a call allocates is freed within its own graph, and graphs never run at once.
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
        graphs.clear()  # nothing here may raise: after a failed capture the allocator can, and would hide the reason
    torch.cuda.empty_cache()


def _capture(thunks, stream, pool) -> torch.cuda.CUDAGraph:
    stream.wait_stream(torch.cuda.current_stream())
    # A failed graph capture leaves its own stream context open; this one restores the caller's stream even then.
    with torch.cuda.stream(stream):
        for thunk in thunks:  # once eagerly: compiles, and allocates what outlives a call
            thunk()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            for thunk in thunks:
                thunk()
    return graph


def _events_us(graph, repeats: int):
    """Enqueue `repeats` replays between two events, and return the pair."""
    start, end = clock.Event(enable_timing=True), clock.Event(enable_timing=True)
    clock.record(start)
    for _ in range(repeats):
        clock.replay(graph)
    clock.record(end)
    return start, end


def _graph_replay(graphs, sizes, samples, warmup, min_sample_us, max_seconds, advance, refresh) -> dict[str, Timing]:
    pairs = {}
    for _ in range(warmup):
        pairs = {key: _events_us(graph, 1) for key, graph in graphs.items()}
    clock.synchronize()
    plans = {
        key: _plan(clock.elapsed_ms(start, end) * 1e3, samples, min_sample_us, max_seconds)
        for key, (start, end) in pairs.items()
    }
    turns = list(_turns(plans))
    sampled = {key: [] for key in graphs}
    # The GPU must never wait for the host, or the wait would count. So one untimed sample runs ahead, and the host
    # waits only for the turn before the one it has just enqueued.
    last = list(graphs)[-1]
    before = _events_us(graphs[last], plans[last][0])
    for turn in turns:
        for key in turn:
            refresh()
            sampled[key].append(_events_us(graphs[key], plans[key][0]))
        clock.synchronize_event(before[1])
        before = sampled[turn[-1]][-1]
        advance(1 / len(turns))
    clock.synchronize()
    timings = {}
    for key, events in sampled.items():
        per_sample = plans[key][0] * sizes[key]
        timings[key] = timing_of(
            "cuda_graph_replay", [clock.elapsed_ms(start, end) * 1e3 / per_sample for start, end in events], per_sample
        )
    return timings


# --- CUPTI


def _cupti_kernel(graphs, sizes, samples, warmup, advance) -> dict[str, Timing]:
    for _ in range(warmup):
        for graph in graphs.values():
            graph.replay()
    plans = {key: (1, max(2, ceil(samples / size))) for key, size in sizes.items()}
    order = [key for turn in _turns(plans) for key in turn]
    replays = cupti.record_replays([graphs[key].replay for key in order])
    sampled: dict[str, list[float]] = {key: [] for key in graphs}
    counts: dict[str, set[int]] = {key: set() for key in graphs}
    for key, records in zip(order, replays, strict=True):
        counts[key].add(len(records))
        if len(counts[key]) > 1 or len(records) % sizes[key]:
            raise TimerUnavailable(
                f"{key}: CUPTI recorded {' and '.join(map(str, sorted(counts[key])))} kernels in one replay of "
                f"{sizes[key]} calls, expected the same number for each call: it lost records, or the calls differ; "
                "take fewer samples or use cuda_graph_replay"
            )
        busy = cupti.busy_us([record[1:] for record in records])
        sampled[key].extend(numpy.reshape(busy, (sizes[key], -1)).sum(1))
    advance(1.0)
    return {key: timing_of("cupti_kernel", sampled[key], 1, counts[key].pop() // sizes[key]) for key in graphs}
