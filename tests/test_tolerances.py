"""How far a result may lie from the reference, by numbers: the tests do not read the constants that they judge."""

import pytest
import torch
from prefill_against_reference import extra_of
from tolerances import assert_close

from gdn_lab.tolerances import PREFILL, distance

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


def refused_by_tests(actual, expected, dtype, **options):
    try:
        assert_close("o", actual, expected, dtype, **options)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("relative, right", [(5e-5, True), (5e-4, False)])
def test_arithmetic(relative, right):
    """A small element may be off by 5e-5 of the largest one, and not by 5e-4."""
    expected = torch.tensor([8.0, 0.0], dtype=torch.float64)
    actual = expected + torch.tensor([0.0, 8.0 * relative])
    assert distance(actual, expected, FP32)[0] is right
    assert refused_by_tests(actual, expected, FP32) is not right


def test_arithmetic_is_of_the_largest_element_alone():
    """Ten thousand elements of one allow no more than two do."""
    expected = torch.ones(10_000, dtype=torch.float64)
    assert distance(expected + 5e-5, expected, FP32)[0]
    assert not distance(expected + 5e-4, expected, FP32)[0]


@pytest.mark.parametrize("dtype, bits", [(BF16, 8), (FP16, 11)], ids=str)
def test_rounding(dtype, bits):
    """Tests allow half a unit in the last place, sweeps and the interpreter (of bf16) a whole one; 1e-4 comes on top.

    The largest element is beside the point here: what is judged is the element at 1.
    """
    expected = torch.ones(1, dtype=torch.float64)
    unit = 2.0 ** (1 - bits)
    assert not refused_by_tests(expected + 0.49 * unit, expected, dtype)
    assert refused_by_tests(expected + 0.5 * unit + 2e-4, expected, dtype)
    assert distance(expected + 0.99 * unit, expected, dtype)[0]
    assert not distance(expected + unit + 2e-4, expected, dtype)[0]
    assert refused_by_tests(expected + 0.6 * unit + 2e-4, expected, dtype, interpreted=True) is (dtype is FP16)


def test_subnormal_numbers_of_float16():
    """Half of float16's smallest number, 2^-24, and of no other dtype."""
    expected = torch.tensor([2.0**-26], dtype=torch.float64)
    assert distance(torch.zeros(1, dtype=FP16), expected, FP16)[0]
    assert not distance(torch.full((1,), 2.0**-24), expected, FP16)[0]
    assert not distance(torch.zeros(1, dtype=BF16), expected, BF16)[0]


@pytest.mark.parametrize("operands, most, too_much", [(FP32, 9e-4, 2e-3), (BF16, 0.016, 0.018), (FP16, 4.5e-3, 6e-3)])
def test_prefill(operands, most, too_much):
    """A chunk's logarithms cost 1e-3; operands rounded for the tensor cores 4 halves of bf16's unit, 8 of float16's."""
    expected = torch.tensor([1.0, 0.0], dtype=torch.float64)
    extra = extra_of(operands)
    assert not refused_by_tests(expected + torch.tensor([0.0, most]), expected, FP32, extra=extra)
    assert refused_by_tests(expected + torch.tensor([0.0, too_much]), expected, FP32, extra=extra)


def test_prefill_of_every_library():
    expected = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert distance(expected + torch.tensor([0.0, 0.032]), expected, FP32, PREFILL)[0]
    assert not distance(expected + torch.tensor([0.0, 0.034]), expected, FP32, PREFILL)[0]


def test_what_is_not_finite_is_wrong():
    expected = torch.ones(2, dtype=torch.float64)
    for value in (torch.nan, torch.inf):
        assert distance(torch.tensor([1.0, value]), expected, FP32) == (False, None)
        assert refused_by_tests(torch.tensor([1.0, value]), expected, FP32)
