"""The sweep of verify() on the CPU."""

import itertools

import pytest
import torch

from gdn_lab import GDNShape, ops
from gdn_lab.bench.roof import Roof
from gdn_lab.costs import commit_bytes, verify_bytes
from gdn_lab.studies.verify.sweep import MODES, verify_sweep

SHAPE = GDNShape(1, 2, 16, 8)
ROOF = Roof(10.0, 9.0, 11.0, 20, 1 << 20, "a bandwidth for tests")


def sweep(**options):
    options = dict(variants=["torch"], samples=1, progress=False, roof=ROOF) | options
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
    ("options", "message"),
    [
        ({"tokens": [1]}, r"tokens: expected numbers from 2 to 16, got \[1\]"),
        ({"tokens": []}, "tokens: expected"),
        ({"modes": ["store"]}, "modes: expected some of update, intermediate, output, got store"),
        ({"batches": [0]}, "batches: expected"),
        ({"variants": ["cuda"]}, "variants: expected some of"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        sweep(**options)


def test_a_variant_that_cannot_serve_says_why_once():
    rows = sweep(variants=["triton/kv8", "torch/vk"], tokens=[2])
    refused = [row for row in rows if row["status"] == "refused"]
    assert len(refused) == 1 and refused[0]["variant"] == "kv8" and "GPU" in refused[0]["reason"]


@pytest.mark.gpu
def test_on_a_gpu():
    """Ours with few tokens and many; every variant once, since FlashInfer compiles each number of tokens."""
    options = dict(samples=5, progress=False)
    rows = verify_sweep(GDNShape(2, 8), [32], [2], **options)
    rows += verify_sweep(GDNShape(2, 8), [1], [2, 8], variants=["triton"], **options)
    ours = [row for row in rows if row["backend"] in ("triton", "pool")]
    assert not [row for row in ours if row["status"] == "wrong"]
    assert {(row["backend"], row["mode"]) for row in ours if row["status"] == "ok"} >= {
        ("triton", "update"),
        ("triton", "intermediate"),
        ("triton", "output"),
        ("pool", "commit"),
    }
    assert {row["timer"] for row in rows if row["status"] == "ok"} == {"cuda_graph_replay", "cupti_kernel"}
