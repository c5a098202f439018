"""What each rank of the sweep runs: check one variant at each point, time it, and print a row as JSON (rank 0)."""

import json
import time
from typing import NamedTuple

import torch
from torch import Tensor

from ...bench.timers import timing_of
from ...engine.communicator import Communicator
from ...engine.communicator_choice import ADD_NORM, SUM
from ...engine.communicator_connect import connect
from ...layer import layer_reference
from ...layer.fp8 import dequantize_rows
from ...layer.gdn_layer import Activation
from ...tolerances import E4M3, E4M3_SUBNORMAL, LAST_PLACE, sum_allowed

DTYPE = torch.bfloat16
KINDS = ("normal", "large", "cancelling")
SLEEP_CYCLES = 300_000  # of the GPU before a replay: the host has queued all of it when it begins
WARMUP = 3


class Point(NamedTuple):
    """One sum: x [rows, hidden] bf16, alone ("all_reduce") or with what follows it ("all_reduce_add_norm")."""

    operation: str
    rows: int
    hidden: int


def inputs(kind: str, point: Point, rank: int, seed: int, device) -> Tensor:
    """x of a rank: normal; of magnitudes from 2^-20 to 2^40; or a thousand times what remains of the sum."""

    def normal(which):
        generator = torch.Generator(device).manual_seed(1000 * seed + which)
        return torch.randn(point.rows, point.hidden, generator=generator, device=device)

    x = normal(rank)
    if kind == "large":
        x *= torch.exp2((10 * normal(rank + 100)).clamp(-20, 40).round())
    if kind == "cancelling":
        x += 1000 * (-1) ** rank * normal(200)
    return x.to(DTYPE)


class Operation:
    """A point's buffers on one rank; call() does it once."""

    def __init__(self, communicator: Communicator, point: Point, seed: int):
        self.communicator, self.point, self.seed, self.device = communicator, point, seed, communicator.device
        self.x = communicator.buffer(point.rows, point.hidden)
        self.residual = inputs("normal", point, 300, seed, self.device)
        self.weight = inputs("normal", point, 301, seed, self.device)[0].contiguous()
        self.residual_out = torch.empty_like(self.residual)
        self.made = Activation(point.rows, point.hidden, True, self.device)
        self.small = inputs("normal", point, communicator.rank, seed, self.device) * 1e-9  # sums of sums stay finite
        self.add_norm = layer_reference.add_norm
        if self.device.type == "cuda":
            from ...layer.kernels import elementwise

            self.add_norm = elementwise.add_norm

    def call(self) -> None:
        """Sum x, which may be overwritten; the result is in `result`."""
        if self.point.operation == SUM:
            self.result = self.communicator.all_reduce(self.x)
            return
        self.result = self.residual_out
        after = (self.residual, self.weight, self.residual_out, self.made.live)
        self.communicator.all_reduce_add_norm(self.x, *after, **self.made.quantized(), add_norm=self.add_norm)

    def error(self, kind: str, call) -> float:
        """The largest error of call() on inputs of a kind, in allowed errors: right if at most 1, on every rank."""
        size, device = self.communicator.size, self.device
        self.x.copy_(inputs(kind, self.point, self.communicator.rank, self.seed, device))
        call()
        terms = [inputs(kind, self.point, rank, self.seed, device) for rank in range(size)]
        terms += [self.residual] if self.point.operation == ADD_NORM else []
        expected, magnitudes = (sum(f(term.double()) for term in terms) for f in (torch.Tensor.double, torch.abs))
        errors = (self.result.double() - expected).abs() / sum_allowed(magnitudes, len(terms), DTYPE)
        found = [errors, *self._norm_errors()] if self.point.operation == ADD_NORM else [errors]
        worst = torch.stack([each.max() for each in found]).max().nan_to_num(float("inf")).item()  # max() keeps a NaN
        return worst if all(same == _digest(self.result) for same in self._all(_digest(self.result))) else float("inf")

    def _norm_errors(self) -> tuple[Tensor, Tensor]:
        """Of y against the norm of residual_out, and of FP8 against it, in allowed errors."""
        normed = layer_reference.rms_norm(self.residual_out, self.weight, torch.float64)
        y, (_, y8, scale) = self.made.live.double(), self.made.unpadded
        error = (y - normed).abs() / (2 * LAST_PLACE[DTYPE] * normed.abs() + 1e-30)
        scales = scale.double().repeat_interleave(128, 1)[:, : self.point.hidden]
        fp8 = (dequantize_rows(y8, scale).double() - normed).abs()
        allowed = (E4M3 + 2 * LAST_PLACE[DTYPE]) * normed.abs() + scales * E4M3_SUBNORMAL
        return error, fp8 / allowed

    def _all(self, value) -> list:
        """The value of every rank."""
        return [self.communicator.broadcast_object(value, rank) for rank in range(self.communicator.size)]

    # ---- times

    def slowest(self, calls: int, samples: int) -> list[float]:
        """µs of one call in each sample, of the rank that took longest."""
        times = self._replayed(calls, samples) if self.device.type == "cuda" else self._by_the_host(calls, samples)
        return [max(sample) for sample in zip(*self._all(times), strict=True)]

    def captured(self, calls: int) -> torch.cuda.CUDAGraph:
        """A CUDA graph of `calls` calls, one after the other."""
        torch.cuda.synchronize(self.device)
        self.communicator.barrier()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(calls):
                self.call()
        return graph

    def _replayed(self, calls: int, samples: int) -> list[float]:
        """The GPU sleeps while the host queues a call, in which ranks meet, and then the graph between two events."""
        graph, times = self.captured(calls), []
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(WARMUP + samples):
            self.x.copy_(self.small)
            torch.cuda._sleep(SLEEP_CYCLES)
            self.call()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3 / calls)
        return times[WARMUP:]

    def _by_the_host(self, calls: int, samples: int) -> list[float]:
        times = []
        for _ in range(1 + samples):
            self.x.copy_(self.small)
            self.communicator.barrier()
            start = time.perf_counter_ns()
            for _ in range(calls):
                self.call()
            times.append((time.perf_counter_ns() - start) / 1e3 / calls)
        return times[1:]


