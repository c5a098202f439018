"""How many requests fit: against weights that are there, by hand, and by filling a model."""

import pytest
from fake_served_model import FakeModel

from gdn_lab.engine.capacity import Filled, capacity, fill, kv_token_nbytes, request_memory, weight_nbytes
from gdn_lab.layer import StepWeights
from gdn_lab.models import model


@pytest.mark.parametrize(("name", "precision"), [("qwen3.5-27b", "fp8"), ("qwen3.5-35b-a3b", "bf16")])
def test_a_layer_s_weights_have_the_bytes_that_are_calculated(name, precision):
    layer = StepWeights.random(name, 16, precision=precision)
    parts, entry = weight_nbytes(name, 16, precision), model(name)
    expected = parts["GDN layers"] / entry.gdn_layers + parts["feed-forward"] / entry.layers
    assert layer.nbytes == expected


def test_weights_are_about_what_the_model_s_name_says():
    for name, billions in (("qwen3.5-35b-a3b", 35), ("qwen3.5-27b", 27), ("qwen3-next-80b-a3b", 80)):
        nbytes = weight_nbytes(name, 1, "bf16")
        assert sum(nbytes.values()) / 2 == pytest.approx(billions * 1e9, rel=0.05)
        assert sum(weight_nbytes(name, 2, "bf16").values()) > sum(nbytes.values()) / 2


def test_a_request_by_hand():
    """35B-A3B: 30 GDN layers of 32 heads of 128 x 128 and 8192 channels; 10 attention layers of 2 heads of 256."""
    found = request_memory("qwen3.5-35b-a3b", 1, "bfloat16", 4, length=1000, page_size=64)
    assert found.state == 30 * (32 * 128 * 128 * 2 + 8192 * 3 * 2)
    assert found.drafts == 30 * 4 * (32 * 128 * 128 * 2 + 8192 * 2)
    assert found.kv == 1024 * 10 * 2 * 2 * 256 * 2 and kv_token_nbytes("qwen3.5-35b-a3b", 4) == 10 * 2 * 256 * 2
    assert request_memory("qwen3.5-35b-a3b", 1, "float32", 0, 1).state == 30 * (32 * 128 * 128 * 4 + 8192 * 3 * 2)
    deferring = request_memory("qwen3.5-35b-a3b", 1, "bfloat16", 0, 1, ring=16).state
    fp8 = request_memory("qwen3.5-35b-a3b", 1, "float8_e4m3fn", 2, 1, ring=16)
    assert deferring - fp8.state == 30 * (32 * 128 * 128 - 32 * 128 * 4), "a byte less for each element, and a scale"
    assert fp8.drafts == found.drafts / 2, "draft states are bf16"
    assert deferring - found.state == 30 * (16 * (16 * 128 * 2 + 32 * 128 * 2 + 32 * 4) + 12)


def test_requests_are_what_is_left_over_one_request():
    one = capacity("qwen3.5-35b-a3b", gpu_bytes=80 * 10**9, length=2048)
    left = one.gpu_bytes - one.weights - one.reserve - one.each.state
    assert one.requests * one.each.total <= left < (one.requests + 1) * one.each.total
    assert (one.slots, one.pages) == (one.requests + 1, one.requests * 32)
    assert str(one).startswith(f"{one.requests} requests fit into 80.0 GB: weights 3") and "MB" in str(one)


def test_what_limits_depends_on_length_and_drafts():
    arguments = {"gpu_bytes": 80 * 10**9}
    assert capacity("qwen3.5-35b-a3b", **arguments, length=128).limit == "state"
    assert capacity("qwen3.5-35b-a3b", **arguments, length=32_000).limit == "KV cache"
    assert capacity("qwen3.5-35b-a3b", **arguments, length=128, draft_tokens=4).limit == "draft states"
    nothing = capacity("qwen3.5-397b-a17b", **arguments)
    assert (nothing.requests, nothing.limit) == (0, "weights")
    assert capacity("qwen3.5-397b-a17b", gpu_bytes=141 * 10**9, tp=4).requests > 100


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gpu_bytes": 0}, "gpu_bytes: expected a positive int"),
        ({"precision": "int8"}, "precision: expected one of fp8, bf16, got 'int8'"),
        ({"state_dtype": "int8"}, "state_dtype: expected one of"),
        ({"draft_tokens": -1}, "draft_tokens: expected an int of at least 0"),
        ({"tp": 3}, "tp: qwen3.5-27b has"),
    ],
)
def test_arguments_out_of_range_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        capacity("qwen3.5-27b", **{"gpu_bytes": 80 * 10**9} | change)


def test_a_model_is_filled_until_slots_or_pages_run_out_and_is_empty_again():
    for arguments, length, expected in (
        ({"slots": 6, "pages": 64}, 9, Filled(5, "slots")),
        ({"slots": 9, "pages": 10}, 9, Filled(3, "pages")),
    ):
        full = FakeModel(page_size=4, **arguments)
        assert fill(full, length) == expected
        assert (full.slots.free, full.cache.free) == (full.slots.total, full.cache.pages)
