"""An FP8 state without any kernel: what is stored and read, what a pool does with it, who refuses it."""

import pytest
import torch
from against_reference import same_bits

from gdn_lab import GDNShape, StatePool, checks, decode, verify
from gdn_lab.backends import registry
from gdn_lab.e4m3 import FP8, LARGEST, RowScaled, as_stored, quantised
from gdn_lab.ops import decode_gathered, make_inputs
from gdn_lab.rounding import head_keys, random_bits, round_stochastically

SHAPE = GDNShape(1, 2, 32, 32)
SLOTS = torch.tensor([2, 3])


def states(seed=0, rows=2):
    return torch.randn(rows, 2, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_a_row_keeps_its_largest_element_and_the_others_to_four_bits():
    S = states() * torch.logspace(-6, 6, 32)[:, None]
    stored = quantised(S)
    assert stored.data.dtype is FP8 and stored.scales.shape == (2, 2, 32)
    assert torch.allclose(stored.scales, S.abs().amax(-1) / LARGEST)
    error = (stored.dequantised() - S).abs()
    assert (error <= 2.0**-4 * S.abs() + 2.0**-10 * stored.scales[..., None] * (1 + 1e-6)).all()
    assert torch.equal(as_stored(S, torch.bfloat16), S.bfloat16().float())


def test_zeros_and_what_is_not_finite():
    S = states()
    S[0, 0, 3], S[0, 1, 4, 5], S[1, 0, 6, 7] = 0.0, torch.nan, torch.inf
    read = quantised(S).dequantised()
    assert not read[0, 0, 3].any() and read[0, 1, 4, 5].isnan() and not read[1, 0, 6].isfinite().any()
    assert read[0, 1, 4].isnan().sum() == 1 and read[1, 1].isfinite().all()


@pytest.mark.parametrize("value", [1 + 1 / 32, 0.3, 447.0, 2.0**-9 * 0.25, -17.1])
def test_stochastic_rounding_to_e4m3_is_right_on_average(value):
    x = torch.full((1, 1, 256, 256), value)
    bits = random_bits(head_keys(3, torch.zeros(1, 1), torch.tensor([5]), 1), 256, 256)
    rounded = round_stochastically(x, FP8, bits).float()
    found = rounded.unique()
    assert len(found) <= 2 and torch.equal(found, found.to(FP8).float())
    step = max((found.max() - found.min()).item(), 1e-9)
    assert abs(rounded.double().mean().item() - value) < 0.01 * step
    assert abs(found - value).max() <= step


def test_stochastic_rounding_keeps_nan_and_448():
    x = torch.tensor([448.0, -448.0, torch.nan, 0.0]).view(1, 1, 1, 4)
    rounded = round_stochastically(x, FP8, torch.full(x.shape, 0xFFFF, dtype=torch.int32)).float().flatten()
    assert rounded[:2].tolist() == [448.0, -448.0] and rounded[2].isnan() and rounded[3] == 0.0


def test_a_pool_reads_what_it_wrote():
    pool = StatePool(SHAPE, 5, dtype=FP8)
    pool.write(SLOTS, states())
    assert torch.equal(pool.read(SLOTS), as_stored(states(), FP8))
    assert pool.rounding == "stochastic" and pool.scales.shape == (5, 2, 32)
    before = pool.state.clone(), pool.scales.clone()
    pool.write(SLOTS, pool.read(SLOTS))
    assert same_bits(pool.state, before[0]) and torch.allclose(pool.scales, before[1])
    pool.scales.fill_(torch.nan)  # of requests that went wrong
    assert not pool.read(pool.acquire(4)).any()


def test_memory_counts_scales_ring_and_counters():
    pool = StatePool(SHAPE, 5, dtype=FP8)
    assert StatePool.slot_nbytes(SHAPE, FP8)["scales"] == 2 * 32 * 4
    assert pool.nbytes == 5 * (2 * 32 * 32 + 2 * 32 * 4 + pool.conv[0].nbytes) + 5 * 4
    before = pool.nbytes
    pool.reserve_ring(16)
    assert pool.nbytes == before + pool.ring.nbytes and pool.ring.corrections.dtype is torch.bfloat16
    assert pool.ring.operands.nbytes > 0 and pool.ring.span.max() < 16, "no ring is full between steps"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8], ids=str)