def _digest(x: Tensor) -> int:
    """A number that tells apart tensors of other bits."""
    bits = x.reshape(-1).view(torch.int16).long()
    return int((bits * (torch.arange(len(bits), device=x.device) % 65521 + 1)).sum())


def measure_point(operation: Operation, calls: int, samples: int) -> dict:
    """The fields of a checked and timed row; a variant that is wrong before its time or after it has no time."""
    on_gpu = operation.device.type == "cuda"
    errors = {kind: operation.error(kind, operation.call) for kind in KINDS}
    if on_gpu:
        graph = operation.captured(1)
        for turn in ("first replay", "second replay", "third replay"):
            errors[turn] = operation.error("normal", graph.replay)
    times = operation.slowest(calls, samples)
    errors["after timing"] = operation.error("cancelling", operation.call)
    wrong = [kind for kind, error in errors.items() if not error <= 1]
    if any(operation._all(bool(wrong))):
        where = ", ".join(f"{kind} ({errors[kind]:.2g} times what is allowed)" for kind in wrong) or "another rank"
        return {"status": "refused", "reason": f"wrong, so not timed: {where}"}
    timing = timing_of("cuda_graph_replay" if on_gpu else "host_clock", times, calls)
    return {
        "status": "fact",
        "timer": timing.timer,
        "median_us": timing.median_us,
        "p20_us": timing.p20_us,
        "p80_us": timing.p80_us,
        "count": timing.count,
        "calls_per_sample": calls,
        "error_of_allowed": max(operation._all(max(errors.values()))),
    }


def measure(communicator, variant: str, points: list[Point], *, calls: int, samples: int, seed: int) -> None:
    """Measure all points with one variant; rank 0 prints a row as JSON after each."""
    most = {"rows": max(point.rows for point in points), "hidden": max(point.hidden for point in points)}
    connected = connect(variant, communicator, **most)
    for point in points:
        try:
            fields = measure_point(Operation(connected, point, seed), calls, samples)
        except ValueError as error:  # the same refusal on every rank
            fields = {"status": "refused", "reason": str(error)}
        if communicator.rank == 0:
            print(json.dumps(point._asdict() | fields), flush=True)
