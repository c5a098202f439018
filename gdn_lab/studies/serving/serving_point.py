"""What the sweep does besides serving runs: times of a step's parts and of the GDN kernel alone, a toy's check."""

from functools import partial

import torch

from ... import ops
from ...bench.timers import time_interleaved
from ...engine.serve import serve
from ...layer.configurations import configuration
from .plan import Job
from .serving_rows import CHECK, GDN_KERNEL, PART

KERNEL_SAMPLES = {"cuda": 20, "cpu": 1}


def part_rows(model, job: Job, p) -> list[dict]:
    """Times of the parts of a decode step with all requests half-way, and of the GDN kernel alone; rows "part"."""
    if job.draft_tokens:
        return []
    length = p.input_tokens + p.output_tokens // 2
    parts = model.time_parts(job.concurrency, length)
    kernel = {"part": GDN_KERNEL, "us": kernel_us(model, job, p.seed), "count": len(model.pools)}
    return [{"type": PART, "length": length} | row for row in [*parts, kernel]]


def check_row(model, requests, concurrency: int) -> dict:
    """How many requests get the tokens that they get when served alone; a row of type "check".

    Exact where the batch does not change a sum's order, as on a CPU at toy size.
    """
    together, alone = (serve(model, requests, count).tokens for count in (concurrency, 1))
    return {
        "type": CHECK,
        "requests": len(requests),
        "alike": sum(together[one.id] == alone[one.id] for one in requests),
    }


def kernel_us(model, job: Job, seed: int) -> float:
    """Median µs of the GDN kernel alone at the job's concurrency, on the state pools of all layers in turn."""
    device = model.buffers.tokens.device
    x = ops.make_inputs(model.pools[0].shape, job.concurrency, device=device, seed=seed)
    slots = torch.arange(1, job.concurrency + 1, dtype=torch.int32, device=device)
    out = torch.empty(x.v.shape, dtype=x.v.dtype, device=device)
    options = x.gates() | {"indices": slots, "backend": configuration(job.configuration).gdn, "out": out}
    calls = [partial(ops.decode, *x.arguments(), pool=pool, **options) for pool in model.pools]
    on_gpu = device.type == "cuda"
    timings = time_interleaved(
        {job.configuration: calls},
        timer="cuda_graph_replay" if on_gpu else "host_clock",
        device=device,
        samples=KERNEL_SAMPLES[device.type],
        warmup=3 if on_gpu else 1,
        min_sample_us=0.0,
    )
    return timings[job.configuration].median_us
