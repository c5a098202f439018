"""The sweep of verify() on the CPU, and what findings/verify.py and the figures of notebook 05 make of its rows."""

import itertools

import pytest
import torch

from gdn_lab import GDNShape, StatePool, findings, ops, plots
from gdn_lab.costs import commit_bytes, verify_bytes
from gdn_lab.models import MODELS
from gdn_lab.studies.verify.sweep import MODES, verify_sweep

SHAPE = GDNShape(1, 2, 16, 8)
MODEL = "qwen3.5-397b-a17b"


def sweep(**options):
    options = dict(variants=["torch"], samples=1, progress=False) | options
    return verify_sweep(SHAPE, options.pop("batches", [3]), options.pop("tokens", [2, 5]), **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_mode_and_commit(dtype):
    rows = sweep(dtype=dtype)
    assert all(row["status"] == "ok" for row in rows), rows
    found = {(row["variant"], row["mode"], row["tokens"]) for row in rows}
    modes = itertools.product(("vk", "kv"), MODES, (2, 5))
    assert found == {*modes, ("commit", "commit", 2), ("commit", "commit", 5)}
    for row in rows:
        expected = (
            commit_bytes(SHAPE, 3, dtype) if row["mode"] == "commit"
            else verify_bytes(SHAPE, 3, row["tokens"], row["mode"], dtype)
        )  # fmt: skip
        assert row["bytes"] == expected and row["phase"] == "verify" and row["max_abs_error_state"] is not None


@pytest.mark.parametrize("spoilt", ["o", "state", "intermediate", "kept"])
def test_a_wrong_result_is_not_timed(monkeypatch, spoilt):
    right = ops.verify

    def wrong(*arguments, pool, indices, out, intermediate_states=None, update_state=True, **options):
        right(
            *arguments, pool=pool, indices=indices, out=out, intermediate_states=intermediate_states,
            update_state=update_state, **options,
        )  # fmt: skip
        if spoilt == "o":
            out[-1, -1, 0, 0] += 1
        if spoilt == "intermediate" and intermediate_states is not None:
            intermediate_states[0, 0, 0, 0, 0] = torch.nan
        if spoilt == "state" and update_state or spoilt == "kept" and not update_state:
            pool.state[indices[0].long(), 0, 0, 0] += 1

    monkeypatch.setattr(ops, "verify", wrong)
    rows = sweep(tokens=[3], variants=["torch/vk"])
    hit = {"o": MODES, "state": ("update",), "intermediate": ("intermediate",)}
    hit = hit.get(spoilt, ("intermediate", "output"))
    for row in rows:
        assert row["status"] == ("wrong" if row["mode"] in hit else "ok"), row
        assert ("median_us" in row) == (row["status"] == "ok")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokens": [1]}, r"tokens: expected numbers from 2 to 16, got \[1\]"),
        ({"tokens": []}, "tokens: expected"),
        ({"modes": ["store"]}, "modes: expected some of update, intermediate, output, got store"),
        ({"batches": [0]}, "batches: expected"),
        ({"variants": ["cuda"]}, "variants: expected some of"),
    ],
)
def test_arguments_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        sweep(**options)


def test_a_variant_that_cannot_serve_says_why_once():
    rows = sweep(variants=["triton/kv8", "torch/vk"], tokens=[2])
    refused = [row for row in rows if row["status"] == "refused"]
    assert len(refused) == 1 and refused[0]["variant"] == "kv8" and "GPU" in refused[0]["reason"]


# --- what rows say


def made(phase, variant, tokens, us, mode=None, batch=64):
    backend, name = variant.split("/")
    return {
        "status": "ok", "phase": phase, "backend": backend, "variant": name, "mode": mode, "tokens": tokens,
        "batch": batch, "indexing": "in_place", "timer": "cuda_graph_replay", "median_us": us, "p20_us": us,
        "p80_us": us, "count": 50, "num_k_heads": 16, "num_v_heads": 64, "state_dtype": "bfloat16",
        "roof_gb_per_s": 3000.0, "share_of_roof": 0.5, "gb_per_s": 1500.0, "max_abs_error": 0.0,
    }  # fmt: skip


ROWS = [
    made("decode", "triton/vk", 1, 100.0), made("decode", "triton/kv32", 1, 120.0), made("decode", "torch/vk", 1, 50.0),
    made("verify", "triton/vk", 4, 60.0, "output"), made("verify", "triton/vk", 4, 140.0, "update"),
    made("verify", "triton/vk", 4, 250.0, "intermediate"), made("verify", "pool/commit", 4, 100.0, "commit"),
    made("verify", "flashinfer/vk", 4, 120.0, "output"), made("verify", "triton/vk", 4, 1.0, "output", batch=1),
]  # fmt: skip


