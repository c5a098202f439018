"""On an NVIDIA GPU: every backend, variant, layout and dtype against the reference, and what decode() promises there.

make test-gpu. Most of the time goes into compiling kernels, one for each number of heads among others, so nearly all
tests have those of RANK, and each compiles what it needs once. Only variants that this GPU's compute capability should
serve are collected; one that then refuses, or a test that skips, has failed.
"""

import functools
import statistics
import time
from importlib.util import find_spec

import pytest
import torch
from against_reference import PADDING, as_strided, check_decode, filled_pool, row_slots, same_bits
from conftest import HAS_GPU
from tolerances import assert_close

from gdn_lab import GDNShape, StatePool, backends, checks, decode, reference
from gdn_lab.backends.base import dtype_name
from gdn_lab.backends.registry import BACKENDS
from gdn_lab.ops import decode_gathered, make_inputs

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
CAPABILITY = torch.cuda.get_device_capability(GPU) if HAS_GPU else (0, 0)
# The first compute capability that each should serve; peers serve where they are installed
NEEDS = {"torch": (0, 0), "triton": (8, 0), "cutedsl": (9, 0), "flashinfer": (9, 0)}
NEEDS["fla"] = (8, 0) if find_spec("fla") else (99, 0)
FULL = GDNShape(16, 64)
RANK = GDNShape(2, 8)  # one GPU of eight
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

VARIANTS = [
    (backend.name, variant)
    for backend in BACKENDS.values()
    for variant in backend.variants
    if CAPABILITY >= NEEDS[backend.name] and "decode" in variant.phases
]
KERNELS = [(name, variant) for name, variant in VARIANTS if name not in ("torch", "fla")]  # those of one kernel a call
FLEXIBLE = [(name, variant) for name, variant in VARIANTS if name in ("torch", "triton")]  # of any dtype and head size


def named(variants):
    return pytest.mark.parametrize(
        "name, variant", variants, ids=[f"{name}/{variant.name}" for name, variant in variants]
    )


every_variant, every_kernel = named(VARIANTS), named(KERNELS)
every_variant_and_dtype = pytest.mark.parametrize(
    "name, variant, dtype",
    [(name, variant, dtype) for name, variant in VARIANTS for dtype in variant.state_dtypes],
    ids=[f"{name}/{variant.name}-{dtype_name(dtype)}" for name, variant in VARIANTS for dtype in variant.state_dtypes],
)


def index_dtypes(name):
    return (torch.int32,) if name == "flashinfer" else (torch.int32, torch.int64)


def pads_with_zero(name, dtype):
    return name != "fla" and not (name == "flashinfer" and dtype == BF16)


@pytest.fixture(autouse=True)
def memory_goes_back():
    yield
    torch.cuda.empty_cache()


def test_every_backend_serves_this_gpu():
    for report in backends(GPU):
        if CAPABILITY >= NEEDS[report.name]:
            assert report.reason is None and report.installed and report.version, report


@pytest.mark.parametrize("layout", ["VK", "KV"])
def test_auto_is_the_first_that_serves(layout):
    """Inputs of float32 are triton's: "auto" gives what it gives, bit for bit, and not what torch gives."""
    results = {}
    for backend in ("auto", "triton", "torch"):
        pool = filled_pool(RANK, 6, layout=layout, dtype=FP32, device=GPU)
        indices = row_slots(5, 6, device=GPU)
        results[backend], _ = check_decode(pool, indices, backend=backend, io_dtype=FP32)
    assert same_bits(results["auto"], results["triton"])
    assert not same_bits(results["auto"], results["torch"])


