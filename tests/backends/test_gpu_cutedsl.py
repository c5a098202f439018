"""`cutedsl` on an NVIDIA GPU: what is its own. test_gpu.py holds it, as every backend, against the reference."""

import os
import statistics
import subprocess
import sys
import time

import pytest
import torch
from against_reference import PADDING, as_strided, check_decode, filled_pool, row_slots, same_bits
from conftest import HAS_GPU

from gdn_lab import GDNShape, decode, reference
from gdn_lab.backends.cutedsl import cache
from gdn_lab.backends.cutedsl.backend import tile_for
from gdn_lab.ops import make_inputs

CAPABILITY = torch.cuda.get_device_capability() if HAS_GPU else (0, 0)
pytestmark = pytest.mark.gpu
if HAS_GPU and CAPABILITY < (9, 0):
    pytest.skip("cutedsl needs compute capability 9.0", allow_module_level=True)

GPU = torch.device("cuda", 0)
FULL, RANK = GDNShape(16, 64), GDNShape(2, 8)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
dtypes = pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=["bfloat16", "float16", "float32"])


@dtypes
@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (2, 6), (3, 24)], ids=str)
def test_heads(heads, dtype):
    pool = filled_pool(GDNShape(*heads), 8, layout="VK", dtype=dtype, device=GPU)
    check_decode(pool, row_slots(6, 8, padding=[4], device=GPU), backend="cutedsl")


@dtypes
@pytest.mark.parametrize("batch", [1, 16, 17, 1024, 2048])
def test_every_tile_at_every_alignment(batch, dtype):
    """Batches on either side of where the tile changes, q and k aligned and not, int64 indices, without the norm."""
    pool = filled_pool(RANK, batch + 3, layout="VK", dtype=dtype, device=GPU)
    rows = {0, 1, batch // 2, batch - 1}
    for strides in ("packed", "odd"):
        indices = row_slots(batch, batch + 3, padding=[3] if batch > 3 else [], dtype=torch.int64, device=GPU)
        for l2norm in (True, False):
            check_decode(pool, indices, backend="cutedsl", strides=strides, rows=rows, use_qk_l2norm=l2norm, scale=0.05)


def test_null_slot_of_nan():
    """A padding row reads the null slot: what is in there reaches no output and no slot, and stays."""
    pool = filled_pool(RANK, 7, layout="VK", dtype=BF16, device=GPU)
    pool.state[0] = torch.nan
    null = pool.state[0].clone()
    check_decode(pool, row_slots(5, 7, padding=[0, 3], device=GPU), backend="cutedsl")
    assert same_bits(pool.state[0], null)


def test_one_compilation_for_every_batch_of_a_tile_pool_and_stride():
    def run(batch, slots, strides):
        pool = filled_pool(RANK, slots, layout="VK", dtype=BF16, device=GPU)
        x = make_inputs(RANK, batch, device=GPU)
        decode(
            *as_strided(x, strides), **x.gates(), pool=pool, indices=row_slots(batch, slots, device=GPU),
            backend="cutedsl", scale=batch / 100,
        )  # fmt: skip

    run(20, 40, "packed")
    before = len(cache.prepared)
    for batch, slots, strides in ((17, 40, "wide"), (32, 34, "contiguous"), (25, 200, "packed")):
        assert tile_for(batch * RANK.num_v_heads, BF16) == tile_for(20 * RANK.num_v_heads, BF16)
        run(batch, slots, strides)
    assert len(cache.prepared) == before


@dtypes
def test_kernels_in_a_row_see_each_other(dtype):
    """32 steps on the same slots, their inputs written by a kernel just before: launches overlap, results must not."""
    first = filled_pool(RANK, 35, layout="VK", dtype=dtype, device=GPU)
    second = first.to()
    indices = row_slots(33, 35, device=GPU)
    fresh = [make_inputs(RANK, 33, device=GPU, seed=step, strong_decay=False) for step in range(32)]
    inputs = [torch.empty_like(x.contiguous()) for x in fresh[0].arguments()]

    def run(pool, wait):
        outputs = []
        for step in fresh:
            for x, new in zip(inputs, step.arguments(), strict=True):
                x.copy_(new)
            wait()
            outputs.append(decode(*inputs, **fresh[0].gates(), pool=pool, indices=indices, backend="cutedsl") * 1)
            wait()
        return torch.stack(outputs)

    assert same_bits(run(first, lambda: None), run(second, torch.cuda.synchronize))
    assert same_bits(first.state, second.state)


def test_errors_of_a_decay_near_1_do_not_add_up():
    """A float32 state after 4,096 steps that write nothing: 4e-6 by random roundings; a tenth of a unit, always of one
    sign, would come to 2e-5."""
    pool = filled_pool(RANK, 5, layout="VK", dtype=FP32, device=GPU)
    indices = row_slots(3, 5, device=GPU)
    before = pool.read(indices).double()
    x = make_inputs(RANK, 3, device=GPU)
    gates = {"A_log": torch.zeros(8, device=GPU), "dt_bias": torch.linspace(-12.0, -8.0, 8, device=GPU)}
    drawn = torch.randn(4096, 3, 8, generator=torch.Generator(GPU).manual_seed(0), device=GPU).bfloat16()
    never = torch.full_like(drawn[0], -1000.0)
    for a in drawn:
        decode(x.q, x.k, x.v, a, never, **gates, pool=pool, indices=indices, backend="cutedsl")
    log_g = reference.log_decay(drawn, **gates, device=GPU).sum(0)
    expected = torch.exp(log_g)[..., None, None] * before
    errors = (pool.read(indices) - expected).flatten(2).norm(dim=2) / expected.flatten(2).norm(dim=2)
    assert errors.max() < 1e-5, errors


DECODE = """
import torch
from gdn_lab import GDNShape, StatePool, decode
from gdn_lab.backends.cutedsl import cache
from gdn_lab.ops import make_inputs
pool = StatePool(GDNShape(2, 8), 5, device="cuda")
x = make_inputs(pool.shape, 3, device="cuda")
indices = torch.tensor([2, -1, 4], dtype=torch.int32, device="cuda")
o = decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend="cutedsl")
[kernel] = cache.prepared
print(kernel.from_cache, o.float().sum().item(), pool.state.float().sum().item(), kernel.seconds)
"""


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    said = []
    for _ in range(2):
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", DECODE], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split())
    (compiled, *results, first), (loaded, *same, second) = said
    print(f"ready after {float(first):.2f} s compiled, {float(second):.2f} s loaded, importing the CuTe DSL included")
    assert (compiled, loaded) == ("False", "True") and results == same


@pytest.mark.alone
def test_host_time_of_a_call():
    """At most that of triton, for the same call of decode(): medians of interleaved rounds."""
    pool = filled_pool(FULL, 17, layout="VK", dtype=BF16, device=GPU)
    x = make_inputs(FULL, 4, device=GPU)
    indices = torch.tensor([1, 5, PADDING, 9], dtype=torch.int32, device=GPU)
    out = torch.empty_like(x.v, memory_format=torch.contiguous_format)

    def host_us(backend, calls=50):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend=backend, out=out)
        return (time.perf_counter() - start) / calls * 1e6

    backends = ("cutedsl", "triton")
    rounds = [[host_us(backend) for backend in backends] for _ in range(21)][1:]
    ours, triton = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"host time of decode(): cutedsl {ours:.1f} us, triton {triton:.1f} us")
    assert ours <= triton
