"""Notebook 00: every variant is checked with a state that it takes."""

import pytest
import torch

from gdn_lab import GDNShape
from gdn_lab.report.timed import Timed
from gdn_lab.studies.start_here import analysis, check_variants

SHAPE, BF16, FP8 = GDNShape(1, 2), torch.bfloat16, torch.float8_e4m3fn


def row(name: str, status: str, dtype: torch.dtype, **more) -> dict:
    backend, variant = name.split("/")
    return {
        "phase": "decode", "backend": backend, "variant": variant, "status": status,
        "state_dtype": str(dtype).removeprefix("torch."), "indexing": "in_place", "timer": "host_clock", "batch": 4,
    } | more  # fmt: skip


@pytest.fixture
def swept(monkeypatch):
    """The sweeps that were asked for: triton/vk and torch/vk serve, triton/replay-fp8 a state of FP8 alone."""
    asked = []

    def decode_sweep(shape, *, batches, indexings, dtype, variants="all", **options):
        asked.append((variants, dtype))
        rows = [row("triton/replay-fp8", *(("ok", dtype) if dtype is FP8 else ("refused", dtype)), reason="takes FP8")]
        rows += [row("triton/vk", "ok", dtype), row("torch/vk", "refused", dtype, reason="is slow")]
        return [each for each in rows if variants == "all" or f"{each['backend']}/{each['variant']}" in variants]

    monkeypatch.setattr(check_variants, "decode_sweep", decode_sweep)
    return asked


def test_a_variant_of_another_dtype_is_checked_with_that_one(swept, monkeypatch):
    monkeypatch.setattr(check_variants, "refusal", lambda *arguments, **options: None)
    rows = check_variants.check_variants(SHAPE, 4, dtype=BF16, device="cpu")
    assert swept == [("all", BF16), (["triton/replay-fp8"], FP8)]
    checked = Timed(rows, {"environment": {}})
    assert list(analysis.check_table(checked)["state"]) == ["bfloat16", "bfloat16", "float8_e4m3fn"]
    assert analysis.check_answers(checked) == [
        "2 of 3 variants run here and agree with the reference: triton/vk and triton/replay-fp8 (a state of "
        "float8_e4m3fn).",
        "torch/vk cannot serve here, for the reasons in the table.",
    ]


def test_what_cannot_serve_at_all_keeps_its_reason(swept):
    """On a CPU, of which the real refusal() is asked."""
    rows = check_variants.check_variants(SHAPE, 4, dtype=BF16, device="cpu")
    assert swept == [("all", BF16)] and rows[0]["status"] == "refused"
