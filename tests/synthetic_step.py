"""Rows as the sweep of decode steps writes them, made up: parts in µs as on an H100 at B = 256, tp 8."""

from synthetic import ROOF, RUN

__all__ = ["CPU", "RUN", "heatmap_rows", "step_rows"]

PARTS = {  # µs in `before`
    "input norm": 4.0, "in_proj qkvz": 22.0, "in_proj ba": 6.0, "split": 5.0, "conv": 7.0, "gdn": 103.0,
    "gated norm": 4.0, "out_proj": 14.0, "post norm": 4.0, "router": 9.0, "experts": 330.0, "shared expert": 12.0,
    "combine": 9.0, "gaps": 12.0,
}  # fmt: skip
CHANGES = {  # what a configuration has other than `before`; None: fused away
    "before": {},
    "before-32": {"gdn": 61.0},
    "after": {"gdn": 53.0, "gaps": 11.5},
    "best": {"gdn": 47.0, "split": None, "shared expert": None, "gaps": 3.0, "in_proj qkvz": 18.0, "conv": 4.0},
}
GDN = {
    "before": "triton/kv8", "before-32": "triton/kv32", "after": "flashinfer/vk", "best": "triton/vk",
    "torch-kv": "torch/kv", "torch": "torch/vk",
}  # fmt: skip
MODEL = "qwen3.5-397b-a17b"
CPU = {"start_utc": "2026-11-22T08:00:00Z", "environment": {"gpu_name": None, "cpu": "a CPU"}}


def parts_of(name, changes=CHANGES):
    parts = PARTS | changes.get(name, {})
    return {part: us for part, us in parts.items() if us is not None}


def step_rows(names=tuple(CHANGES), *, batch=256, tp=8, tracing=1.01, changes=CHANGES, timer="cuda_graph_replay"):
    """All rows of one sweep. tracing: the recorded step over the untraced one."""
    on_cpu, rows = timer == "host_clock", []
    if tp > 1:
        rows.append({
            "status": "fact", "phase": "step", "part": "all-reduce", "model": MODEL, "tp": tp, "batch": batch,
            "bytes": batch * 4096 * 2, "times_a_layer": 2, "reason": "one GPU", "sweep": "step",
        })  # fmt: skip
    for name in names:
        parts = parts_of(name, changes)
        total, case = sum(parts.values()), _case(name, batch, tp)
        mode = "eager" if on_cpu else "graph"
        rows.append(case | _timing("step", timer, total / tracing, 2e6 * total) | {"mode": mode})
        if not on_cpu:
            rows.append(case | _timing("step", "cuda_events_eager", total * 1.7, 2e6 * total) | {"mode": "eager"})
        timer_of_parts = "host_clock" if on_cpu else "cupti_kernel"
        for part, us in (parts | {"traced step": total}).items():
            nbytes = 0 if part == "gaps" else int(us * 2.4e6)
            kernels = None if on_cpu or part == "gaps" else 2 if part != "traced step" else 2 * len(parts)
            rows.append(case | _timing(part, timer_of_parts, us, nbytes) | {"kernels": kernels, "mode": mode})
    return rows


def heatmap_rows(models=(MODEL, "qwen3.5-35b-a3b"), tps=(1, 2, 8), batches=(16, 64, 256), names=("before", "best")):
    """Whole step, GDN and recorded step of each point; GDN's share grows with B and shrinks with tp."""
    rows = []
    for model in models:
        for tp in tps:
            for batch in batches:
                for name in names:
                    gdn = batch / tp * (0.8 if name == "before" else 0.4)
                    total = gdn + 300.0 * (1 if model == MODEL else 0.5)
                    case = _case(name, batch, tp, "share") | {"model": model}
                    rows.append(case | _timing("step", "cuda_graph_replay", total, int(1e9)) | {"mode": "graph"})
                    for part, us in (("gdn", gdn), ("traced step", total)):
                        rows.append(case | _timing(part, "cupti_kernel", us, int(1e6)) | {"mode": "graph"})
    return rows


def _case(name, batch, tp, sweep="step"):
    backend, variant = GDN[name].split("/")
    return {
        "status": "ok", "phase": "step", "configuration": name, "backend": backend, "variant": variant,
        "layout": variant[:2].upper(), "state_dtype": "bfloat16", "batch": batch, "tokens": batch,
        "num_k_heads": 16 // tp, "num_v_heads": 64 // tp, "model": MODEL, "tp": tp, "precision": "fp8",
        "toy": backend == "torch", "sweep": sweep, "seed": 0, "layers": 4, "experts_hit": 509, "max_abs_error": 0.01,
        "l2": "cold", "roof_method": "made up", "datasheet_gb_per_s": 3350.0,
    }  # fmt: skip


def _timing(part, timer, us, nbytes):
    gb_per_s = nbytes / us / 1e3
    return {
        "part": part, "timer": timer, "median_us": us, "p20_us": us * 0.99, "p80_us": us * 1.02, "count": 200,
        "calls_per_sample": 4, "bytes": nbytes, "bytes_formula": "made up", "gb_per_s": gb_per_s,
        "roof_gb_per_s": ROOF, "share_of_roof": gb_per_s / ROOF,
    }  # fmt: skip
