"""prefill() on an NVIDIA GPU: every backend, layout and dtype against the float64 reference, and what it promises."""

import pytest
import torch
from against_reference import filled_pool, row_slots, same_bits
from on_gpu import BF16, FP16, FP32, GPU, RANK, named, pads_with_zero, serving, takes, with_dtypes
from prefill_against_reference import bounds_of, check_prefill, inputs_of
from tolerances import OUTSIDE_TOLERANCE

from gdn_lab import GDNShape, StatePool, decode, prefill, reference
from gdn_lab.hard_inputs import KINDS, hard_inputs
from gdn_lab.ops import make_inputs, prefill_detour

pytestmark = pytest.mark.gpu

LENGTHS = [64, 1, 0, 130, 5, 200]

PREFILLING = serving("prefill")
every_variant = with_dtypes(PREFILLING)


def check(variant, pool, lengths, indices, **options):
    """check_prefill() with the tolerance of a variant: eager PyTorch multiplies in float32, a peer may err twice."""
    options.setdefault("operands", FP32 if variant.role == "eager" else BF16)
    return check_prefill(
        pool,
        lengths,
        indices,
        backend=variant.full_name,
        bounds_dtype=torch.int64,
        padding_is_zero=pads_with_zero(variant),
        units=2 if variant.role == "peer" else 1,
        **options,
    )


@every_variant
def test_packed_sequences(variant, dtype):
    """Strong decay, nearly parallel keys; a padding sequence, an empty one, one token, no multiple of a chunk."""
    for kind in ("strong", "parallel"):
        pool = filled_pool(RANK, 14, layout=variant.layout, dtype=dtype, device=GPU)
        check(variant, pool, LENGTHS, row_slots(6, 14, padding=[4], device=GPU), kind=kind)


@pytest.mark.parametrize("kind", KINDS)
@every_variant
def test_hard_inputs(variant, dtype, kind):
    """Inputs of every dtype that the variant takes; several sequences, several chunks. A peer's errors are known."""
    for io_dtype in (BF16, FP16):
        if not takes(variant, phase="prefill", dtype=dtype, io_dtype=io_dtype):
            continue
        x, state_std = hard_inputs(RANK, 330, device=GPU, dtype=io_dtype)[kind]
        pool = filled_pool(RANK, 6, layout=variant.layout, dtype=dtype, device=GPU)
        pool.state.mul_(state_std)
        operands = FP32 if variant.role == "eager" else io_dtype
        try:
            check(variant, pool, [64, 200, 1, 65], row_slots(4, 6, device=GPU), inputs=x, operands=operands)
        except AssertionError as error:
            known = variant.role == "peer" and kind in OUTSIDE_TOLERANCE.get(variant.full_name, ())
            if not (known and str(error).startswith("o: ")):
                raise


@named(PREFILLING)
def test_a_long_sequence(variant):
    pool = filled_pool(RANK, 4, layout=variant.layout, dtype=variant.state_dtypes[0], device=GPU)
    check(variant, pool, [1500, 37], row_slots(2, 4, device=GPU), kind="mild")


@pytest.mark.parametrize("layout", ["VK", "KV"])
def test_triton_fp16_wide_indices_scale_and_no_norm(layout):
    pool = filled_pool(RANK, 9, layout=layout, dtype=FP32, device=GPU)
    indices = row_slots(4, 9, device=GPU, dtype=torch.int64)
    x = inputs_of(RANK, 200, device=GPU, dtype=FP16)
    x.k.copy_(torch.nn.functional.normalize(x.k.float(), dim=-1))
    check_prefill(
        pool, [0, 66, 1, 133], indices, backend="triton", inputs=x, scale=0.5, use_qk_l2norm=False
    )  # fmt: skip
    check_prefill(pool, [0, 66, 1, 133], indices, backend="triton", io_dtype=FP16)


@pytest.mark.parametrize("shape", [GDNShape(1, 3, 64, 64), GDNShape(2, 2, 32, 96), GDNShape(1, 2, 16, 32)], ids=str)
def test_triton_other_heads(shape):
    """A value dimension that is not the key's, and one that no tile of 64 divides."""
    pool = filled_pool(shape, 6, layout="VK", dtype=BF16, device=GPU)
    check_prefill(pool, [70, 3], row_slots(2, 6, device=GPU), backend="triton")


def test_auto_takes_triton():
    """The fastest that is isolated: FlashInfer's prefill is not, so "auto" leaves it to those who name it."""
    for layout in ("VK", "KV"):
        pools = [filled_pool(RANK, 4, layout=layout, dtype=BF16, device=GPU) for _ in range(2)]
        x, bounds = inputs_of(RANK, 100, device=GPU), bounds_of([40, 60], device=GPU)
        arguments = dict(**x.gates(), indices=row_slots(2, 4, device=GPU), cu_seqlens=bounds)
        auto, named = (
            prefill(*x.arguments(), **arguments, pool=pool, backend=backend)
            for pool, backend in zip(pools, ("auto", "triton"), strict=True)
        )
        assert same_bits(auto, named) and same_bits(pools[0].state, pools[1].state)


