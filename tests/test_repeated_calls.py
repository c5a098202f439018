"""A call like the pool's last one passes by one comparison: never where a tensor has changed in place since."""

import pytest
import torch
from against_reference import filled_pool, row_slots, same_bits
from prefill_against_reference import bounds_of
from test_arguments import BF16, SHAPE, refused

from gdn_lab import decode, prefill, verify
from gdn_lab.ops import make_inputs


def decoded(pool, x, indices, out):
    """decode() on the same objects each time, so that what changed in one of them is all that is new."""
    return decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, out=out, backend="torch")


CHANGES = {  # that leave a tensor where it is
    "q": lambda x: x.view(torch.float16),
    "k": lambda x: x[:, :1],
    "v": lambda x: x[:2],
    "a": lambda x: x.as_strided(x.shape, (1, 3)),
    "b": lambda x: x.view(torch.float16),
    "A_log": lambda x: x.view(torch.int32),
    "dt_bias": lambda x: x.as_strided(x.shape, (0,)),
    "indices": lambda x: x.view(torch.float32),
    "out": lambda x: x.as_strided(x.shape, (16, 48, 1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_refused_once_a_tensor_has_changed_in_place(name):
    pool = filled_pool(SHAPE, 6, layout="VK", dtype=BF16)
    x, indices = make_inputs(SHAPE, 3), row_slots(3, 6)
    out = torch.empty(3, 4, 16, dtype=BF16)
    decoded(pool, x, indices, out)
    changed = {"indices": indices, "out": out}.get(name, getattr(x, name, None))
    kept, state = changed.data, pool.state.clone()
    changed.data = CHANGES[name](changed.data)
    for _ in range(2):
        refused(lambda: decoded(pool, x, indices, out), f"{name}: expected")
    assert same_bits(pool.state, state)
    changed.data = kept
    decoded(pool, x, indices, out)


def test_it_is_refused_where_out_has_moved_or_wants_a_gradient():
    pool = filled_pool(SHAPE, 6, layout="VK", dtype=BF16)
    x, indices = make_inputs(SHAPE, 3), row_slots(3, 6)
    out = torch.empty(3, 4, 16, dtype=BF16)
    apart = out.data
    decoded(pool, x, indices, out)
    for shared, sentence in (
        (x.mixed_qkv.view(-1)[: out.numel()].view(out.shape), "out: shares memory with q"),
        (pool.state.view(-1)[: out.numel()].view(out.shape), "out: lies in pool.state"),
    ):
        out.data = shared
        refused(lambda: decoded(pool, x, indices, out), sentence)
    out.data = apart
    decoded(pool, x, indices, out)
    refused(lambda: decoded(pool, x, indices, out.requires_grad_()), "out: expected a tensor that requires no gradient")


@pytest.mark.parametrize("phase", ["decode", "verify", "prefill"])
def test_it_is_checked_by_its_own_phase(phase):
    """Each phase on one pool in turn, on tensors of one size: none passes for another's."""
    pool = filled_pool(SHAPE, 6, layout="VK", dtype=BF16)
    x = make_inputs(SHAPE, 3)
    options = dict(**x.gates(), pool=pool, indices=row_slots(3, 6), backend="torch")
    decode(*x.arguments(), **options)
    before = pool.state.clone()
    if phase == "decode":
        decode(*x.arguments(), **options)
        assert not same_bits(pool.state, before)
    elif phase == "verify":
        refused(lambda: verify(*x.arguments(), **options), "q: expected")
    else:
        refused(lambda: prefill(*x.arguments(), **options, cu_seqlens=bounds_of([3])), "cu_seqlens: expected")
