"""Stochastic rounding: unbiased, reproducible by seed, and a property of the pool that nothing takes over silently."""

import math

import pytest
import torch
from against_reference import same_bits

from gdn_lab import GDNShape, StatePool, backends, decode, reference, rounding, verify
from gdn_lab.backends import refusal
from gdn_lab.ops import decode_gathered, make_inputs

SHAPE = GDNShape(1, 2, 16, 32)
every_dtype = pytest.mark.parametrize("dtype", rounding.DTYPES, ids=str)


def stochastic_pool(dtype=torch.bfloat16, **options):
    return StatePool(SHAPE, 4, dtype=dtype, device="cpu", rounding="stochastic", **options)


def run(pool, steps=3, backend="torch/vk", seed=0):
    """Decode random tokens on two new slots and return their state as stored."""
    slots = pool.acquire(2)
    for step in range(steps):
        x = make_inputs(SHAPE, 2, seed=seed + step, strong_decay=False)
        decode(*x.arguments(), **x.gates(), pool=pool, indices=slots, backend=backend)
    return pool.state[slots]


@every_dtype
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_the_mean_of_many_roundings_is_the_number_itself(dtype, scale):
    """Within 5 standard errors for all elements together, and for each; 1e-6: subnormal numbers of float16."""
    x = scale * torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    draws = 4000
    keys = rounding.head_keys(7, torch.arange(draws)[:, None], torch.ones(draws), 1)
    rounded = rounding.round_stochastically(x, dtype, rounding.random_bits(keys, 4, 32)[:, 0]).double()
    errors = rounded - x.double()
    below, above = rounded.amin(0), rounded.amax(0)
    assert (below <= x).all() and (above >= x).all()
    spacing = torch.where(above > below, above - below, 1.0)
    assert (errors.abs() < spacing).all(), "an element takes one of its two neighbours"
    means = (errors / spacing).mean(0)
    assert means.abs().max() < 5 * 0.5 / math.sqrt(draws)
    assert abs(means.mean()) < 5 * 0.5 / math.sqrt(draws * x.numel())


def test_neighbours_rows_heads_and_steps_get_bits_of_their_own():
    """Correlations of 16 random bits between elements, over 4,096 steps, are those of independent numbers."""
    steps = 4096
    keys = rounding.head_keys(0, torch.arange(steps)[:, None].expand(-1, 2), torch.full((steps,), 5), 2)
    bits = rounding.random_bits(keys, 4, 8).flatten(1).double()
    assert abs(bits.mean() / 65536 - 0.5) < 5 * 0.29 / math.sqrt(bits.numel())
    correlations = torch.corrcoef(bits.T) - torch.eye(bits.shape[1], dtype=torch.float64)
    assert correlations.abs().max() < 5.5 / math.sqrt(steps)
    lagged = torch.corrcoef(torch.cat([bits[:-1], bits[1:]], 1).T)[: bits.shape[1], bits.shape[1] :]
    assert lagged.abs().max() < 5.5 / math.sqrt(steps)


@every_dtype
def test_sums_of_rounding_errors_vary_as_independent_ones_do(dtype):
    """Of rows and columns of a state, and of all of it, with weights: variances within 5 standard errors."""
    rng, draws = torch.Generator().manual_seed(2), 4000
    x = torch.randn(16, 32, generator=rng)
    weights = torch.randn(16, 32, generator=rng).double()
    keys = rounding.head_keys(11, torch.arange(draws)[:, None], torch.ones(draws), 1)
    rounded = rounding.round_stochastically(x, dtype, rounding.random_bits(keys, 16, 32)[:, 0]).double()
    errors, own = weights * (rounded - x.double()), weights**2 * (x - rounded.amin(0)) * (rounded.amax(0) - x)
    for dims in (1, 2, (1, 2)):
        ratio = errors.sum(dims).square().mean(0) / own[None].sum(dims)[0]
        assert (ratio - 1).abs().max() < 5 * math.sqrt(2 / draws)


@every_dtype
def test_numbers_that_are_not_finite_and_those_that_need_no_rounding(dtype):
    bits = torch.tensor([0, 65535]).int()[:, None]
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, torch.inf, -torch.inf])
    assert all(same_bits(row, exact.to(dtype)) for row in rounding.round_stochastically(exact, dtype, bits))
    assert rounding.round_stochastically(torch.tensor([torch.nan]), dtype, bits).isnan().all()
    largest = torch.finfo(dtype).max
    below, above = rounding.round_stochastically(torch.tensor([largest * 1.0004]), dtype, bits).flatten().tolist()
    assert (below, above) == (largest, math.inf if dtype is torch.bfloat16 else largest)


