"""Intervals and tests of right answers against values worked out by hand."""

import math

import pytest

from gdn_lab.studies.accuracy.proportions import difference, fisher, mcnemar, spread, wilson


def test_wilson_by_hand():
    # 9 of 10, z² = 3.841459: centre (0.9 + 0.192073) / 1.384146 = 0.788987; half-width
    # 1.959964 / 1.384146 · sqrt(0.009 + 0.009604) = 0.193136
    assert wilson(9, 10) == pytest.approx((0.9, 0.595851, 0.982123), abs=2e-6)
    # none of 10: from 0 to z² / (n + z²)
    assert wilson(0, 10) == pytest.approx((0.0, 0.0, 3.841459 / 13.841459), abs=1e-6)
    assert wilson(10, 10)[1:] == pytest.approx((1 - 3.841459 / 13.841459, 1.0), abs=1e-6)


@pytest.mark.parametrize(("right", "total"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(right, total):
    with pytest.raises(ValueError, match="right: expected 0 to"):
        wilson(right, total)


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == mcnemar(0, 5) == 2 / 32
    assert mcnemar(8, 2) == 2 * (1 + 10 + 45) / 1024
    assert mcnemar(4, 4) == 1.0  # twice the tail is more than one
    assert mcnemar(2, 3) == 1.0


def test_mcnemar_of_many_pairs():
    # Normal approximation with continuity correction: z = (|700 - 600| - 1) / sqrt(1300)
    z = 99 / math.sqrt(1300)
    assert mcnemar(600, 700) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)
    assert 0 <= mcnemar(3000, 0) < 1e-200


def test_fisher_by_hand():
    # 3 of 4 and 1 of 4: 70 tables; with 3 right in the first or in the second there are 16 each, with 4 there is 1 each
    assert fisher(3, 4, 1, 4) == fisher(1, 4, 3, 4) == (16 + 16 + 1 + 1) / 70
    assert fisher(2, 4, 2, 4) == 1.0
    assert fisher(4, 4, 0, 4) == 2 / 70


def test_difference_by_hand():
    # 12 lost, 2 won of 98: (−10 ± 1.959964 · sqrt(15 − 100 / 100)) / 100
    change = difference(lost=12, won=2, total=98)
    half = 1.959964 * math.sqrt(14) / 100
    assert change == pytest.approx((-10 / 98, -0.1 - half, -0.1 + half), abs=1e-6)
    low, high = difference(0, 0, 1000)[1:]
    assert low == -high < 0, "no discordant pair does not prove that there is no difference"


def test_spread_by_hand():
    deviation, error = spread([0.8, 0.9], 100)
    assert deviation == pytest.approx(0.1 / math.sqrt(2)) and error == pytest.approx(math.sqrt(0.85 * 0.15 / 100))
