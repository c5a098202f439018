"""A backend in one file of 20 lines is found, described, given a look of its own, and serves calls."""

import torch
from against_reference import check_decode, filled_pool, row_slots

from gdn_lab import GDNShape, backends
from gdn_lab.backends import registry

SHAPE = GDNShape(2, 4, 8, 4)


def test_one_file_is_a_backend(extra_backend):
    record = registry.VARIANTS[extra_backend]
    others = [v for name, v in registry.VARIANTS.items() if name != extra_backend]
    assert "extra" in registry.BACKENDS and record.label == extra_backend and record.role == "ours"
    assert record.colour not in {v.colour for v in others} and record.marker not in {v.marker for v in others}
    assert registry.in_order(registry.VARIANTS)[-1] == extra_backend
    report = next(report for report in backends() if report.name == "extra")
    assert report.reason is None and report.variants == (record,)


def test_it_serves_calls(extra_backend):
    pool = filled_pool(SHAPE, 6, layout="VK", dtype=torch.float32)
    check_decode(pool, row_slots(4, 6, padding=[1]), backend=extra_backend)


def test_auto_does_not_take_it(extra_backend):
    """It has no rank: a stranger's kernel is used where it is named."""
    call = registry.Call("decode", "VK", torch.float32, torch.bfloat16, torch.int32, SHAPE, torch.device("cpu"))
    assert "extra" not in registry.auto_order(call)


def test_it_is_gone_afterwards():
    assert "extra" not in registry.BACKENDS and "extra/vk" not in registry.VARIANTS
