"""The pool's ring of deferred updates without any kernel: whatever a pool is asked for, it sees the true state."""

import pytest
import torch
from against_reference import filled_pool, same_bits

from gdn_lab import GDNShape, StatePool, decode, reference, ring
from gdn_lab.ops import make_inputs
from gdn_lab.ring import correction_dtype

SHAPE = GDNShape(1, 2, 8, 16)
C = 16


def pending_pool(dtype=torch.float32, seed=0):
    """A pool whose slot 2 has three pending updates, slot 3 none, and NaN in every other entry of the ring."""
    pool = filled_pool(SHAPE, 5, layout="VK", dtype=dtype)
    pool.reserve_ring(C, key_dtype=torch.float32)
    ring, rng = pool.ring, torch.Generator().manual_seed(seed)
    for part in (ring.keys, ring.corrections, ring.log_decays):
        part.fill_(torch.nan)
    ring.keys[2, :, 4:7] = torch.randn(1, 3, 8, generator=rng)
    ring.corrections[2, :, 4:7] = torch.randn(2, 3, 16, generator=rng).to(ring.corrections.dtype)
    ring.log_decays[2, :, 4:7] = -torch.rand(2, 3, generator=rng)
    ring.span[2], ring.span[3] = torch.tensor([4, 7]), torch.tensor([9, 9])
    return pool


def expected_state(pool, slot):
    """The state of a slot, one pending update after the other, float64."""
    ring, S = pool.ring, pool.state[slot].double()
    for j in range(*ring.span[slot].tolist()):
        update = ring.corrections[slot, :, j].double()[:, :, None] * ring.keys[slot, :, j].double()[:, None, :]
        S = ring.log_decays[slot, :, j].double().exp()[:, None, None] * S + update
    return S


@pytest.mark.parametrize("at_once", [1, ring.ELEMENTS_AT_ONCE], ids=["slot by slot", "all slots"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_read_sees_the_true_state_and_settle_writes_it(dtype, at_once, monkeypatch):
    monkeypatch.setattr(ring, "ELEMENTS_AT_ONCE", at_once)
    pool = pending_pool(dtype)
    want = torch.stack([expected_state(pool, 2), pool.state[3].double(), torch.zeros(2, 16, 8).double()])
    indices = torch.tensor([2, 3, -1])
    assert torch.allclose(pool.read(indices).double(), want, atol=1e-5)
    before = pool.state.clone()
    pool.settle(indices)
    assert torch.allclose(pool.state[2].double(), want[0], atol=1e-5, rtol=torch.finfo(dtype).eps)
    assert same_bits(pool.state[[0, 1, 3, 4]], before[[0, 1, 3, 4]])
    assert pool.ring.span[[2, 3]].tolist() == [[7, 7], [9, 9]], "phases stay"


def test_write_and_acquire_forget_what_is_pending():
    pool = pending_pool()
    state = torch.randn(1, 2, 16, 8)
    pool.write(torch.tensor([2]), state)
    assert torch.equal(pool.read(torch.tensor([2])), state)
    pool = pending_pool()
    assert not pool.read(pool.acquire(4)).any()


def test_a_converted_pool_has_the_true_state():
    pool = pending_pool()
    for other in (pool.to(layout="KV"), pool.to(), pool.to(dtype=torch.bfloat16)):
        assert torch.allclose(other.read(torch.tensor([2, 3])), pool.read(torch.tensor([2, 3])), atol=0.1)
        assert (other.ring is not None) == (other.layout == "VK")


def test_freeing_the_ring_keeps_the_state():
    pool = pending_pool()
    before, nbytes = pool.read(torch.tensor([2, 3])), pool.nbytes
    assert "a ring of 16 updates" in repr(pool)
    pool.reserve_ring(0)
    assert pool.ring is None and pool.launch_state.ring is None and pool.nbytes < nbytes
    assert torch.allclose(pool.read(torch.tensor([2, 3])), before, atol=1e-6)


def test_commit_replaces_what_is_pending_and_leaves_rows_without_accepted_tokens():
    pool = pending_pool()
    pool.ring.span[3] = pool.ring.span[2]
    pool.ring.keys[3], pool.ring.corrections[3], pool.ring.log_decays[3] = (part[2] for part in pool.ring[:3])
    pool.reserve_drafts(2, 2)
    pool.intermediate_states.normal_()
    before = pool.read(torch.tensor([3]))
    pool.commit(torch.tensor([2, 3]), torch.tensor([1, 0]))
    assert torch.equal(pool.read(torch.tensor([2])), pool.intermediate_states[:1, 0])
    assert torch.equal(pool.read(torch.tensor([3])), before)


def test_a_backend_without_a_ring_goes_on_from_the_true_state():
    pool = pending_pool()
    x = make_inputs(SHAPE, 2, dtype=torch.float32)
    start = torch.stack([expected_state(pool, 2), expected_state(pool, 3)])
    indices = torch.tensor([2, 3], dtype=torch.int32)
    o = decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend="torch")
    expected_o, expected = reference.decode(*x.arguments(), **x.gates(), state=start)
    assert torch.allclose(o.double(), expected_o, atol=1e-4) and torch.allclose(
        pool.read(indices).double(), expected, atol=1e-4
    )


def test_what_is_allocated():
    pool = StatePool(GDNShape(2, 4), 3)
    pool.reserve_ring(32)
    ring = pool.ring
    assert ring.keys.shape == (3, 2, 32, 128) and ring.keys.dtype == torch.bfloat16 and ring.updates == 32
    assert ring.corrections.shape == (3, 4, 32, 128) and ring.corrections.dtype == torch.bfloat16
    assert pool.nbytes == 3 * sum(pool.slot_nbytes(pool.shape).values()) + ring.nbytes
    assert {correction_dtype(dtype) for dtype in (torch.float16, torch.float32)} == {torch.float32}


def test_refusals():
    with pytest.raises(ValueError, match="updates: expected one of 16, 32, 64, got 8"):
        StatePool(SHAPE, 3).reserve_ring(8)
    with pytest.raises(ValueError, match="key_dtype: expected bfloat16 or float16 or float32, got torch.int8"):
        StatePool(SHAPE, 3).reserve_ring(16, key_dtype=torch.int8)
    with pytest.raises(ValueError, match="a pool of layout KV has no ring"):
        StatePool(SHAPE, 3, layout="KV").reserve_ring(16)
    with pytest.raises(ValueError, match="a pool that rounds stochastically has no ring"):
        StatePool(SHAPE, 3, rounding="stochastic").reserve_ring(16)