@every_variant_and_dtype
def test_against_reference(name, variant, dtype):
    """Strong decay, packed views, padding rows; batches on either side of where tiles change. The reference sees 6."""
    batches = [(7, index_dtype) for index_dtype in index_dtypes(name)]
    for batch, index_dtype in [(1, torch.int32), *batches, (33, torch.int32), (70, torch.int32)]:
        slots = batch + 3
        pool = filled_pool(RANK, slots, layout=variant.layout, dtype=dtype, device=GPU)
        padding = [row for row in (1, 5, batch - 1) if 0 < row < batch]
        indices = row_slots(batch, slots, padding=padding, dtype=index_dtype, device=GPU)
        check_decode(
            pool, indices, backend=f"{name}/{variant.name}", padding_is_zero=pads_with_zero(name, dtype),
            rows={0, 2, 3, batch // 2, batch - 3, batch - 2},
        )  # fmt: skip


@every_variant_and_dtype
def test_largest_batch(name, variant, dtype):
    """All heads and the largest tiles; the last row is not padding, and the last slot is taken."""
    pool = filled_pool(FULL, 262, layout=variant.layout, dtype=dtype, device=GPU)
    indices = row_slots(260, 262, padding=[200], device=GPU)
    indices[-1] = 261
    indices[:-1][indices[:-1] == 261] = PADDING
    check_decode(
        pool, indices, backend=f"{name}/{variant.name}", rows={0, 1, 127, 128, 258, 259},
        padding_is_zero=pads_with_zero(name, dtype),
    )  # fmt: skip


@every_variant
def test_strides(name, variant):
    dtype = variant.state_dtypes[0]
    for strides in ("contiguous", "wide", "odd", "apart"):
        if name == "flashinfer" and strides == "odd":
            continue  # refused: test_flashinfer_refuses_unaligned_tensors
        pool = filled_pool(RANK, 9, layout=variant.layout, dtype=dtype, device=GPU)
        indices = row_slots(7, 9, padding=[2], device=GPU)
        zero = pads_with_zero(name, dtype)
        check_decode(pool, indices, backend=f"{name}/{variant.name}", strides=strides, padding_is_zero=zero)


@named(FLEXIBLE)
@pytest.mark.parametrize("dtype, io_dtype", [(BF16, FP16), (FP32, FP32)], ids=str)
def test_inputs_of_other_dtypes(name, variant, dtype, io_dtype):
    pool = filled_pool(RANK, 7, layout=variant.layout, dtype=dtype, device=GPU)
    indices = row_slots(5, 7, padding=[3], device=GPU)
    o, _ = check_decode(pool, indices, backend=f"{name}/{variant.name}", io_dtype=io_dtype)
    assert o.dtype == io_dtype


@named(FLEXIBLE)
def test_other_head_sizes(name, variant):
    for shape in (GDNShape(1, 1, 16, 32), GDNShape(1, 3, 64, 96), GDNShape(2, 2, 256, 128)):
        pool = filled_pool(shape, 7, layout=variant.layout, dtype=FP32, device=GPU)
        check_decode(pool, row_slots(5, 7, padding=[3], device=GPU), backend=f"{name}/{variant.name}")


@every_variant
def test_scale_and_no_norm(name, variant):
    dtype = variant.state_dtypes[0]
    for options in ({"scale": 0.5}, {"use_qk_l2norm": False}):
        pool = filled_pool(RANK, 5, layout=variant.layout, dtype=dtype, device=GPU)
        pool.state.mul_(0.01)
        indices = row_slots(3, 5, device=GPU)
        check_decode(pool, indices, backend=f"{name}/{variant.name}", strong_decay=False, **options)


@every_variant
def test_gates_at_their_limits(name, variant):
    """a and b far out on both sides: g is 1, 0 or between, beta 0 or 1; nothing is NaN and g = 0 forgets the slot."""
    dtype = variant.state_dtypes[0]
    pool = filled_pool(RANK, 9, layout=variant.layout, dtype=dtype, device=GPU)
    inputs = make_inputs(RANK, 8, device=GPU)
    extremes = torch.tensor([-80.0, -20.0, -1.0, 0.0, 1.0, 19.5, 20.5, 80.0], device=GPU).to(BF16)
    inputs.a.copy_(extremes[:, None].expand(8, 8))
    inputs.b.copy_(extremes[None, :].expand(8, 8))
    inputs.A_log.fill_(2.77)  # A = 16
    check_decode(pool, row_slots(8, 9, device=GPU), backend=f"{name}/{variant.name}", inputs=inputs)


@every_variant
def test_keys_near_zero(name, variant):
    """|q|², |k|² of the size of the 1e-6 under the root, and rows of nothing but zeros."""
    pool = filled_pool(RANK, 9, layout=variant.layout, dtype=variant.state_dtypes[0], device=GPU)
    inputs = make_inputs(RANK, 4, device=GPU)
    inputs.mixed_qkv.mul_(1e-4)[2].zero_()
    check_decode(pool, row_slots(4, 9, device=GPU), backend=f"{name}/{variant.name}", inputs=inputs)


@every_variant
def test_out_is_written_and_returned(name, variant):
    pool = filled_pool(RANK, 5, layout=variant.layout, dtype=variant.state_dtypes[0], device=GPU)
    out = torch.full((3, RANK.num_v_heads, RANK.head_v_dim), torch.nan, dtype=BF16, device=GPU)
    o, _ = check_decode(pool, row_slots(3, 5, device=GPU), backend=f"{name}/{variant.name}", out=out)
    assert o is out


@every_variant
def test_no_rows(name, variant):
    pool = filled_pool(RANK, 3, layout=variant.layout, dtype=variant.state_dtypes[0], device=GPU)
    o, _ = check_decode(pool, row_slots(0, 3, device=GPU), backend=f"{name}/{variant.name}")
    assert o.shape == (0, RANK.num_v_heads, RANK.head_v_dim)


@every_variant
def test_gathered_equals_in_place(name, variant):
    backend = f"{name}/{variant.name}"
    in_place = filled_pool(RANK, 9, layout=variant.layout, dtype=variant.state_dtypes[0], device=GPU)
    gathered = in_place.to()
    scratch = StatePool(RANK, 8, layout=variant.layout, dtype=in_place.dtype, device=GPU)
    rows = torch.arange(1, 7, dtype=torch.int32, device=GPU)
    indices = row_slots(6, 9, padding=[1, 4], device=GPU)
    with_rows = functools.partial(decode_gathered, scratch=scratch, rows=rows)
    o, inputs = check_decode(in_place, indices, backend=backend, padding_is_zero=False)
    same, _ = check_decode(gathered, indices, backend=backend, inputs=inputs, call=with_rows, padding_is_zero=False)
    live = indices >= 0
    assert same_bits(o[live], same[live]) and same_bits(in_place.state[1:], gathered.state[1:])


def one_call(name, variant, *, batch=7, slots=9):
    """A call with out= given, ready to be repeated, and its parts; warmed up, so that kernels are compiled."""
    pool = filled_pool(RANK, slots, layout=variant.layout, dtype=variant.state_dtypes[0], device=GPU)
    indices = row_slots(batch, slots, padding=[1], device=GPU)
    inputs = make_inputs(RANK, batch, device=GPU)
    out = torch.empty(batch, RANK.num_v_heads, RANK.head_v_dim, dtype=BF16, device=GPU)

    def call():
        arguments, gates = inputs.arguments(), inputs.gates()
        return decode(*arguments, **gates, pool=pool, indices=indices, backend=f"{name}/{variant.name}", out=out)

    call()
    torch.cuda.synchronize()
    return call, pool, indices, inputs, out


@every_kernel
def test_packed_views_are_read_without_an_allocation(name, variant):
    for batch in (7, 33, 70):
        call, *_, inputs, _ = one_call(name, variant, batch=batch, slots=batch + 2)
        assert not inputs.q.is_contiguous() and not inputs.v.is_contiguous()
        before = torch.cuda.memory_stats(GPU)["allocation.all.allocated"]
        for _ in range(3):
            call()
        assert torch.cuda.memory_stats(GPU)["allocation.all.allocated"] == before


@every_kernel
def test_packed_views_are_read_by_one_kernel(name, variant):
    call, *_ = one_call(name, variant)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
    on_gpu = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(on_gpu) == 3 and len(set(on_gpu)) == 1, on_gpu


@every_variant
def test_never_synchronises(name, variant):
    call, pool, indices, inputs, out = one_call(name, variant)
    scratch = StatePool(RANK, 8, layout=variant.layout, dtype=pool.dtype, device=GPU)
    rows = torch.arange(1, 8, dtype=torch.int32, device=GPU)
    options = dict(**inputs.gates(), pool=pool, indices=indices, backend=f"{name}/{variant.name}")
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
        decode(*inputs.arguments(), **options)  # out= not given
        decode_gathered(*inputs.arguments(), **options, scratch=scratch, rows=rows, out=out)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_variant
@pytest.mark.parametrize("gathered", [False, True], ids=["in_place", "gathered"])
def test_cuda_graph_replays_on_new_indices_and_inputs(name, variant, gathered):
    """Captured once; replayed three times after its indices (padding in another row) and inputs were overwritten."""
    _, pool, indices, inputs, out = one_call(name, variant)
    scratch = StatePool(RANK, 8, layout=variant.layout, dtype=pool.dtype, device=GPU)
    options = dict(**inputs.gates(), pool=pool, indices=indices, backend=f"{name}/{variant.name}", out=out)
    if gathered:
        call, options = decode_gathered, options | dict(scratch=scratch, rows=torch.arange(1, 8, device=GPU).int())
    else:
        call = decode
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(*inputs.arguments(), **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(*inputs.arguments(), **options)

    def replay(q, k, v, a, b, **_):
        assert q is inputs.q
        graph.replay()
        return out

    for step in range(3):
        indices.copy_(row_slots(7, 9, padding=[step], seed=step))
        fresh = make_inputs(RANK, 7, device=GPU, seed=10 + step)
        for x, new in zip(inputs.arguments(), fresh.arguments(), strict=True):
            x.copy_(new)
        check_decode(pool, indices, backend="", inputs=inputs, call=replay, padding_is_zero=False)


@named([(name, variant) for name, variant in VARIANTS if name == "triton"])
def test_kernels_in_a_row_see_each_other(name, variant):
    """32 steps on the same slots, their inputs written by a kernel just before: launches overlap, results must not."""
    steps, batch = 32, 33
    first = filled_pool(RANK, 35, layout=variant.layout, dtype=FP32, device=GPU)
    second = first.to()
    indices = row_slots(batch, 35, device=GPU)
    fresh = [make_inputs(RANK, batch, device=GPU, seed=step, strong_decay=False) for step in range(steps)]
    q, k, v, a, b = (torch.empty_like(x.contiguous()) for x in fresh[0].arguments())

    def run(pool, wait):
        outputs = []
        for step in range(steps):
            for x, new in zip((q, k, v, a, b), fresh[step].arguments(), strict=True):
                x.copy_(new)
            wait()
            o = decode(q, k, v, a, b, **fresh[0].gates(), pool=pool, indices=indices, backend=f"{name}/{variant.name}")
            wait()
            outputs.append(o * 1)
        return torch.stack(outputs)

    o = run(first, lambda: None)
    assert same_bits(o, run(second, torch.cuda.synchronize))
    assert same_bits(first.state, second.state)


@every_variant
def test_pool_beyond_2_31_elements(name, variant):
    """16,400 slots of 2^17 elements; slot 16,384 begins at element 2^31. All other slots are zero and stay zero."""
    touched = [1, 16383, 16384, 16385, 16399]
    pool = StatePool(RANK, 16400, layout=variant.layout, dtype=BF16, device=GPU)
    assert pool.state.numel() > 2**31
    indices = torch.tensor([16384, 1, PADDING, 16399, 16383, 16385], dtype=torch.int32, device=GPU)
    live = [0, 1, 3, 4, 5]
    pool.state[touched] = torch.randn(5, *pool.state.shape[1:], device=GPU).to(BF16)
    old = pool.read(indices[live])
    x = make_inputs(RANK, 6, device=GPU)
    o = decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend=f"{name}/{variant.name}")
    expected_o, expected_state = reference.decode(*(t[live] for t in x.arguments()), **x.gates(), state=old)
    assert_close("o", o[live], expected_o, BF16)
    assert_close("state", pool.read(indices[live]), expected_state, BF16)
    pool.state[[0, *touched]] = 0
    assert not any(part.any() for part in pool.state.split(2048)), "a slot that no row names has changed"


@pytest.mark.alone
def test_eager_call_costs_at_most_two_bare_launches():
    """Host time of decode() on triton against that of the kernel's launch alone: medians of interleaved rounds."""
    from gdn_lab.backends.triton.recurrent import can_overlap, decode_tile, tokens_kernel

    pool = StatePool(FULL, 65, device=GPU)
    x = make_inputs(FULL, 8, device=GPU)
    indices = torch.arange(1, 9, dtype=torch.int32, device=GPU)
    out = torch.empty_like(x.v, memory_format=torch.contiguous_format)
    overlap = can_overlap(GPU)
    tile = decode_tile(8 * 64, overlap)
    strides = (x.q.stride(0), 0, 128, x.k.stride(0), 0, 128, x.v.stride(0), 0, 128, x.a.stride(0), 0, x.b.stride(0), 0)

    def bare():
        tokens_kernel[(128 // tile.rows * 64 * 8,)](
            x.q, x.k, x.v, x.a, x.b, x.A_log, x.dt_bias, pool.state, indices, pool.state, out, 128**-0.5, *strides, 0,
            16, 64, 128, 128, 1, tile.rows, True, False, True, overlap, True, 1e-6, 20.0, num_warps=tile.warps,
            launch_pdl=overlap,
        )  # fmt: skip

    def eager():
        decode(
            x.q, x.k, x.v, x.a, x.b, A_log=x.A_log, dt_bias=x.dt_bias, pool=pool, indices=indices, backend="triton",
            out=out,
        )  # fmt: skip

    def host_us(call, calls=100):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls * 1e6

    host_us(bare), host_us(eager)
    rounds = [(host_us(bare), host_us(eager)) for _ in range(25)]
    bare_us, eager_us = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"host time of a bare launch {bare_us:.1f} us, of decode() {eager_us:.1f} us")
    assert eager_us <= 2 * bare_us, f"decode() takes {eager_us:.1f} us of host time, a bare launch {bare_us:.1f}"


def test_flashinfer_refuses_unaligned_tensors():
    if not any(name == "flashinfer" for name, _ in VARIANTS):
        return
    pool = filled_pool(RANK, 9, layout="VK", dtype=BF16, device=GPU)
    x = make_inputs(RANK, 3, device=GPU)
    whole = row_slots(4, 9, device=GPU)
    options = dict(**x.gates(), pool=pool, backend="flashinfer")
    with pytest.raises(ValueError, match="^indices: .*multiple of 32 bytes"):
        decode(*x.arguments(), **options, indices=whole[1:])
    with pytest.raises(ValueError, match="^q: .*multiple of 32 bytes"):
        decode(*as_strided(x, "odd"), **options, indices=whole[:3])


def test_arguments_on_another_device():
    pool = StatePool(RANK, 5, device=GPU)
    x = make_inputs(RANK, 3, device=GPU)
    good = dict(zip("qkvab", x.arguments(), strict=True)) | x.gates()
    good |= dict(indices=row_slots(3, 5, device=GPU), out=torch.empty(3, 8, 128, dtype=BF16, device=GPU))
    for name in good:
        with pytest.raises(ValueError, match=f"^{name}: expected .* on cuda:0, .*; got .* on cpu"):
            decode(**good | {name: good[name].cpu()}, pool=pool)


def test_indices_at_any_address():
    pool = filled_pool(RANK, 9, layout="VK", dtype=BF16, device=GPU)
    for dtype in (torch.int32, torch.int64):
        check_decode(pool, row_slots(6, 9, padding=[2], dtype=dtype, device=GPU)[1:], backend="triton")


def test_checks_read_values():
    pool = filled_pool(RANK, 9, layout="VK", dtype=BF16, device=GPU)
    x = make_inputs(RANK, 2, device=GPU)

    def call(*slots):
        indices = torch.tensor(slots, dtype=torch.int32, device=GPU)
        decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend="triton")

    with checks(True):
        call(1, PADDING)
        with pytest.raises(ValueError, match="slots below 9"):
            call(1, 9)
        with pytest.raises(ValueError, match="each live slot once"):
            call(2, 2)
        pool.state[3, 0, 0, 0] = torch.nan
        with pytest.raises(ValueError, match=r"in slots \[3\]"):
            call(2, 3)


