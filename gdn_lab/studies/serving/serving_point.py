"""What the sweep times besides serving runs: parts of a decode step, and the GDN kernel alone."""

from functools import partial

import torch

from ... import ops
from ...bench.timers import time_interleaved
from ...layer.configurations import configuration
from .plan import Job
from .serving_rows import GDN_KERNEL, PART

KERNEL_SAMPLES = {"cuda": 20, "cpu": 1}


def part_rows(model, job: Job, p) -> list[dict]:
    """Times of the parts of a decode step with all requests half-way, and of the GDN kernel alone; rows "part"."""
    if job.draft_tokens:
        return []
    length = p.input_tokens + p.output_tokens // 2
    parts = model.time_parts(job.concurrency, length)
    kernel = {"part": GDN_KERNEL, "us": kernel_us(model, job, p.seed), "count": len(model.pools)}
    return [{"type": PART, "length": length} | row for row in [*parts, kernel]]


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
