"""Rows as a sweep writes them, made up: each variant has a floor in µs and a share of the roof that it tends to."""

import torch

from gdn_lab import GDNShape
from gdn_lab.costs import DECODE_BYTES_FORMULA, decode_bytes

ROOF = 3000.0
SHAPE = GDNShape(16, 64)
VARIANTS = {  # floor in µs, share of the roof at large batches
    "triton/vk": (2.0, 0.98),
    "triton/vk-serial": (4.0, 0.96),
    "triton/kv32": (3.0, 0.80),
    "triton/kv8": (4.0, 0.40),
    "flashinfer/vk": (3.0, 0.95),
}
RUN = {
    "start_utc": "2026-11-22T08:00:00Z",
    "environment": {"gpu_name": "NVIDIA H100 80GB HBM3", "driver": "580.1", "power_limit_w": 700.0, "torch": "2.11.0"},
}


def sweep_rows(
    variants=VARIANTS, batches=(1, 8, 32, 128, 512), *, timers=("cuda_graph_replay", "cupti_kernel"),
    indexings=("in_place", "gather_scatter"),
):  # fmt: skip
    """Timed rows of all these; gather and scatter take 2.5 times as long, and a kernel 0.5 µs less than its replay."""
    rows = []
    for batch in batches:
        for name, (floor, share) in variants.items():
            for indexing in indexings:
                for timer in timers:
                    nbytes = decode_bytes(SHAPE, batch, torch.bfloat16)
                    us = (floor + nbytes / (share * ROOF * 1e3)) * (2.5 if indexing == "gather_scatter" else 1.0)
                    us -= 0.5 if timer == "cupti_kernel" else 0.0
                    rows.append(_case(name, batch, indexing) | _timing(timer, us, nbytes))
    return rows


def refused(name, reason):
    backend, variant = name.split("/")
    return {"status": "refused", "phase": "decode", "backend": backend, "variant": variant, "reason": reason}


def wrong(name, batch, error=None):
    return _case(name, batch, "in_place") | {"status": "wrong", "max_abs_error": error}


def _case(name, batch, indexing):
    backend, variant = name.split("/")
    return {
        "phase": "decode", "backend": backend, "variant": variant, "layout": variant[:2].upper(), "indexing": indexing,
        "state_dtype": "bfloat16", "batch": batch, "tokens": 1, "num_k_heads": 16, "num_v_heads": 64,
        "head_k_dim": 128, "head_v_dim": 128,
        "max_abs_error": 0.004, "max_abs_error_state": 0.002,
    }  # fmt: skip


def _timing(timer, us, nbytes):
    gb_per_s = nbytes / us / 1e3
    return {
        "status": "ok", "timer": timer, "median_us": us, "p20_us": us * 0.98, "p80_us": us * 1.03, "count": 50,
        "bytes": nbytes, "bytes_formula": DECODE_BYTES_FORMULA, "gb_per_s": gb_per_s, "roof_gb_per_s": ROOF,
        "share_of_roof": gb_per_s / ROOF,
    }  # fmt: skip