@every_dtype
@pytest.mark.parametrize("backend", ["torch/vk", "torch/kv"])
def test_the_same_seed_gives_the_same_state_and_another_another(dtype, backend):
    layout = "KV" if backend == "torch/kv" else "VK"
    one, again, other = (run(stochastic_pool(dtype, layout=layout, seed=s), backend=backend) for s in (1, 1, 2))
    assert same_bits(one, again) and not same_bits(one, other)


def test_layouts_round_alike():
    vk, kv = (run(stochastic_pool(layout=layout), backend=f"torch/{layout.lower()}") for layout in ("VK", "KV"))
    assert (vk != kv.transpose(-1, -2)).float().mean() < 0.01


def test_a_slot_that_is_handed_out_again_begins_anew():
    pool = stochastic_pool()
    first = run(pool).clone()
    pool.release(torch.tensor([1, 2], dtype=torch.int32))
    assert same_bits(run(pool), first)


def test_one_step_is_as_near_to_the_reference_as_a_unit_in_the_last_place():
    pool = stochastic_pool()
    slots = pool.acquire(2)
    x = make_inputs(SHAPE, 2)
    decode(*x.arguments(), **x.gates(), pool=pool, indices=slots, backend="torch")
    _, expected = reference.decode(*x.arguments(), **x.gates(), state=torch.zeros(2, 2, 32, 16))
    errors = (pool.read(slots) - expected).abs()
    assert (errors <= 2.0**-7 * expected.abs() + 1e-6).all() and (errors > 2.0**-8 * expected.abs()).any()


def test_a_converted_pool_goes_on_with_the_same_bits():
    pool = stochastic_pool(seed=5)
    run(pool)
    other = pool.to(dtype=torch.float16)
    assert other.rounding == "stochastic" and other.launch_state.rounding.seed == 5
    assert torch.equal(other.launch_state.rounding.steps, pool.launch_state.rounding.steps)
    assert pool.to(dtype=torch.float32).rounding == "nearest"


def test_the_counters_are_part_of_the_pools_bytes():
    nearest = StatePool(SHAPE, 4, device="cpu")
    assert stochastic_pool().nbytes - nearest.nbytes == 4 * 2 * 8 * 4  # slots, heads, 32 rows in fours, int32


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rounding": "up"}, "rounding: expected one of nearest, stochastic, got 'up'"),
        ({"rounding": "stochastic", "dtype": torch.float32}, "rounding: expected nearest for a state of torch.float32"),
        ({"seed": -1}, "seed: expected an int from 0"),
        ({"seed": 2**31}, "seed: expected an int from 0"),
    ],
)
def test_refusals_of_a_pool(options, message):
    with pytest.raises(ValueError, match=message):
        StatePool(SHAPE, 4, device="cpu", **options)


def test_what_rounds_to_nearest_refuses():
    """Every variant that does not round stochastically in a phase, but prefill, which rounds once for many tokens."""
    for report in backends("cpu"):
        for variant in report.variants:
            for phase in set(variant.phases) - set(variant.stochastic):
                options = dict(layout=variant.layout, dtype=torch.bfloat16, phase=phase, stochastic=True)
                reason = refusal(variant.full_name, GDNShape(2, 4), **options)
                if report.name == "torch":
                    assert (reason is None) == (phase == "prefill")
                    assert phase == "prefill" or "this pool asks for stochastic rounding" in reason


def test_verify_and_a_scratch_pool_of_another_rounding_refuse():
    pool = stochastic_pool()
    slots = pool.acquire(2)
    x = make_inputs(SHAPE, 2, tokens=2)
    with pytest.raises(ValueError, match="rounds the state to nearest in verify; this pool asks for stochastic"):
        verify(*x.arguments(), **x.gates(), pool=pool, indices=slots)
    x, scratch = make_inputs(SHAPE, 2), StatePool(SHAPE, 4, device="cpu")
    rows = torch.arange(1, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match="scratch: expected"):
        decode_gathered(*x.arguments(), **x.gates(), pool=pool, indices=slots, scratch=scratch, rows=rows)
