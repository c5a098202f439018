"""decode() on an NVIDIA GPU: every backend, variant, layout and dtype against the float64 reference.

make test-gpu. Most of the time goes into compiling kernels, one for each number of heads among others, so nearly all
tests have those of RANK, and each compiles what it needs once. Only variants that should serve this GPU are collected
(on_gpu.py); one that then refuses, or a test that skips, has failed.
"""

import functools

import pytest
import torch
from against_reference import PADDING, as_strided, check_decode, filled_pool, row_slots, same_bits
from on_gpu import (
    BF16,
    CAPABILITY,
    FP16,
    FP32,
    FULL,
    GPU,
    RANK,
    index_dtypes,
    installed,
    named,
    pads_with_zero,
    serving,
    takes,
    with_dtypes,
)
from tolerances import assert_close

from gdn_lab import GDNShape, StatePool, backends, checks, decode, reference
from gdn_lab.ops import decode_gathered, make_inputs
from gdn_lab.tolerances import CORRECTIONS

pytestmark = pytest.mark.gpu

DECODING = serving("decode")
every_variant, every_variant_and_dtype = named(DECODING), with_dtypes(DECODING)


@pytest.fixture(autouse=True)
def memory_goes_back():
    yield
    torch.cuda.empty_cache()


def test_every_backend_serves_this_gpu():
    for report in backends(GPU):
        if installed(report.name) and any(CAPABILITY >= variant.needs for variant in report.variants):
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
def test_against_reference(variant, dtype):
    """Strong decay, packed views, padding rows; batches on either side of where tiles change. The reference sees 6."""
    batches = [(7, index_dtype) for index_dtype in index_dtypes(variant)]
    for batch, index_dtype in [(1, torch.int32), *batches, (33, torch.int32), (70, torch.int32)]:
        slots = batch + 3
        pool = filled_pool(RANK, slots, layout=variant.layout, dtype=dtype, device=GPU)
        padding = [row for row in (1, 5, batch - 1) if 0 < row < batch]
        indices = row_slots(batch, slots, padding=padding, dtype=index_dtype, device=GPU)
        check_decode(
            pool, indices, backend=variant.full_name, padding_is_zero=pads_with_zero(variant),
            rows={0, 2, 3, batch // 2, batch - 3, batch - 2},
        )  # fmt: skip


@every_variant_and_dtype
def test_largest_batch(variant, dtype):
    """All heads and the largest tiles; the last row is not padding, and the last slot is taken."""
    pool = filled_pool(FULL, 262, layout=variant.layout, dtype=dtype, device=GPU)
    indices = row_slots(260, 262, padding=[200], device=GPU)
    indices[-1] = 261
    indices[:-1][indices[:-1] == 261] = PADDING
    check_decode(
        pool, indices, backend=variant.full_name, rows={0, 1, 127, 128, 258, 259},
        padding_is_zero=pads_with_zero(variant),
    )  # fmt: skip


@every_variant
def test_strides(variant):
    dtype = variant.state_dtypes[0]
    for strides in ("contiguous", "wide", "odd", "apart"):
        if variant.role == "peer" and not variant.copies and strides == "odd":
            continue  # test_peers_refuse_unaligned_tensors
        pool = filled_pool(RANK, 9, layout=variant.layout, dtype=dtype, device=GPU)
        indices = row_slots(7, 9, padding=[2], device=GPU)
        zero = pads_with_zero(variant)
        check_decode(pool, indices, backend=variant.full_name, strides=strides, padding_is_zero=zero)


@named(DECODING)
@pytest.mark.parametrize("dtype, io_dtype", [(BF16, FP16), (FP32, FP32)], ids=str)
def test_inputs_of_other_dtypes(variant, dtype, io_dtype):
    if not takes(variant, dtype=dtype, io_dtype=io_dtype):
        return
    pool = filled_pool(RANK, 7, layout=variant.layout, dtype=dtype, device=GPU)
    indices = row_slots(5, 7, padding=[3], device=GPU)
    zero = pads_with_zero(variant)
    o, _ = check_decode(pool, indices, backend=variant.full_name, io_dtype=io_dtype, padding_is_zero=zero)
    assert o.dtype == io_dtype


@named(DECODING)
def test_other_head_sizes(variant):
    for shape in (GDNShape(1, 1, 16, 32), GDNShape(1, 3, 64, 96), GDNShape(2, 2, 256, 128), GDNShape(1, 1)):
        if not takes(variant, shape, dtype=FP32):
            continue
        pool = filled_pool(shape, 7, layout=variant.layout, dtype=FP32, device=GPU)
        indices = row_slots(5, 7, padding=[3], device=GPU)
        check_decode(pool, indices, backend=variant.full_name, padding_is_zero=pads_with_zero(variant))


@every_variant
def test_scale_and_no_norm(variant):
    dtype = variant.state_dtypes[0]
    for options in ({"scale": 0.5}, {"use_qk_l2norm": False}):
        pool = filled_pool(RANK, 5, layout=variant.layout, dtype=dtype, device=GPU)
        pool.state.mul_(0.01)
        indices = row_slots(3, 5, device=GPU)
        check_decode(pool, indices, backend=variant.full_name, strong_decay=False, **options)


@every_variant
def test_gates_at_their_limits(variant):
    """a and b far out on both sides: g is 1, 0 or between, beta 0 or 1; nothing is NaN and g = 0 forgets the slot."""
    dtype = variant.state_dtypes[0]
    pool = filled_pool(RANK, 9, layout=variant.layout, dtype=dtype, device=GPU)
    inputs = make_inputs(RANK, 8, device=GPU)
    extremes = torch.tensor([-80.0, -20.0, -1.0, 0.0, 1.0, 19.5, 20.5, 80.0], device=GPU).to(BF16)
    inputs.a.copy_(extremes[:, None].expand(8, 8))
    inputs.b.copy_(extremes[None, :].expand(8, 8))
    inputs.A_log.fill_(2.77)  # A = 16
    check_decode(pool, row_slots(8, 9, device=GPU), backend=variant.full_name, inputs=inputs)


@every_variant
def test_keys_near_zero(variant):
    """|q|², |k|² of the size of the 1e-6 under the root, and rows of nothing but zeros."""
    pool = filled_pool(RANK, 9, layout=variant.layout, dtype=variant.state_dtypes[0], device=GPU)
    inputs = make_inputs(RANK, 4, device=GPU)
    inputs.mixed_qkv.mul_(1e-4)[2].zero_()
    check_decode(pool, row_slots(4, 9, device=GPU), backend=variant.full_name, inputs=inputs)


@every_variant
def test_out_is_written_and_returned(variant):
    pool = filled_pool(RANK, 5, layout=variant.layout, dtype=variant.state_dtypes[0], device=GPU)
    out = torch.full((3, RANK.num_v_heads, RANK.head_v_dim), torch.nan, dtype=BF16, device=GPU)
    o, _ = check_decode(pool, row_slots(3, 5, device=GPU), backend=variant.full_name, out=out)
    assert o is out


@every_variant
def test_no_rows(variant):
    pool = filled_pool(RANK, 3, layout=variant.layout, dtype=variant.state_dtypes[0], device=GPU)
    o, _ = check_decode(pool, row_slots(0, 3, device=GPU), backend=variant.full_name)
    assert o.shape == (0, RANK.num_v_heads, RANK.head_v_dim)


@named([variant for variant in DECODING if not variant.ring])
def test_gathered_equals_in_place(variant):
    backend = variant.full_name
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


@every_variant
def test_pool_beyond_2_31_elements(variant):
    """16,400 slots of 2^17 elements; slot 16,384 begins at element 2^31. All other slots are zero and stay zero."""
    touched = [1, 16383, 16384, 16385, 16399]
    pool = StatePool(RANK, 16400, layout=variant.layout, dtype=BF16, device=GPU)
    pool.reserve_ring(variant.ring)
    assert pool.state.numel() > 2**31
    indices = torch.tensor([16384, 1, PADDING, 16399, 16383, 16385], dtype=torch.int32, device=GPU)
    live = [0, 1, 3, 4, 5]
    pool.state[touched] = torch.randn(5, *pool.state.shape[1:], device=GPU).to(BF16)
    old = pool.read(indices[live])
    x, extra = make_inputs(RANK, 6, device=GPU), CORRECTIONS[BF16] if variant.ring else 0.0
    o = decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend=variant.full_name)
    expected_o, expected_state = reference.decode(*(t[live] for t in x.arguments()), **x.gates(), state=old)
    assert_close("o", o[live], expected_o, BF16)
    assert_close("state", pool.read(indices[live]), expected_state, BF16, extra=extra)
    pool.state[[0, *touched]] = 0
    assert not any(part.any() for part in pool.state.split(2048)), "a slot that no row names has changed"


@named([variant for variant in DECODING if variant.role == "peer" and not variant.copies])
def test_peers_refuse_unaligned_tensors(variant):
    pool = filled_pool(RANK, 9, layout=variant.layout, dtype=BF16, device=GPU)
    x = make_inputs(RANK, 3, device=GPU)
    whole = row_slots(4, 9, device=GPU)
    options = dict(**x.gates(), pool=pool, backend=variant.full_name)
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
