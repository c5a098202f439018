"""Metrics of a serving run, defined as vLLM's, SGLang's and InferenceX's benchmarks define them.

All take the rows of one run. A row of type "request" has input_tokens, output_tokens, arrival_s, first_token_s,
finished_s and, for each chunk of tokens that the client received, chunk_s (when) and chunk_tokens (how many). A row of
type "step" has kind ("prefill", "decode", "verify" or "mixed"), batch, tokens, gpu_us, start_s and end_s. Times are
seconds since the run began. Requests that were refused or interrupted must be left out; summary() does.

Words: E2E latency = finished_s - arrival_s. TTFT (time to first token) = first_token_s - arrival_s. TPOT (time per
output token) is of a request, ITL (inter-token latency) of a gap. Where a chunk has one token they have the same mean
but for weighting; with speculative decoding a chunk has several, and ITL per chunk exceeds TPOT.
"""

import numpy as np

PERCENTILES = (50, 90, 99)
FINISHED = "finished"
DECODES = ("decode", "verify")


def output_throughput(requests, wall_s: float) -> float:
    """Output tokens per second: Σ output_tokens / wall_s; wall_s includes prefill, ramp and drain (vLLM, SGLang)."""
    return sum(row["output_tokens"] for row in requests) / wall_s


def total_throughput(requests, wall_s: float) -> float:
    """Tokens per second, in and out: Σ (input_tokens + output_tokens) / wall_s (vLLM, SGLang)."""
    return sum(row["input_tokens"] + row["output_tokens"] for row in requests) / wall_s


def tpots_ms(requests) -> np.ndarray:
    """TPOT of each request, ms: (E2E - TTFT) / (output_tokens - 1); requests of one token have none (vLLM, SGLang)."""
    return np.array(
        [
            1e3 * (row["finished_s"] - row["first_token_s"]) / (row["output_tokens"] - 1)
            for row in requests
            if row["output_tokens"] > 1
        ]
    )


def ttfts_ms(requests) -> np.ndarray:
    """TTFT of each request, ms: first_token_s - arrival_s, so waiting for a slot counts (vLLM, SGLang)."""
    return np.array([1e3 * (row["first_token_s"] - row["arrival_s"]) for row in requests])


def itls_chunk_ms(requests) -> np.ndarray:
    """Every gap between two chunks of one request, ms, pooled over requests (vLLM's ITL)."""
    gaps = [np.diff(row["chunk_s"]) for row in requests]
    return 1e3 * np.concatenate(gaps) if gaps else np.array([])


def itls_token_ms(requests) -> np.ndarray:
    """Every such gap divided by the tokens of the chunk that ends it, once for each token (SGLang's ITL), ms."""
    found = [np.repeat(np.diff(row["chunk_s"]) / row["chunk_tokens"][1:], row["chunk_tokens"][1:]) for row in requests]
    return 1e3 * np.concatenate(found) if found else np.array([])


def tokens_per_s_user(tpot_ms: float) -> float:
    """Tokens per second that one user sees: 1000 / mean TPOT in ms (InferenceX's interactivity)."""
    return 1e3 / tpot_ms


def steps_of(steps, kinds=DECODES) -> list[dict]:
    """The steps of some kinds."""
    return [step for step in steps if step["kind"] in kinds]


def tokens_per_step(steps) -> float:
    """Tokens that one request gets from a decode or verify step: Σ tokens / Σ batch; 1 without speculation."""
    own = steps_of(steps)
    return sum(step["tokens"] for step in own) / sum(step["batch"] for step in own)


def host_gaps_us(steps) -> np.ndarray:
    """Idle GPU time before each decode or verify step, µs: its start_s less the end_s of the step before it."""
    pairs = zip(steps, steps[1:], strict=False)
    return np.array([1e6 * (after["start_s"] - before["end_s"]) for before, after in pairs if after["kind"] in DECODES])


def gap_share(steps) -> float:
    """Idle time between steps as a share: Σ gaps before decode steps / (Σ gaps + Σ gpu_us of decode steps)."""
    gaps, busy = host_gaps_us(steps).sum(), sum(step["gpu_us"] for step in steps_of(steps))
    return float(gaps / (gaps + busy))


def prefill_share(steps, wall_s: float) -> float:
    """Share of the run in which the GPU worked on prompts: Σ gpu_us of prefill and mixed steps / wall_s."""
    return sum(step["gpu_us"] for step in steps_of(steps, ("prefill", "mixed"))) / 1e6 / wall_s


def joules_per_token(joules: float | None, requests) -> float | None:
    """Energy of all GPUs of the run over Σ output_tokens, J; None where no GPU reported its energy."""
    return None if joules is None else joules / sum(row["output_tokens"] for row in requests)


def summary(requests, steps, wall_s: float, *, gpus: int = 1, joules: float | None = None) -> dict:
    """All metrics of one run, {name_unit: number}; requests that did not finish count in `requests_unfinished` alone.

    gpus: that ran. Latencies are means, with p50, p90 and p99 (linear between ranks, as numpy and both benchmarks
    do). None where nothing was measured: TPOT and ITL of answers of one token, steps without decode.
    """
    done = [row for row in requests if row["outcome"] == FINISHED]
    steps = sorted(steps, key=lambda step: step["index"])
    found = {"wall_s": wall_s, "requests": len(done), "requests_unfinished": len(requests) - len(done)}
    found |= {f"{name}_tokens": sum(row[f"{name}_tokens"] for row in done) for name in ("input", "output")}
    if not done:
        return found
    found["output_throughput"] = output_throughput(done, wall_s)
    found["total_throughput"] = total_throughput(done, wall_s)
    found["output_tokens_per_s_gpu"] = found["output_throughput"] / gpus
    found["tokens_per_s_gpu"] = found["total_throughput"] / gpus
    for name, values in (
        ("tpot", tpots_ms(done)),
        ("itl_chunk", itls_chunk_ms(done)),
        ("itl_token", itls_token_ms(done)),
        ("ttft", ttfts_ms(done)),
    ):
        found |= _spread(name, values)
    found["tokens_per_s_user"] = tokens_per_s_user(found["tpot_ms"]) if found["tpot_ms"] else None
    found["joules_per_token"] = joules_per_token(joules, done)
    return found | step_summary(steps, wall_s)


def step_summary(steps, wall_s: float) -> dict:
    """Metrics of the steps: median step_us of decode and verify steps on the GPU, mean host_gap_us, shares."""
    own = steps_of(steps)
    found = {"steps": len(steps), "decode_steps": len(own), "prefill_share": prefill_share(steps, wall_s)}
    names = ("step_us", "step_host_us", "batch_mean", "tokens_per_step", "host_gap_us", "host_gap_share")
    if not own:
        return found | dict.fromkeys(names)
    gaps = host_gaps_us(steps)
    values = (
        float(np.median([step["gpu_us"] for step in own])),
        float(np.median([step["host_us"] for step in own])),
        float(np.mean([step["batch"] for step in own])),
        tokens_per_step(steps),
        float(gaps.mean()) if len(gaps) else None,
        gap_share(steps),
    )
    return found | dict(zip(names, values, strict=True))


def _spread(name: str, values: np.ndarray) -> dict:
    """{name_ms: mean, name_ms_p50: …}; None without values."""
    if not len(values):
        return dict.fromkeys([f"{name}_ms", *(f"{name}_ms_p{p}" for p in PERCENTILES)])
    return {f"{name}_ms": float(values.mean())} | {
        f"{name}_ms_p{p}": float(np.percentile(values, p)) for p in PERCENTILES
    }
