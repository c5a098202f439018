"""Notebook 12: bytes and memory by formula, drift, what rows of rings say."""

import pytest
import torch

from gdn_lab import GDNShape, StatePool
from gdn_lab.costs import decode_bytes, replay_bytes
from gdn_lab.studies.fewer_bytes import analysis, figures
from gdn_lab.studies.fewer_bytes.byte_designs import DESIGNS, FP8, IN_PLACE, Design
from gdn_lab.studies.fewer_bytes.ring_drift import KINDS, drift, marks, ratio_to, rounded

SHAPE = GDNShape(16, 64)
STATE = 64 * 128 * 128
RING = Design(torch.bfloat16, 16)


def test_a_ring_saves_nearly_half_of_the_bytes():
    nbytes = replay_bytes(SHAPE, 1, 16, torch.bfloat16)
    update = 16 * 128 * 2 + 64 * 128 * 2 + 64 * 4
    token = (2 * 16 * 128 + 2 * 64 * 128 + 2 * 64) * 2
    assert nbytes == pytest.approx(2 * STATE * (1 + 1 / 17) + update * (8 + 16 / 17) + token + 4 + 2 * 64 * 4)
    assert 0.57 < nbytes / decode_bytes(SHAPE, 1, torch.bfloat16) < 0.59


def test_rings_have_a_best_size_and_fp8_halves_the_state_again():
    step = {design: design.step_bytes(SHAPE, 512) for design in DESIGNS}
    rings = {d.updates: n for d, n in step.items() if d.dtype is torch.bfloat16 and d.updates}
    assert min(rings, key=rings.get) == 16
    fp8 = next(design for design in DESIGNS if design.dtype is FP8)
    assert 0.3 < step[fp8] / step[IN_PLACE] < 0.35


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.label)
def test_memory_is_what_a_pool_takes(design):
    pool = StatePool(SHAPE, 2, dtype=design.dtype, device="meta")
    pool.reserve_ring(design.updates)
    assert design.slot_bytes(SHAPE) == pytest.approx(pool.nbytes / 2, abs=16)


def test_a_ring_drifts_less_than_bf16_in_place():
    steps = 68
    drifted = drift([IN_PLACE, RING, Design(torch.float32)], steps, kinds=KINDS[1:])
    assert {row["step"] for row in drifted} == set(marks(steps)) == {1, 2, 5, 10, 20, 50, 68}
    assert ratio_to(drifted, RING, IN_PLACE, KINDS[1].name) < 0.6
    assert ratio_to(drifted, Design(torch.float32), IN_PLACE, KINDS[1].name) < 1e-3


def test_what_drift_and_memory_say_of_fp8():
    drifted = drift([IN_PLACE, RING, Design(FP8, 16)], 34, kinds=KINDS[:1])
    ratio = ratio_to(drifted, Design(FP8, 16), IN_PLACE, KINDS[0].name)
    assert 3 < ratio < 20 and f"That of an FP8 state is {ratio:.2f} (typical" in analysis.drift_sentence(drifted)
    assert (
        "FP8 with its ring needs 0.69 of the memory of bf16 in place, so 1.44 times as many requests fit"
        in analysis.memory_sentence(SHAPE)
    )


def test_fp8_is_rounded_to_its_grid_and_right_on_average():
    x = torch.full((1, 4096), 1.0 + 1 / 32)
    x[0, 0] = 448.0  # so that the scale is 1
    stored = rounded(x, FP8, torch.Generator().manual_seed(0))
    assert set(stored[0, 1:].tolist()) == {1.0, 1.125}
    assert stored[0, 1:].mean().item() == pytest.approx(1 + 1 / 32, abs=0.01)
    assert torch.equal(stored, stored.to(FP8).float()), "every element is one of e4m3"


def ring_rows():
    """Made-up rows: FlashInfer in place and a ring of 16 at two batches."""
    shared = {"status": "ok", "timer": "cuda_graph_replay", "num_k_heads": 16, "num_v_heads": 64}
    shared |= {"roof_gb_per_s": 2950.0, "share_of_roof": 0.9, "state_dtype": "bfloat16", "count": 50}
    rows = []
    for batch, us in ((128, 100.0), (512, 400.0)):
        rows.append(shared | {"backend": "flashinfer", "variant": "vk", "batch": batch, "median_us": us})
        ring = {"backend": "triton", "variant": "replay", "ring_updates": 16}
        rows.append(shared | ring | {"batch": batch, "median_us": 0.6 * us})
    return rows


def test_what_rows_say():
    rows = ring_rows()
    table = analysis.prediction_table(rows)
    assert (
        table[
            (table.B == 512) & (table.ring == 16) & (table["value heads"] == 64) & (table.state == "bfloat16")
        ].measured.item()
        == 0.6
    )
    said = " ".join(analysis.time_sentences(rows))
    assert "At B = 512 triton/replay, ring of 16 takes 240 µs, 0.60 of FlashInfer's time" in said
    assert "over FlashInfer in place: 0.60 at B = 128" in said and "Predicted at B = 512: 0.56; measured" in said
    assert len(analysis.time_table(rows)) == 4 and analysis.bandwidth(rows, "h100") == 2950.0
    assert "HK 16, HV 64" in analysis.conditions(rows) and analysis.not_timed(rows) == []


def test_figures_with_and_without_times():
    rows = ring_rows()
    assert "dots" in figures.step_bytes(SHAPE, 512, rows).axes[0].get_xlabel()
    assert "dots" not in figures.step_bytes(SHAPE, 512, []).axes[0].get_xlabel()
    assert "0.60 of FlashInfer's time at B = 512" in figures.over_flashinfer(rows).get_suptitle()
    for there in ([], [row for row in rows if row["backend"] != "flashinfer"]):
        assert "No time of a ring" in figures.over_flashinfer(there).get_suptitle()
    assert "No time of a ring is recorded" in analysis.time_sentences([])[0]


def test_the_recorded_run_answers():
    run, rows = analysis.recorded_rows("h200")
    assert run["recorded_on"] == "h200" and len(analysis.rings(rows)) == 4
    best = analysis.rings(rows).set_index("batch").loc[512]
    first = f"At B = 512 {best['name']} takes {best.median_us:.0f} µs, {best.over_flashinfer:.2f} of FlashInfer's time"
    assert analysis.recorded_answers(rows)[0].startswith(first)


@pytest.mark.parametrize(
    ("table", "kinds"),
    [(analysis.in_place_table(), ["large", "small", "step"]), (analysis.ring_table(), ["bf16", "FP8"])],
    ids=["in place", "with a ring"],
)
def test_every_change_has_a_measurement_and_a_verdict(table, kinds):
    assert list(table["for"].unique()) == kinds
    assert (table[["change", "measured", "verdict"]].map(len) > 2).all(axis=None)
