"""What decode() promises of a call on an NVIDIA GPU, whatever the kernel: no allocation, one kernel, no waiting, CUDA
graphs, order with the kernels around it, little host time."""

import time

import pytest
import torch
from against_reference import check_decode, filled_pool, row_slots, same_bits
from on_gpu import BF16, FP32, FULL, GPU, RANK, kernels, named, serving

from gdn_lab import StatePool, decode
from gdn_lab.ops import decode_gathered, make_inputs

pytestmark = pytest.mark.gpu

KERNELS = kernels("decode")
IN_PLACE = [variant for variant in serving("decode") if not variant.ring]  # others: test_gpu_replay.py
every_variant = named(serving("decode"))


def one_call(variant, *, batch=7, slots=9):
    """A call with out= given, ready to be repeated, and its parts; warmed up, so that kernels are compiled."""
    pool = filled_pool(RANK, slots, layout=variant.layout, dtype=variant.state_dtypes[0], device=GPU)
    pool.reserve_ring(variant.ring)
    indices = row_slots(batch, slots, padding=[1], device=GPU)
    inputs = make_inputs(RANK, batch, device=GPU)
    out = torch.empty(batch, RANK.num_v_heads, RANK.head_v_dim, dtype=BF16, device=GPU)

    def call():
        arguments, gates = inputs.arguments(), inputs.gates()
        return decode(*arguments, **gates, pool=pool, indices=indices, backend=variant.full_name, out=out)

    call()
    torch.cuda.synchronize()
    return call, pool, indices, inputs, out


@named(KERNELS)
def test_packed_views_are_read_without_an_allocation(variant):
    for batch in (7, 33, 70):
        call, *_, inputs, _ = one_call(variant, batch=batch, slots=batch + 2)
        assert not inputs.q.is_contiguous() and not inputs.v.is_contiguous()
        before = torch.cuda.memory_stats(GPU)["allocation.all.allocated"]
        for _ in range(3):
            call()
        assert torch.cuda.memory_stats(GPU)["allocation.all.allocated"] == before


@named([variant for variant in KERNELS if not variant.ring])
def test_packed_views_are_read_by_one_kernel(variant):
    call, *_ = one_call(variant)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
    on_gpu = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(on_gpu) == 3 and len(set(on_gpu)) == 1, on_gpu


@named(IN_PLACE)
def test_a_models_parameters_leave_no_graph(variant):
    """A_log and dt_bias of a model require gradients; libraries may refuse that, and the pool must keep none."""
    call, pool, indices, inputs, out = one_call(variant)
    plain, expected = pool.state.clone(), None
    for gates in (inputs.gates(), {name: torch.nn.Parameter(x) for name, x in inputs.gates().items()}):
        pool.state.copy_(plain)
        decode(*inputs.arguments(), **gates, pool=pool, indices=indices, backend=variant.full_name, out=out)
        expected = out.clone() if expected is None else expected
    assert not pool.state.requires_grad and same_bits(out[[0, 2, 3]], expected[[0, 2, 3]])


@every_variant
def test_never_synchronises(variant):
    call, pool, indices, inputs, out = one_call(variant)
    scratch = StatePool(RANK, 8, layout=variant.layout, dtype=pool.dtype, device=GPU)
    rows = torch.arange(1, 8, dtype=torch.int32, device=GPU)
    options = dict(**inputs.gates(), pool=pool, indices=indices, backend=variant.full_name)
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
        decode(*inputs.arguments(), **options)  # out= not given
        if not variant.ring:
            decode_gathered(*inputs.arguments(), **options, scratch=scratch, rows=rows, out=out)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@named(IN_PLACE)
@pytest.mark.parametrize("gathered", [False, True], ids=["in_place", "gathered"])
def test_cuda_graph_replays_on_new_indices_and_inputs(variant, gathered):
    """Captured once; replayed three times after its indices (padding in another row) and inputs were overwritten."""
    _, pool, indices, inputs, out = one_call(variant)
    scratch = StatePool(RANK, 8, layout=variant.layout, dtype=pool.dtype, device=GPU)
    options = dict(**inputs.gates(), pool=pool, indices=indices, backend=variant.full_name, out=out)
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


@named(KERNELS)
def test_kernels_in_a_row_see_each_other(variant):
    """32 steps on the same slots, their inputs written by a kernel just before: launches overlap, results must not."""
    steps, batch = 32, 33
    first = filled_pool(RANK, 35, layout=variant.layout, dtype=FP32, device=GPU)
    first.reserve_ring(variant.ring)
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
            o = decode(q, k, v, a, b, **fresh[0].gates(), pool=pool, indices=indices, backend=variant.full_name)
            wait()
            outputs.append(o * 1)
        return torch.stack(outputs)

    o = run(first, lambda: None)
    assert same_bits(o, run(second, torch.cuda.synchronize))
    assert same_bits(first.state, second.state)


@pytest.mark.alone
def test_eager_call_costs_at_most_two_bare_launches():
    """Host time of decode() on triton against that of the kernel's launch alone: the least of interleaved rounds.

    Other programs on the host only add to a round: on a busy one medians were 2.01 times apart.
    """
    from gdn_lab.backends.triton.recurrent import Constants, can_overlap, decode_tile, recurrent_kernel

    pool = StatePool(FULL, 65, device=GPU)
    x = make_inputs(FULL, 8, device=GPU)
    indices = torch.arange(1, 9, dtype=torch.int32, device=GPU)
    out = torch.empty_like(x.v, memory_format=torch.contiguous_format)
    overlap = can_overlap(GPU)
    tile = decode_tile(8 * 64, overlap)
    strides = (x.q.stride(0), 0, 128, x.k.stride(0), 0, 128, x.v.stride(0), 0, 128, x.a.stride(0), 0, x.b.stride(0), 0)
    constants = Constants(16, 64, 128, 128, 1, tile.rows, True, False, True, overlap, True)

    def bare():
        recurrent_kernel[(128 // tile.rows * 64 * 8,)](
            x.q, x.k, x.v, x.a, x.b, x.A_log, x.dt_bias, pool.state, indices, pool.state, out, 128**-0.5, *strides, 0,
            None, None, *constants, num_warps=tile.warps, launch_pdl=overlap,
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
    bare_us, eager_us = (min(times) for times in zip(*rounds, strict=True))
    print(f"host time of a bare launch {bare_us:.1f} us, of decode() {eager_us:.1f} us")
    assert eager_us <= 2 * bare_us, f"decode() takes {eager_us:.1f} us of host time, a bare launch {bare_us:.1f}"