def test_pool_on_the_gpu():
    """Slots come zeroed; there and back between layouts and devices is exact; read and write speak [n, HV, V, K]."""
    pool = filled_pool(RANK, 5, layout="VK", dtype=BF16, device=GPU)
    slots = pool.acquire(3)
    assert slots.is_cuda and not pool.state[slots.long()].any() and not pool.conv[slots.long()].any()
    state = torch.randn(3, 8, 128, 128, device=GPU).to(BF16)
    pool.write(slots, state)
    assert torch.equal(pool.read(slots), state.float())
    there = pool.to(layout="KV", device="cpu", dtype=FP32)
    assert there.free == pool.free and torch.equal(there.read(slots.cpu()), state.float().cpu())
    back = there.to(layout="VK", device=GPU, dtype=BF16)
    assert same_bits(back.state, pool.state) and same_bits(back.conv, pool.conv)


def test_pool_on_another_than_the_current_device(monkeypatch):
    """Kernels are launched on the current device, so a pool that lies elsewhere is refused, with the way out."""
    pool, indices = filled_pool(RANK, 4, layout="VK", dtype=BF16, device=GPU), row_slots(2, 4, device=GPU)
    inputs = make_inputs(RANK, 2, device=GPU)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.raises(ValueError, match=r"pool: is on cuda:0 and the current device is cuda:1; call inside torch"):
        decode(*inputs.arguments(), **inputs.gates(), pool=pool, indices=indices)
