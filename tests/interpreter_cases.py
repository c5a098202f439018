"""Every variant of `triton` on the CPU, in Triton's interpreter, against the reference.

Run by test_triton_interpreter.py in a process of its own, under TRITON_INTERPRET=1. The interpreter takes milliseconds
a program, so shapes are small; the kernel has the same lines for the models' head size.
"""

import math

import numpy
import pytest
import torch
from against_reference import PADDING, check_decode, filled_pool, row_slots
from isolation import reached
from tolerances import assert_close

from gdn_lab import GDNShape, StatePool, decode, reference
from gdn_lab.backends import registry
from gdn_lab.backends.base import State
from gdn_lab.backends.triton import backend
from gdn_lab.backends.triton import recurrent as recurrent
from gdn_lab.ops import make_inputs

assert backend.INTERPRETED, "run under TRITON_INTERPRET=1"

# Those with a ring: replay_interpreter_cases.py
VARIANTS = [v for v in registry.VARIANTS.values() if v.backend == "triton" and "decode" in v.phases and not v.ring]
SMALL = GDNShape(2, 4, 32, 32)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
# Without a GPU's overlap of launches vk-serial is vk: once through every dtype is enough for it
different = pytest.mark.parametrize(
    "variant", [variant for variant in VARIANTS if variant.name != "vk-serial"], ids=lambda variant: variant.name
)


def check(variant, pool, indices, **options):
    return check_decode(pool, indices, backend=variant.full_name, interpreted=True, **options)


@every_variant
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_state_dtypes(variant, dtype):
    """Packed views, strong decay, a padding row in the middle, slots that nobody names."""
    assert dtype in variant.state_dtypes
    pool = filled_pool(SMALL, 6, layout=variant.layout, dtype=dtype)
    check(variant, pool, row_slots(3, 6, padding=[1]))


@different
@pytest.mark.parametrize("io_dtype", [FP16, FP32], ids=str)
def test_input_dtypes_and_wide_indices(variant, io_dtype):
    pool = filled_pool(SMALL, 5, layout=variant.layout, dtype=FP32)
    check(variant, pool, row_slots(2, 5, padding=[1], dtype=torch.int64), io_dtype=io_dtype)


@different
@pytest.mark.parametrize("strides", ["contiguous", "wide", "odd", "apart"])
def test_strides(variant, strides):
    pool = filled_pool(GDNShape(2, 2, 32, 32), 4, layout=variant.layout, dtype=FP32)
    check(variant, pool, row_slots(2, 4), strides=strides)


@different
def test_scale_and_no_norm(variant):
    pool = filled_pool(SMALL, 3, layout=variant.layout, dtype=FP32)
    out = torch.full((1, 4, 32), torch.nan, dtype=FP32)
    o, _ = check(variant, pool, row_slots(1, 3), io_dtype=FP32, scale=0.5, use_qk_l2norm=False, out=out)
    assert o is out


@different
def test_gates_at_their_limits(variant):
    shape = GDNShape(1, 2, 16, 32)
    pool = filled_pool(shape, 5, layout=variant.layout, dtype=FP32)
    inputs = make_inputs(shape, 4)
    inputs.a.copy_(torch.tensor([[-80.0], [0.0], [20.5], [80.0]]).expand(4, 2))
    inputs.b.copy_(torch.tensor([[-80.0, 80.0]]).expand(4, 2))
    inputs.A_log.fill_(math.log(16))
    check(variant, pool, row_slots(4, 5), inputs=inputs)


@different
def test_keys_near_zero(variant):
    """|q|², |k|² of the size of the 1e-6 under the root, and rows of nothing but zeros."""
    shape = GDNShape(1, 1, 16, 32)
    pool = filled_pool(shape, 4, layout=variant.layout, dtype=FP32)
    inputs = make_inputs(shape, 3)
    inputs.mixed_qkv.mul_(1e-3)[2].zero_()
    check(variant, pool, row_slots(3, 4), inputs=inputs)


@different
def test_the_models_head_size(variant):
    shape = GDNShape(1, 2)
    pool = filled_pool(shape, 3, layout=variant.layout, dtype=BF16)
    check(variant, pool, row_slots(1, 3))


@pytest.mark.parametrize("tile", [8, 16, 32])
def test_larger_tiles(monkeypatch, tile):
    """What larger batches take on a GPU; V is not K, so that a tile that mixes them up shows."""
    monkeypatch.setattr(recurrent, "decode_tile", lambda heads, overlap: recurrent.Tile(tile, 1))
    pool = filled_pool(GDNShape(1, 3, 16, 64), 4, layout="VK", dtype=FP32)
    check_decode(pool, row_slots(2, 4), backend="triton/vk", interpreted=True)


@different
def test_offsets_beyond_2_31_elements(variant):
    """Slots of 2^11 elements: slot 2^20 begins at element 2^31. The memory is there only where it is touched."""
    shape, slots = GDNShape(1, 2, 32, 32), 2**20 + 3
    pool = StatePool(shape, 2, layout=variant.layout, dtype=BF16)
    pool.slots = slots
    pool.state = torch.from_numpy(numpy.zeros(slots * 2048, numpy.int16)).view(BF16).view(slots, 2, 32, 32)
    pool.launch_state = State(pool.state)
    indices = torch.tensor([2**20, PADDING, slots - 1, 2**20 - 1], dtype=torch.int32)
    live = [0, 2, 3]
    old = torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(0)).to(BF16)
    pool.write(indices[live], old)
    x = make_inputs(shape, 4)
    o = decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend=variant.full_name)
    expected_o, expected = reference.decode(*(t[live] for t in x.arguments()), **x.gates(), state=old)
    assert_close("o", o[live], expected_o, BF16, interpreted=True)
    assert_close("state", pool.read(indices[live]), expected, BF16, interpreted=True)
    assert not pool.state[[0, 1, 2, 2**20 - 2, 2**20 + 1]].any()


def test_auto_never_takes_the_interpreter():
    pool = filled_pool(SMALL, 3, layout="VK", dtype=FP32)
    check_decode(pool, row_slots(2, 3, padding=[0]), backend="auto")


@different
def test_isolation(variant, monkeypatch):
    """NaN in one row changes no bit of another. Two tiles of a head do."""
    monkeypatch.setattr(recurrent, "decode_tile", lambda heads, overlap: recurrent.Tile(16, 1))
    assert not reached(variant, "decode", GDNShape(1, 2, 16, 32), FP32)
