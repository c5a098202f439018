"""What one decode call launches on a GPU: each kernel's grid, block, registers, shared memory and occupancy.

CUPTI knows them of every kernel, whatever it is written in; the trace that torch.profiler exports holds them.
"""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from .. import ops
from ..backends.registry import variant
from ..bench import cupti
from ..models import GDNShape
from ..pool import StatePool

WARM_UP = 3


class Launched(NamedTuple):
    """One kernel of a call. occupancy: of the warps that an SM can hold, as CUPTI estimates it; None: not said."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    registers: int
    shared_bytes: int
    occupancy: float | None


def one_call(name: str, shape: GDNShape, batch: int, dtype: torch.dtype, device):
    """Return a function that makes one decode call of a kernel on a pool of its own."""
    record = variant(name)
    pool = StatePool(shape, batch + 1, layout=record.layout, dtype=dtype, device=device)
    pool.state.normal_()
    inputs = ops.make_inputs(shape, batch, device=device)
    if not record.normalises:
        ops.normalised(inputs)
    indices, out = pool.acquire(batch), torch.empty_like(inputs.v, memory_format=torch.contiguous_format)
    options = {"pool": pool, "indices": indices, "backend": name, "out": out, "use_qk_l2norm": record.normalises}

    def call():
        ops.decode(*inputs.arguments(), **inputs.gates(), **options)

    return call


def launched(call) -> list[Launched]:
    """Return what a call launches, in order. Raises TimerUnavailable where CUPTI cannot record."""
    if reason := cupti.refusal():
        raise cupti.TimerUnavailable(reason)
    cupti.start_cupti()
    for _ in range(WARM_UP):
        call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        cupti.lead_in()
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return kernels_of(json.loads(path.read_text(encoding="utf-8")))


def kernels_of(trace: dict) -> list[Launched]:
    """Return the kernels of an exported trace, without the markers, in order of start."""
    events = [event for event in trace["traceEvents"] if event.get("cat") == "kernel"]
    events = sorted((event for event in events if not cupti.is_marker(event["name"])), key=lambda event: event["ts"])
    return [_launched(event["name"], event["args"]) for event in events]


def _launched(name: str, args: dict) -> Launched:
    occupancy = args.get("est. achieved occupancy %")
    return Launched(
        name,
        tuple(args["grid"]),
        tuple(args["block"]),
        args["registers per thread"],
        args["shared memory"],
        None if occupancy is None else occupancy / 100,
    )
