"""What holds for every sweep."""

from types import SimpleNamespace

import pytest
import torch

from gdn_lab import GDNShape, StatePool
from gdn_lab.bench.sweep import Part, Sweep
from gdn_lab.e4m3 import FP8
from gdn_lab.studies.decode_kernels.sweep import DecodeSweep
from gdn_lab.tolerances import Check, merged


def pool_with_pending_updates(dtype):
    pool = StatePool(GDNShape(1, 2, 16, 32), 5, dtype=dtype)
    pool.write(torch.arange(1, 5), torch.randn(4, 2, 32, 16))
    pool.reserve_ring(16)
    for part in (pool.ring.keys, pool.ring.corrections):
        part.normal_()
    pool.ring.span[1:] = torch.tensor([2, 6])
    return pool


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8])
def test_a_check_begins_from_a_state_that_every_pool_holds_exactly(dtype):
    """Whichever pool comes first, and whatever its ring holds back after the points before."""
    pools = {
        "VK, ring of 16": pool_with_pending_updates(dtype),
        "VK": StatePool(GDNShape(1, 2, 16, 32), 5, dtype=dtype),
    }
    indices = torch.tensor([3, 1])
    for names in (list(pools), list(pools)[::-1]):
        start = Sweep._stored(SimpleNamespace(pools={name: pools[name] for name in names}), indices)
        for pool in pools.values():
            pool.write(indices, start)
            torch.testing.assert_close(pool.read(indices), start, rtol=1e-6, atol=0)


def test_a_call_is_right_if_all_its_parts_are():
    right, wrong = Check(True, 0.1, 0.2), Check(False, 0.3, None)
    for parts in ([right, wrong], [wrong, right]):
        assert merged(parts) == Check(False, 0.3, None)
    assert merged([right, right]) == right and not merged([]).right


@pytest.mark.parametrize("error, right", [(0.004, True), (0.1, False)])
def test_an_fp8_state_is_read_with_an_error_relative_to_its_longest_row(error, right):
    """With nearly parallel keys S q, of rows 340 long, cancels to outputs near 0.3; an H200 was off by 0.004."""
    shape, indices = GDNShape(1, 2, 128, 128), torch.tensor([1])
    pool = StatePool(shape, 2, dtype=FP8)
    pool.write(indices, torch.full((1, 2, 128, 128), 30.0))
    states = pool.read(indices).double()
    o = torch.full((1, 2, 128), 0.3, dtype=torch.float64)
    sweep, case = SimpleNamespace(pools={"VK": pool}, shape=shape), SimpleNamespace(pool="VK", ring=16)
    check = DecodeSweep.compare(sweep, case, Part([0], o, states, old=states), (o + error).bfloat16(), indices, None)
    assert check.right is right and check.max_abs_error == pytest.approx(error, abs=2e-3)
