"""The check of an all-reduce with its norm, on one rank: what is not a number is wrong, wherever it is."""

import math

import pytest

from gdn_lab.engine.communicator import Alone
from gdn_lab.studies.all_reduce.measure import ADD_NORM, Operation, Point


@pytest.fixture
def operation():
    return Operation(Alone(), Point(ADD_NORM, 3, 256), seed=0)


def test_a_right_one_is_within_what_is_allowed(operation):
    assert 0 < operation.error("normal", operation.call) <= 1


@pytest.mark.parametrize("spoil", ["y", "y8", "scale"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_wrong(operation, spoil, value):
    def call():
        operation.call()
        part = dict(zip(("y", "y8", "scale"), operation.made.unpadded, strict=True))[spoil]
        part[1] = math.nan if spoil == "y8" else value  # e4m3 has no infinity

    assert not operation.error("normal", call) <= 1
