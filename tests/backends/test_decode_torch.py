"""decode() on the CPU, on `torch`: any shape, dtype, layout, index, stride and option against the reference."""

import functools

import torch
from against_reference import PADDING, check_decode, filled_pool, row_slots, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from gdn_lab import GDNShape, StatePool, decode
from gdn_lab.ops import decode_gathered, make_inputs

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
shapes = st.builds(
    lambda HK, group, K, V: GDNShape(HK, HK * group, K, V),
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 17), st.integers(1, 17),
)  # fmt: skip


@st.composite
def calls(draw):
    """(pool, indices, options of check_decode)"""
    shape, batch, spare = draw(shapes), draw(st.integers(0, 5)), draw(st.integers(0, 3))
    layout = draw(st.sampled_from(["VK", "KV"]))
    pool = filled_pool(
        shape, max(2, batch + 1 + spare), layout=layout, dtype=draw(DTYPES), seed=draw(st.integers(0, 9))
    )
    padding = draw(st.sets(st.integers(0, batch - 1))) if batch else ()
    indices = row_slots(
        batch, pool.slots, padding=padding, dtype=draw(st.sampled_from([torch.int32, torch.int64])),
        seed=draw(st.integers(0, 99)),
    )  # fmt: skip
    indices[indices < 0] = draw(st.sampled_from([-1, -7, -(2**31)]))
    options = dict(
        backend=draw(st.sampled_from(["auto", "torch", f"torch/{layout.lower()}"])),
        io_dtype=draw(DTYPES),
        strides=draw(st.sampled_from(["packed", "contiguous", "wide", "odd", "apart"])),
        strong_decay=draw(st.booleans()),
        scale=draw(st.sampled_from([None, 1.0, 0.25])),
        use_qk_l2norm=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )
    if draw(st.booleans()):
        out = torch.full((batch, shape.num_v_heads, shape.head_v_dim), torch.nan, dtype=options["io_dtype"])
        options["out"] = out
    return pool, indices, options


@settings(max_examples=200)
@given(calls())
def test_decode_against_reference(call):
    pool, indices, options = call
    o, _ = check_decode(pool, indices, **options)
    assert "out" not in options or o is options["out"]


@given(calls())
def test_gathered_equals_in_place(call):
    pool, indices, options = call
    options.pop("out", None)
    twin = pool.to()
    scratch = StatePool(pool.shape, len(indices) + 2, layout=pool.layout, dtype=pool.dtype)
    rows = torch.arange(1, len(indices) + 1, dtype=torch.int32)
    o, inputs = check_decode(pool, indices, **options)
    gathered = functools.partial(decode_gathered, scratch=scratch, rows=rows, padding=bool((indices < 0).any()))
    same, _ = check_decode(twin, indices, **options, inputs=inputs, call=gathered, padding_is_zero=False)
    live = indices >= 0
    assert same_bits(o[live], same[live]) and same_bits(pool.state[1:], twin.state[1:])


def test_the_models_head_size():
    pool = filled_pool(GDNShape(2, 8), 5, layout="VK", dtype=torch.bfloat16)
    check_decode(pool, row_slots(4, 5, padding=[2]), backend="auto")


def test_keys_near_zero():
    """|q|², |k|² of the size of the 1e-6 under the root, and rows of nothing but zeros."""
    pool = filled_pool(GDNShape(1, 2, 16, 8), 5, layout="VK", dtype=torch.float32)
    inputs = make_inputs(pool.shape, 4)
    inputs.mixed_qkv.mul_(1e-3)[2].zero_()
    check_decode(pool, row_slots(4, 5), backend="torch", inputs=inputs)


def test_layouts_agree():
    shape = GDNShape(1, 2, 16, 8)
    pool = filled_pool(shape, 4, layout="VK", dtype=torch.float32)
    other = pool.to(layout="KV")
    indices = torch.tensor([3, 1])
    x = make_inputs(shape, 2)
    o = decode(*x.arguments(), **x.gates(), pool=pool, indices=indices)
    torch.testing.assert_close(decode(*x.arguments(), **x.gates(), pool=other, indices=indices), o)
    torch.testing.assert_close(other.read(indices), pool.read(indices))


def test_null_slot_garbage_reaches_nobody():
    """NaN in the null slot and in slots that no row names stays there; a batch of padding alone changes nothing."""
    shape = GDNShape(1, 2, 8, 8)
    pool = filled_pool(shape, 6, layout="VK", dtype=torch.bfloat16)
    pool.state[[0, 5]] = torch.nan
    check_decode(pool, torch.tensor([PADDING, 2, PADDING, 4]), backend="torch")
    assert pool.state[5].isnan().all()
    check_decode(pool, torch.full((3,), PADDING), backend="torch")


def test_a_step_uses_the_state_the_step_before_left():
    shape = GDNShape(1, 1, 4, 4)
    pool = filled_pool(shape, 3, layout="VK", dtype=torch.float32)
    start = pool.state.clone()
    for step in range(4):
        check_decode(pool, torch.tensor([2]), backend="torch", strong_decay=False, seed=step)
    assert not torch.allclose(pool.state[2], start[2])
