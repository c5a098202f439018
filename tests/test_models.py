"""Heads, models and tensor-parallel division. What is refused, and in which words, is in test_refusals.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdn_lab import GDNShape
from gdn_lab.models import MODELS, divisions


def test_the_largest_model_on_one_and_on_eight_gpus():
    whole = GDNShape.from_model("qwen3.5-397b-a17b")
    assert whole == GDNShape(num_k_heads=16, num_v_heads=64, head_k_dim=128, head_v_dim=128)
    assert (whole.group, whole.conv_dim, whole.state_elements) == (4, 2 * 16 * 128 + 64 * 128, 64 * 128 * 128)
    assert whole.scale == 128**-0.5
    assert GDNShape.from_model("qwen3.5-397b-a17b", tp=8) == GDNShape(2, 8)


@pytest.mark.parametrize(
    "name, heads, gdn_layers",
    [
        ("qwen3.5-397b-a17b", (16, 64), 45),
        ("qwen3.5-122b-a10b", (16, 64), 36),
        ("qwen3.5-35b-a3b", (16, 32), 30),
        ("qwen3-next-80b-a3b", (16, 32), 36),
        ("qwen3.5-27b", (16, 48), 48),
    ],
)
def test_models(name, heads, gdn_layers):
    shape = GDNShape.from_model(name)
    assert (shape.num_k_heads, shape.num_v_heads) == heads and (shape.head_k_dim, shape.head_v_dim) == (128, 128)
    assert MODELS[name].gdn_layers == gdn_layers == MODELS[name].layers * 3 // 4  # full attention every fourth layer


def test_every_model_is_listed_above():
    assert len(MODELS) == 5


@pytest.mark.parametrize("name", MODELS)
@given(tp=st.integers(1, 20))
def test_tensor_parallel_shares_add_up_or_are_refused(name, tp):
    whole = GDNShape.from_model(name)
    if whole.num_k_heads % tp or whole.num_v_heads % tp:
        with pytest.raises(ValueError, match="^tp: "):
            GDNShape.from_model(name, tp=tp)
        return
    share = GDNShape.from_model(name, tp=tp)
    assert (share.num_k_heads * tp, share.num_v_heads * tp) == (whole.num_k_heads, whole.num_v_heads)
    assert share.group == whole.group and share.conv_dim * tp == whole.conv_dim
    assert share.state_elements * tp == whole.state_elements


def test_divisions_are_the_sizes_that_are_not_refused():
    assert divisions("qwen3.5-397b-a17b") == divisions("qwen3.5-27b") == [1, 2, 4, 8, 16]


def test_shapes_are_values():
    assert GDNShape(2, 8) == GDNShape(2, 8) and hash(GDNShape(2, 8)) == hash(GDNShape(2, 8, 128, 128))
    with pytest.raises(AttributeError):
        GDNShape(2, 8).num_k_heads = 4
