"""What holds for every sweep."""

from types import SimpleNamespace

import pytest
import torch

from gdn_lab import GDNShape, StatePool
from gdn_lab.bench.sweep import Sweep
from gdn_lab.e4m3 import FP8
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
