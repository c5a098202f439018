"""Rows as the serving study writes them, made up: a model whose parts add up to TPOT, as on one H100."""

from gdn_lab.studies.serving.serving_rows import PHASE

__all__ = ["RUN", "part_us", "refused", "serving_rows"]

RUN = {
    "start_utc": "2026-11-28T08:00:00Z", "notebook": "09_serving", "status": "complete",
    "environment": {"gpu_name": "NVIDIA H100 80GB HBM3", "driver": "580.1", "torch": "2.11.0"},
}  # fmt: skip
GDN = {"before": "triton/kv8", "before-32": "triton/kv32", "after": "flashinfer/vk", "best": "cutedsl/vk"}
KERNEL = {"before": 0.80, "before-32": 0.46, "after": 0.40, "best": 0.37}  # µs for each request, above a floor of 3
FUSED = {"best": 0.88}  # what is left of the rest of a layer
COUNTS = {"GDN layer": 30, "attention layer": 10, "embedding": 1, "head and sampler": 1}
HOST_GAP, PREFILL = 0.01, 0.03  # of a step; of TPOT's decode part
UNEXPLAINED = 0.004  # of a step, by which the whole graph takes longer than its parts


def part_us(name, concurrency, tp=1):
    """µs of one of each part."""
    kernel = 3.0 + KERNEL[name] * concurrency / tp
    rest = (90.0 + 0.25 * concurrency) * FUSED.get(name, 1.0)
    parts = {
        "GDN kernel": kernel, "GDN layer": kernel + rest, "attention layer": 100.0 + 0.4 * concurrency,
        "embedding": 4.0, "head and sampler": 260.0 + 0.2 * concurrency,
    }  # fmt: skip
    return parts | ({"all-reduces": 7.0 + concurrency / 40} if tp > 1 else {})


def counts(tp=1):
    return COUNTS | {"GDN kernel": 30} | ({"all-reduces": 80} if tp > 1 else {})


def serving_rows(
    names=tuple(GDN), concurrencies=(1, 8, 64, 256), *, tp=1, model="qwen3.5-35b-a3b", toy=False, draft_tokens=(),
    acceptance=0.8, output=256,
):  # fmt: skip
    rows, serve = [], 0
    for name in names:
        for concurrency in concurrencies:
            rows += _point(serve, name, concurrency, tp, model, toy, 0, None, output)
            serve += 1
        for tokens in draft_tokens:
            rows += _point(serve, name, concurrencies[-1], tp, model, toy, tokens, acceptance, output)
            serve += 1
    return rows


def refused(name="before", concurrency=512, reason="the state pools of 512 requests need 90 GB, and 70 GB are free"):
    row = _case(name, concurrency, 1, "qwen3.5-35b-a3b", False, 0, None, 256)
    return row | {"status": "refused", "reason": reason}


def _case(name, concurrency, tp, model, toy, tokens, acceptance, output):
    backend, variant = GDN[name].split("/")
    return {
        "status": "fact", "phase": PHASE, "model": model, "tp": tp, "ranks": tp, "precision": "fp8",
        "state_dtype": "bfloat16", "toy": toy, "configuration": name, "backend": backend, "variant": variant,
        "layout": variant[:2].upper(), "communicator": "nccl" if tp > 1 else "", "concurrency": concurrency,
        "draft_tokens": tokens, "acceptance": acceptance, "input_tokens_each": output // 4,
        "output_tokens_each": output, "seed": 0,
    }  # fmt: skip


def _point(serve, name, concurrency, tp, model, toy, tokens, acceptance, output):
    """One run: `concurrency` requests, all admitted at once, of `output` tokens each."""
    parts, number = part_us(name, concurrency, tp), counts(tp)
    graph = sum(us * number[part] for part, us in parts.items() if part != "GDN kernel") * (1 + UNEXPLAINED)
    emitted = 1.0
    if tokens:  # a verify step costs 1.4 of a decode step and yields the accepted prefix and one more
        graph, emitted = 1.4 * graph, sum(acceptance**n for n in range(tokens))
    gap = HOST_GAP * graph
    steps = round((output - 1) / emitted)
    prefill = PREFILL * steps * (graph + gap) if concurrency > 1 else 0.0
    tpot = (steps * (graph + gap) + prefill * (1 - 1 / concurrency)) / (output - 1)  # one request is new
    first = 0.05
    finished = first + tpot * (output - 1) / 1e6
    start, columns = first, {field: [] for field in FIELDS}
    _step(columns, "prefill", concurrency, concurrency * output // 4, 1e6 * first, 0.0, 0.0)
    for index in range(steps):
        if index == steps // 2 and prefill:
            _step(columns, "prefill", 1, 64, prefill - gap, start, gap)
            start += prefill / 1e6
        _step(columns, "verify" if tokens else "decode", concurrency, concurrency * round(emitted), graph, start, gap)
        start += (graph + gap) / 1e6
    case = _case(name, concurrency, tp, model, toy, tokens, acceptance, output)
    output_tokens, wall = concurrency * output, finished + 0.01
    run = case | {
        "type": "run", "serve": serve, "requests": concurrency, "output_tokens": output_tokens,
        "input_tokens": output_tokens // 4, "wall_s": wall, "output_throughput": output_tokens / wall,
        "total_throughput": 1.25 * output_tokens / wall, "tpot_ms": tpot / 1e3, "tpot_ms_p50": tpot / 1e3,
        "tpot_ms_p90": 1.02 * tpot / 1e3, "tpot_ms_p99": 1.05 * tpot / 1e3, "itl_chunk_ms": tpot * emitted / 1e3,
        "itl_token_ms": tpot / 1e3, "ttft_ms": 1e3 * first, "step_us": graph + gap, "host_gap_us": gap,
        "tokens_per_s_user": 1e6 / tpot, "tokens_per_s_gpu": 1.25 * output_tokens / wall / tp, "joules_per_token": None,
    }  # fmt: skip
    rows = [run, {"status": "fact", "phase": PHASE, "type": "steps", "serve": serve} | columns]
    rows.append({
        "status": "fact", "phase": PHASE, "type": "requests", "serve": serve, "id": list(range(concurrency)),
        "input_tokens": [output // 4] * concurrency, "output_tokens": [output] * concurrency,
        "arrival_s": [0.0] * concurrency, "admitted_s": [0.0] * concurrency, "first_token_s": [first] * concurrency,
        "finished_s": [finished] * concurrency, "outcome": ["finished"] * concurrency,
    })  # fmt: skip
    for part, us in () if tokens else parts.items():
        rows.append(
            case | {"type": "part", "serve": serve, "part": part, "us": us, "count": number[part], "length": 192}
        )
    return rows


FIELDS = ("kind", "batch", "padded", "tokens", "host_us", "gpu_us", "start_s", "end_s")


def _step(columns, kind, batch, tokens, us, start, gap):
    values = (kind, batch, batch, tokens, 40.0, us, start + gap / 1e6, start + (gap + us) / 1e6)
    for field, value in zip(FIELDS, values, strict=True):
        columns[field].append(value)
