"""Stochastic rounding of the Triton decode kernel in the interpreter, against rounding.py."""

import pytest
import torch
import triton
import triton.language as tl
from against_reference import same_bits

from gdn_lab import GDNShape, StatePool, decode, rounding
from gdn_lab.backends.triton import recurrent, stochastic
from gdn_lab.ops import make_inputs

SHAPE = GDNShape(1, 2, 16, 32)
every_dtype = pytest.mark.parametrize("dtype", rounding.DTYPES, ids=str)


@triton.jit
def rounding_kernel(x, u, out, seed, step, head, ROWS: tl.constexpr, K: tl.constexpr):
    rows, ks = tl.arange(0, ROWS), tl.arange(0, K)
    at = rows[:, None] * K + ks[None, :]
    DTYPE: tl.constexpr = out.dtype.element_ty
    key = stochastic.head_key(tl.load(seed), tl.load(step), tl.load(head))
    bits = stochastic.random_bits(key, rows, ks, tl.load(u + rows), K)
    tl.store(out + at, stochastic.round_stochastically(stochastic.scaled(tl.load(x + at), DTYPE), bits, DTYPE))


@every_dtype
@pytest.mark.parametrize("seed, step, slot", [(0, 0, 1), (2**31 - 1, -5, 3), (7, 100_000, 2**20)])
def test_device_code_gives_the_bits_of_rounding_py(dtype, seed, step, slot):
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-8, 4, 8)[:, None]
    large = 3.39e38 if dtype is torch.bfloat16 else 65504.0  # cut off beyond it: by a GPU (test_gpu_rounding.py) alone
    x[0, :6] = torch.tensor([0.0, -0.0, large, -large, 65503.0, -1e-7])
    x[2] = torch.linspace(-(2.0**-14), 2.0**-14, 16)  # float16's subnormal numbers, and the first that is none
    x[1] = torch.tensor([torch.inf, -torch.inf, torch.nan, -torch.nan]).repeat(4)
    u = torch.tensor([1.0, torch.nan, 3e38, 0.0, -0.0, -1.0, 1e-40, 5.0])
    out, head = torch.empty(8, 16, dtype=dtype), torch.tensor([slot * 2 + 1])
    arguments = torch.tensor([seed], dtype=torch.int32), torch.tensor([step], dtype=torch.int32), head
    rounding_kernel[(1,)](x, u, out, *arguments, ROWS=8, K=16)
    keys = rounding.head_keys(seed, torch.tensor([[step, step]]), torch.tensor([slot]), 2)[:, 1]
    expected = rounding.round_stochastically(x, dtype, rounding.random_bits(keys, 8, 16)[0])
    assert torch.equal(out.isnan(), expected.isnan())
    assert same_bits(out.nan_to_num(7.0, torch.inf, -torch.inf), expected.nan_to_num(7.0, torch.inf, -torch.inf))


@every_dtype
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(monkeypatch, dtype, number):
    """Whatever made an element infinite or NaN, its row has no finite u. One batch row for each input."""
    monkeypatch.setattr(recurrent, "decode_tile", lambda heads, overlap: recurrent.Tile(32, 1))
    states = []
    for backend in ("triton/vk", "torch/vk"):
        pool = StatePool(SHAPE, 7, dtype=dtype, device="cpu", rounding="stochastic")
        slots = pool.acquire(6)
        pool.state[1:] = torch.randn(6, 2, 32, 16, generator=torch.Generator().manual_seed(0))
        x = make_inputs(SHAPE, 6, seed=1, strong_decay=False)
        for row, part in enumerate((x.q, x.k, x.v, x.a, x.b, pool.state[1:])):
            part[row].view(-1)[-1] = number
        decode(*x.arguments(), **x.gates(), pool=pool, indices=slots, backend=backend)
        states.append(pool.state[1:].float())
    ours, expected = states
    assert torch.equal(ours.isnan(), expected.isnan()) and torch.equal(ours.isinf(), expected.isinf())
    assert not ours[[1, 2, 5]].isfinite().flatten(1).all(1).any()


@every_dtype
@pytest.mark.parametrize("tile", [4, 16])
def test_the_kernel_rounds_as_torch_does(monkeypatch, dtype, tile):
    """Float32 sums in another order differ in the last place, which decides few roundings otherwise."""
    monkeypatch.setattr(recurrent, "decode_tile", lambda heads, overlap: recurrent.Tile(tile, 1))
    pools = [StatePool(SHAPE, 4, dtype=dtype, device="cpu", rounding="stochastic", seed=3) for _ in range(2)]
    for backend, pool in zip(("triton/vk", "torch/vk"), pools, strict=True):
        slots = pool.acquire(2)
        for step in range(2):
            x = make_inputs(SHAPE, 3, seed=step, strong_decay=False)
            indices = torch.tensor([slots[1], -1, slots[0]], dtype=torch.int32)
            decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend=backend)
    ours, expected = (pool.state[1:3].view(torch.int16).int() for pool in pools)
    assert (ours != expected).float().mean() < 0.02 and (ours - expected).abs().max() <= 1
    steps = pools[0].launch_state.rounding.steps
    assert (steps[1:3] == 2).all() and not steps[[0, 3]].any(), "each row of a tile counts, padding does not"
