"""Slots of all layers at once, with rings of deferred updates."""

import torch

from gdn_lab.engine.slots import Slots
from gdn_lab.models import FP8_STATE, GDNShape, ring_nbytes, slot_nbytes, slot_nbytes_of
from gdn_lab.rounding import FP8

SHAPE, LAYERS, SLOTS, RING = GDNShape(1, 2), 3, 40, 16


def made(ring=RING, dtype=torch.bfloat16):
    return Slots(SHAPE, LAYERS, SLOTS, layout="VK", dtype=dtype, device="cpu", ring=ring)


def defer(pool, slot, updates):
    """Leave random updates pending in a slot, as a decode that defers does."""
    pool.ring.span[slot] = torch.tensor([0, updates])
    pool.ring.keys[slot].normal_()
    pool.ring.corrections[slot].normal_()


def test_each_layer_has_its_piece_of_one_ring():
    slots = made()
    assert [pool.ring.updates for pool in slots.pools] == [RING] * LAYERS
    assert len({pool.ring.keys.untyped_storage().data_ptr() for pool in slots.pools}) == 1
    assert len({pool.ring.keys.data_ptr() for pool in slots.pools}) == LAYERS
    phases = torch.cat([pool.ring.span[:, 1] for pool in slots.pools]).bincount()
    assert len(phases) == RING + 1 and phases.max() - phases.min() <= 1, "about as many are full at each step"
    for pool in slots.pools:
        defer(pool, 5, 3)
    assert all(pool.read(torch.tensor([4, 6])).count_nonzero() == 0 for pool in slots.pools), "no slot has another's"


def test_a_new_request_starts_from_zero_whatever_was_pending():
    slots = made()
    slot = slots.acquire()
    for pool in slots.pools:
        defer(pool, slot, 7)
        assert pool.read(torch.tensor([slot])).count_nonzero()
    slots.release(slot)
    assert slots.acquire() == slot
    for pool in slots.pools:
        assert not pool.read(torch.tensor([slot])).count_nonzero()
        assert pool.ring.span[slot].tolist() == [7, 7], "the phase stays"


def test_bytes_of_a_slot_are_those_of_the_formulas():
    in_place = LAYERS * sum(slot_nbytes(SHAPE, 2).values())
    assert made(ring=0).slot_nbytes == in_place and made(ring=0).pools[0].ring is None
    assert made().slot_nbytes == in_place + LAYERS * ring_nbytes(SHAPE, RING, correction_bytes=2)


def test_an_fp8_state_has_scales_and_rounds_otherwise_in_each_layer():
    slots = made(dtype=FP8)
    slot = slots.acquire()
    assert slots.slot_nbytes == LAYERS * slot_nbytes_of(SHAPE, FP8_STATE, RING)
    assert len({pool.scales.untyped_storage().data_ptr() for pool in slots.pools}) == 1
    assert len({pool.launch_state.rounding.seed for pool in slots.pools}) == LAYERS
    assert len({pool.ring.operands.factors.data_ptr() for pool in slots.pools}) == 1, "layers take turns"
    assert len(slots.pools[0].ring.operands.due) == 1 + SLOTS
    phases = torch.cat([pool.ring.span[:, 1] for pool in slots.pools]).bincount()
    assert len(phases) == RING and phases.max() - phases.min() <= 1
    for pool in slots.pools:
        pool.scales[slot] = torch.nan  # of a request that went wrong
    slots.release(slot)
    assert slots.acquire() == slot
    assert not any(pool.read(torch.tensor([slot])).count_nonzero() for pool in slots.pools)