def test_a_pool_to_and_from_fp8(dtype):
    pool = StatePool(SHAPE, 5, dtype=FP8, seed=9)
    pool.write(SLOTS, states())
    pool.reserve_ring(16)
    pool.launch_state.rounding.steps[2] = 7
    other = pool.to(dtype=dtype)
    assert torch.allclose(other.read(SLOTS), pool.read(SLOTS), rtol=2.0**-7)
    assert other.rounding == ("stochastic" if dtype is FP8 else "nearest") and other.ring is not None
    back = other.to(dtype=FP8)
    assert torch.allclose(back.read(SLOTS), pool.read(SLOTS), rtol=2.0**-7)
    if dtype is FP8:
        assert back.launch_state.rounding.seed == 9 and back.launch_state.rounding.steps[2] == 7


def test_a_state_is_where_a_condition_says():
    one, other = quantised(states(0)), quantised(states(1))
    mixed = one.where(torch.tensor([True, False]), other)
    assert same_bits(mixed.data, torch.cat([one.data[:1], other.data[1:]]))
    assert torch.equal(RowScaled(*mixed).scales[1], other.scales[1])


def test_commit_rounds_the_accepted_state():
    """One row accepts two tokens, one none, one is padding."""
    pool = StatePool(SHAPE, 5, dtype=FP8)
    pool.write(SLOTS, states())
    pool.reserve_ring(16)
    pool.reserve_drafts(3, 2)
    assert pool.intermediate_states.dtype is torch.bfloat16
    assert StatePool.draft_nbytes(SHAPE, 2, FP8) == StatePool.draft_nbytes(SHAPE, 2, torch.bfloat16)
    pool.intermediate_states.copy_(torch.randn(3, 2, 2, 32, 32))
    kept = pool.state.clone(), pool.scales.clone()
    pool.commit(torch.tensor([2, 3, -1]), torch.tensor([2, 0, 1]))
    assert torch.equal(pool.read(SLOTS[:1]), as_stored(pool.intermediate_states[:1, 1].float(), FP8))
    assert same_bits(pool.state[[0, 1, 3, 4]], kept[0][[0, 1, 3, 4]])
    assert torch.equal(pool.scales[[0, 1, 3, 4]], kept[1][[0, 1, 3, 4]])


def test_checks_see_a_state_that_is_not_finite():
    pool, x = StatePool(SHAPE, 5, dtype=FP8), make_inputs(SHAPE, 2)
    pool.reserve_ring(16)
    pool.scales[3, 1, 4] = torch.inf
    pool.state[3] = 1.0
    with checks(), pytest.raises(ValueError, match=r"got NaN or infinity in slots \[3\]"):
        decode(*x.arguments(), **x.gates(), pool=pool, indices=SLOTS.int())


def test_refusals():
    with pytest.raises(ValueError, match="layout: expected VK for a state of torch.float8_e4m3fn"):
        StatePool(SHAPE, 3, dtype=FP8, layout="KV")
    with pytest.raises(ValueError, match="rounding: expected stochastic for a state of torch.float8_e4m3fn"):
        StatePool(SHAPE, 3, dtype=FP8, rounding="nearest")
    pool, x = StatePool(SHAPE, 5, dtype=FP8), make_inputs(SHAPE, 2)
    options = {**x.gates(), "pool": pool, "indices": SLOTS.int()}
    with pytest.raises(ValueError, match="finds no backend for this call"):
        decode(*x.arguments(), **options)
    with pytest.raises(ValueError, match="pool: expected a state without scales"):
        decode_gathered(*x.arguments(), **options, scratch=StatePool(SHAPE, 5, dtype=FP8), rows=SLOTS)
    drafts = make_inputs(SHAPE, 2, tokens=2)
    with pytest.raises(ValueError, match="finds no backend for this call"):
        verify(*drafts.arguments(), **drafts.gates(), pool=pool, indices=SLOTS.int())


@pytest.mark.parametrize("name", [name for name in registry.VARIANTS if name != "triton/replay-fp8"])
def test_every_other_variant_refuses_in_a_sentence(name):
    reason = registry.refusal(name, GDNShape(2, 4), dtype=FP8, stochastic=True, layout=registry.VARIANTS[name].layout)
    assert reason and reason[0].islower() and "\n" not in reason