def test_prefill_then_decode_is_prefill_of_the_whole():
    """And it goes on from a cached prefix, here in two parts."""
    pool = filled_pool(RANK, 4, layout="VK", dtype=FP32, device=GPU)
    x, indices = inputs_of(RANK, 160, "mild", device=GPU), row_slots(1, 4, device=GPU)
    expected_o, expected = reference.prefill(
        *x.arguments(), **x.gates(), state=pool.read(indices), cu_seqlens=bounds_of([160])
    )
    outputs = []
    for part in (slice(0, 90), slice(90, 157)):
        arguments = [t[part] for t in x.arguments()]
        bounds = bounds_of([part.stop - part.start], device=GPU)
        outputs.append(prefill(*arguments, **x.gates(), pool=pool, indices=indices, cu_seqlens=bounds))
    for t in range(157, 160):
        outputs.append(decode(*(z[t : t + 1] for z in x.arguments()), **x.gates(), pool=pool, indices=indices))
    o = torch.cat(outputs).cpu().double()
    assert (o - expected_o).abs().max() < 2e-2 * expected_o.abs().max()
    assert (pool.read(indices).cpu() - expected).abs().max() < 2e-2 * expected.abs().max()


def test_the_detour_gives_the_same():
    pool = filled_pool(RANK, 14, layout="VK", dtype=BF16, device=GPU)
    scratch = StatePool(RANK, 7, layout="KV", dtype=BF16, device=GPU)
    check_prefill(
        pool, LENGTHS, row_slots(6, 14, padding=[4], device=GPU), backend="triton", call=prefill_detour,
        scratch=scratch, rows=torch.arange(1, 7, dtype=torch.int32, device=GPU), padding_is_zero=False,
    )  # fmt: skip


def test_a_neighbour_of_nan_changes_nothing():
    pool = filled_pool(RANK, 4, layout="VK", dtype=BF16, device=GPU)
    x = inputs_of(RANK, 90, device=GPU)
    for t in x.arguments():
        t[30:60] = torch.nan
    indices = torch.tensor([1, 2, 3], dtype=torch.int32, device=GPU)
    bounds = bounds_of([30, 30, 30], dtype=torch.int64, device=GPU)
    o = prefill(*x.arguments(), **x.gates(), pool=pool, indices=indices, cu_seqlens=bounds, backend="triton")
    assert torch.isfinite(o[:30]).all() and torch.isfinite(o[60:]).all()
    assert torch.isfinite(pool.state[[1, 3]]).all()


def test_no_synchronisation_and_a_cuda_graph():
    """Captured once and replayed with other sequences: nothing about cu_seqlens or indices is read on the host."""
    pool = filled_pool(RANK, 6, layout="VK", dtype=BF16, device=GPU)
    x, out = inputs_of(RANK, 200, device=GPU), torch.empty(200, 8, 128, dtype=BF16, device=GPU)
    indices, bounds = row_slots(3, 6, device=GPU), bounds_of([100, 60, 40], device=GPU)
    call = dict(**x.gates(), pool=pool, indices=indices, cu_seqlens=bounds, backend="triton", out=out)
    prefill(*x.arguments(), **call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        prefill(*x.arguments(), **call)
    bounds.copy_(bounds_of([0, 199, 1]))
    start = pool.state.clone()
    graph.replay()
    replayed, state = out.clone(), pool.state.clone()
    pool.state.copy_(start)
    prefill(*x.arguments(), **call)
    assert same_bits(out, replayed) and same_bits(pool.state, state)


def test_slots_beyond_2_31_elements():
    slots = 2**31 // RANK.state_elements + 40
    if torch.cuda.mem_get_info(GPU)[0] < 1.5 * slots * RANK.state_elements * 2:
        pytest.fail("too little GPU memory for a pool of 2^31 elements")
    pool = StatePool(RANK, slots, dtype=BF16, device=GPU)
    indices = torch.tensor([slots - 1, 3], dtype=torch.int32, device=GPU)
    pool.write(indices, torch.randn(2, 8, 128, 128, generator=torch.Generator().manual_seed(0)))
    old = pool.read(indices)
    x = make_inputs(RANK, 80, device=GPU)
    arguments = dict(**x.gates(), cu_seqlens=bounds_of([70, 10], device=GPU))
    prefill(*x.arguments(), **arguments, pool=pool, indices=indices, backend="triton")
    _, expected = reference.prefill(*x.arguments(), **x.gates(), state=old, cu_seqlens=bounds_of([70, 10]))
    assert (pool.read(indices).cpu() - expected).abs().max() < 2e-2 * expected.abs().max()