def test_tokens_of_a_step():
    assert findings.verify.expected_tokens(0.0, 4) == 1 and findings.verify.expected_tokens(1.0, 4) == 4
    assert findings.verify.expected_tokens(0.5, 3) == pytest.approx((1 - 0.5**3) / (1 - 0.5))


def test_a_step_from_pool_to_pool_and_its_gain():
    steps = findings.verify.step_times(ROWS)
    assert steps == {("triton/vk", "store"): {4: 350.0}, ("triton/vk", "replay"): {4: 200.0}}
    assert findings.verify.decode_time(ROWS) == ("triton/vk", 100.0)  # a kernel, not eager PyTorch
    assert findings.verify.gain(steps["triton/vk", "replay"], 100.0, 4, 1.0) == 2.0
    assert findings.verify.break_even(steps["triton/vk", "replay"], 100.0, 4) == pytest.approx(0.55, abs=0.01)
    assert findings.verify.break_even({4: 401.0}, 100.0, 4) is None
    table = findings.verify.gain_table(ROWS)
    assert list(table.way) == ["store", "replay"] and list(table["pays from"]) == ["92%", "55%"]


def test_who_is_fastest_may_change_with_T():
    rows = [made("verify", "flashinfer/vk", 2, 50.0, "update"), made("verify", "triton/vk", 2, 100.0, "update")]
    rows += [made("verify", "flashinfer/vk", 8, 200.0, "update"), made("verify", "triton/vk", 8, 100.0, "update")]
    assert findings.verify.answers(rows, MODEL, 1)[0] == (
        "To update the state, flashinfer/vk is fastest at T = 2, triton/vk at T = 8: it takes 100 µs at T = 2, 100 µs "
        "at T = 8; flashinfer/vk takes 0.50, 2.00 times as long."
    )


def test_how_time_grows_with_T():
    rows = [
        made("verify", name, T, us * T**grows, mode)
        for mode in ("update", "output")
        for name, us, grows in (("triton/vk", 50.0, 0.5), ("flashinfer/vk", 40.0, 1.0))
        for T in (2, 8)
    ]
    title = plots.verify.verify_time(rows).get_suptitle().replace("\n", " ")
    assert title == "From T = 2 to 8 triton/vk takes 2.00 times as long to update the state, 2.00 for the output only"


def test_answers_and_figures():
    said = findings.verify.answers(ROWS, MODEL, 1)
    assert "To output only, triton/vk is fastest: 60.0 µs at T = 4; flashinfer/vk takes 2.00 times as long." in said
    assert any("T = 4 on triton/vk by replay" in sentence for sentence in said)
    run = {"environment": {"gpu_name": "NVIDIA H100 80GB HBM3"}}
    figure = plots.verify.verify_time(ROWS, run)
    title = figure.get_suptitle().replace("\n", " ")
    assert title.startswith("At T = 4 triton/vk takes ") and "60.0 µs for the output only" in title
    assert len(figure.axes) == 3
    assert "1.48 times decode's tokens" in plots.verify.speculative_gain(ROWS, run).get_suptitle().replace("\n", " ")
    assert findings.verify.verify_table(ROWS).loc["output only", 64, 4]["triton/vk"] == 60.0


def test_without_rows_everything_says_so():
    assert "nothing was timed" in plots.verify.verify_time([]).get_suptitle()
    assert "nothing was timed" in plots.verify.speculative_gain([]).get_suptitle()
    assert len(findings.verify.answers([], MODEL, 1)) == 1
    assert findings.verify.gain_table([]).empty and findings.verify.verify_table([]).empty


def test_memory_of_drafts():
    table = findings.verify.memory_table([2, 8]).set_index("model")
    shape, layers = GDNShape.from_model(MODEL), MODELS[MODEL].gdn_layers
    assert table.loc[MODEL, "drafts, T = 8"] * 1e6 == layers * 8 * (shape.state_elements * 2 + shape.conv_dim * 2)
    assert table.loc[MODEL, "state and window"] * 1e6 == layers * sum(StatePool.slot_nbytes(shape).values())
    assert "in flight keeps" in plots.verify.draft_memory([2, 8], 8).get_suptitle()


def test_tokens_as_text():
    assert findings.verify.parse_tokens("8, 2,4") == [2, 4, 8]
    for text in ("", "1,2", "17", "two"):
        with pytest.raises(ValueError, match="tokens: expected whole numbers from 2 to 16"):
            findings.verify.parse_tokens(text)
