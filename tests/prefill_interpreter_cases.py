"""The Triton prefill kernels in Triton's interpreter, against the float64 reference. Run by test_triton_interpreter.py.

Inputs are float32 or float16: the interpreter gets products of bf16 wrong.
"""

import pytest
import torch
from against_reference import filled_pool, row_slots
from prefill_against_reference import check_prefill, inputs_of

from gdn_lab import GDNShape, prefill
from gdn_lab.backends.triton import prefill as triton_prefill
from gdn_lab.hard_inputs import KINDS, hard_inputs

assert triton_prefill.INTERPRETED, "run under TRITON_INTERPRET=1"
SMALL = GDNShape(2, 4, 16, 32)
FP32 = torch.float32


@pytest.mark.parametrize(
    "lengths, kind, layout",
    [
        ([64, 1, 0, 130, 5], "strong", "VK"), ([64, 1, 0, 130, 5], "parallel", "KV"), ([63, 64, 65], "parallel", "VK"),
        ([63, 64, 65], "mild", "KV"), ([0], "strong", "VK"), ([1], "strong", "KV"),
    ],
    ids=str,
)  # fmt: skip
def test_lengths(lengths, kind, layout):
    pool = filled_pool(SMALL, 8, layout=layout, dtype=FP32)
    check_prefill(pool, lengths, row_slots(len(lengths), 8), backend="triton", io_dtype=FP32, kind=kind)


@pytest.mark.parametrize("layout", ["VK", "KV"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_state_dtypes_and_padding(dtype, layout):
    pool = filled_pool(SMALL, 8, layout=layout, dtype=dtype)
    indices = row_slots(4, 8, padding=[0, 2], dtype=torch.int64)
    check_prefill(
        pool, [3, 70, 66, 2], indices, backend="triton", io_dtype=FP32, bounds_dtype=torch.int64, interpreted=True
    )  # fmt: skip


def test_more_sequences_than_are_searched_at_once():
    pool = filled_pool(GDNShape(1, 1, 16, 32), triton_prefill.SEARCH + 40, layout="VK", dtype=FP32)
    lengths = [n % 3 for n in range(triton_prefill.SEARCH + 9)]
    indices = row_slots(len(lengths), pool.slots)
    check_prefill(pool, lengths, indices, backend="triton", io_dtype=FP32)


def test_gates_at_their_limits():
    pool = filled_pool(SMALL, 4, layout="VK", dtype=FP32)
    x = inputs_of(SMALL, 130, dtype=FP32)
    x.a[::3], x.a[1::3] = 3e38, -80.0
    x.b[::2], x.b[1::2] = -80.0, 80.0
    check_prefill(pool, [130], row_slots(1, 4), backend="triton", inputs=x)


def test_scale_no_norm_and_contiguous_inputs():
    pool = filled_pool(SMALL, 4, layout="VK", dtype=FP32)
    x = inputs_of(SMALL, 70, dtype=FP32)
    x.k.copy_(torch.nn.functional.normalize(x.k, dim=-1))
    check_prefill(pool, [70], row_slots(1, 4), backend="triton", inputs=x, scale=0.5, use_qk_l2norm=False)


@pytest.mark.parametrize("dtype", [torch.float16, FP32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_hard_inputs(kind, dtype):
    """float16 has little range; zero keys have a norm of 1000 to divide by, and large values."""
    shape = GDNShape(1, 2, 32, 32)
    x, state_std = hard_inputs(shape, 100, dtype=dtype)[kind]
    pool = filled_pool(shape, 4, layout="VK", dtype=FP32)
    pool.state.mul_(state_std)
    check_prefill(pool, [70, 30], row_slots(2, 4), backend="triton", inputs=x)


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_float16_keys_of_any_size(size):
    """And a state beyond float16's range, whose output is within it."""
    pool = filled_pool(SMALL, 4, layout="KV", dtype=FP32)
    pool.state.mul_(1e5)
    x = inputs_of(SMALL, 70, "mild", dtype=torch.float16)
    x.k.mul_(size)
    check_prefill(pool, [70], row_slots(1, 4), backend="triton", inputs=x, scale=1e-2)


def test_the_models_head_size():
    pool = filled_pool(GDNShape(1, 2), 3, layout="VK", dtype=FP32)
    check_prefill(pool, [67], row_slots(1, 3), backend="triton", io_dtype=FP32)


def test_a_neighbour_of_nan_changes_nothing():
    """A sequence whose inputs are NaN stays the only one with a NaN result."""
    pool = filled_pool(SMALL, 4, layout="VK", dtype=FP32)
    x, indices = inputs_of(SMALL, 90, dtype=FP32), torch.tensor([1, 2, 3])
    for t in x.arguments():
        t[30:60] = torch.nan
    o = prefill(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend="triton",
                cu_seqlens=torch.tensor([0, 30, 60, 90]))  # fmt: skip
    assert torch.isfinite(o[:30]).all() and torch.isfinite(o[60:]).all()
    assert torch.isfinite(pool.state[[0, 1, 3]]).all()


def test_bf16_is_refused_here():
    pool = filled_pool(SMALL, 4, layout="VK", dtype=FP32)
    message = "takes inputs of float16 or float32 interpreted, for prefill; these are bfloat16"
    with pytest.raises(ValueError, match=message):
        check_prefill(pool, [3], row_slots(1, 4), backend="triton")
