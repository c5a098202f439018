"""prefill() without a GPU: torch against the float64 reference, what it promises and what it refuses."""

import pytest
import torch
from against_reference import filled_pool, row_slots, same_bits
from hypothesis import given
from hypothesis import strategies as st
from prefill_against_reference import bounds_of, check_prefill, inputs_of
from tolerances import assert_close

from gdn_lab import GDNShape, StatePool, checks, decode, prefill, reference
from gdn_lab.hard_inputs import KINDS, hard_inputs
from gdn_lab.ops import prefill_detour

SMALL = GDNShape(2, 4, 16, 32)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
LENGTHS = [64, 1, 0, 130, 5]  # a whole chunk, one token, none, no multiple of a chunk, a few


def test_the_two_references_agree():
    x = inputs_of(SMALL, sum(LENGTHS), "parallel")
    state = torch.randn(5, 4, 32, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    arguments = dict(**x.gates(), state=state, cu_seqlens=bounds_of(LENGTHS))
    o, final = reference.prefill(*x.arguments(), **arguments)
    o_chunked, final_chunked = reference.prefill_chunked(*x.arguments(), **arguments)
    torch.testing.assert_close(o, o_chunked, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(final, final_chunked, rtol=1e-10, atol=1e-10)


@given(
    lengths=st.lists(st.one_of(st.sampled_from([0, 1, 63, 64, 65, 128]), st.integers(0, 200)), min_size=1, max_size=5),
    layout=st.sampled_from(["VK", "KV"]),
    dtype=st.sampled_from([BF16, FP16, FP32]),
    io_dtype=st.sampled_from([BF16, FP16, FP32]),
    kind=st.sampled_from(["strong", "mild", "parallel"]),
    bounds_dtype=st.sampled_from([torch.int32, torch.int64]),
    padded=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_torch(lengths, layout, dtype, io_dtype, kind, bounds_dtype, padded, seed):
    pool = filled_pool(SMALL, 8, layout=layout, dtype=dtype, seed=seed)
    padding = [len(lengths) // 2] if padded else []
    indices = row_slots(len(lengths), 8, padding=padding, seed=seed, dtype=bounds_dtype)
    check_prefill(
        pool, lengths, indices, backend="torch", io_dtype=io_dtype, kind=kind, seed=seed, bounds_dtype=bounds_dtype,
        operands=FP32,
    )  # fmt: skip


@pytest.mark.parametrize("io_dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_torch_on_hard_inputs(kind, io_dtype):
    x, state_std = hard_inputs(SMALL, 100, dtype=io_dtype)[kind]
    pool = filled_pool(SMALL, 4, layout="VK", dtype=FP32)
    pool.state.mul_(state_std)
    check_prefill(pool, [70, 30], row_slots(2, 4), backend="torch", inputs=x, operands=FP32)


@pytest.mark.parametrize("layout", ["VK", "KV"])
def test_prefill_then_decode_is_prefill_of_the_whole(layout):
    whole, parts = (filled_pool(SMALL, 4, layout=layout, dtype=FP32) for _ in range(2))
    indices, x = row_slots(2, 4), inputs_of(SMALL, 140, "mild", dtype=FP32)
    q, k, v, a, b = (t.view(2, 70, *t.shape[1:]) for t in (t.contiguous() for t in x.arguments()))
    o = prefill(*x.arguments(), **x.gates(), pool=whole, indices=indices, cu_seqlens=bounds_of([70, 70]))
    o = o.view(2, 70, *o.shape[1:])
    first = [t[:, :67].flatten(0, 1) for t in (q, k, v, a, b)]
    o_first = prefill(*first, **x.gates(), pool=parts, indices=indices, cu_seqlens=bounds_of([67, 67]))
    torch.testing.assert_close(o_first.view(2, 67, *o.shape[2:]), o[:, :67], rtol=1e-4, atol=1e-4)
    for t in range(67, 70):
        o_t = decode(*(z[:, t].contiguous() for z in (q, k, v, a, b)), **x.gates(), pool=parts, indices=indices)
        torch.testing.assert_close(o_t, o[:, t], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.read(indices), whole.read(indices), rtol=1e-4, atol=1e-4)


def test_a_prefix_continued_from_a_cached_state():
    pool = filled_pool(SMALL, 3, layout="VK", dtype=FP32)
    x, indices = inputs_of(SMALL, 200, dtype=FP32), torch.tensor([2], dtype=torch.int32)
    expected_o, expected = reference.prefill(
        *x.arguments(), **x.gates(), state=pool.read(indices), cu_seqlens=bounds_of([200])
    )
    parts = []
    for part in (slice(0, 1), slice(1, 1), slice(1, 66), slice(66, 200)):
        arguments = [t[part] for t in x.arguments()]
        bounds = bounds_of([part.stop - part.start])
        parts.append(prefill(*arguments, **x.gates(), pool=pool, indices=indices, cu_seqlens=bounds))
    assert_close("o", torch.cat(parts), expected_o, FP32, extra=1e-3)
    assert_close("state", pool.read(indices), expected, FP32, extra=1e-3)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_the_detour_gives_the_same(dtype):
    pool = filled_pool(SMALL, 8, layout="VK", dtype=dtype)
    scratch = StatePool(SMALL, 6, layout="KV", dtype=dtype)
    rows = torch.arange(1, 6, dtype=torch.int32)
    check_prefill(
        pool, LENGTHS, row_slots(5, 8, padding=[3]), backend="torch", call=prefill_detour, scratch=scratch, rows=rows,
        operands=FP32, padding_is_zero=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="scratch: expected KV and 6 slots"):
        check_prefill(
            pool, LENGTHS, row_slots(5, 8), backend="torch", call=prefill_detour, scratch=pool, rows=rows
        )  # fmt: skip


def test_scale_no_norm_and_a_given_output():
    pool = filled_pool(SMALL, 4, layout="VK", dtype=FP32)
    x = inputs_of(SMALL, 70, dtype=FP32)
    x.k.copy_(torch.nn.functional.normalize(x.k, dim=-1))
    out = torch.full(x.v.shape, torch.nan)
    o = check_prefill(
        pool, [70], row_slots(1, 4), backend="torch", inputs=x, scale=0.5, use_qk_l2norm=False, out=out
    )  # fmt: skip
    assert o is out


def test_gates_at_their_limits():
    """Where log g is -infinity in float32 and where g is 1; nothing may become NaN."""
    pool = filled_pool(SMALL, 4, layout="VK", dtype=FP32)
    x = inputs_of(SMALL, 130, dtype=FP32)
    x.a[::3], x.a[1::3] = 3e38, -80.0
    x.b[::2], x.b[1::2] = -80.0, 80.0
    check_prefill(pool, [130], row_slots(1, 4), backend="torch", inputs=x)


def test_no_tokens_and_no_sequences():
    pool = filled_pool(SMALL, 4, layout="VK", dtype=FP32)
    before = pool.state.clone()
    x = inputs_of(SMALL, 0)
    for n in (0, 2):
        indices, bounds = torch.arange(1, n + 1, dtype=torch.int32), torch.zeros(n + 1, dtype=torch.int32)
        o = prefill(*x.arguments(), **x.gates(), pool=pool, indices=indices, cu_seqlens=bounds)
        assert o.shape == (0, 4, 32) and same_bits(pool.state, before)


def refused(match, *, checked=False, **changes):
    pool = filled_pool(SMALL, 4, layout="VK", dtype=FP32)
    x = inputs_of(SMALL, 10)
    arguments = dict(zip("qkvab", x.arguments(), strict=True)) | x.gates()
    arguments |= {"pool": pool, "indices": row_slots(2, 4), "cu_seqlens": bounds_of([4, 6])} | changes
    with pytest.raises(ValueError, match=match), checks(checked):
        prefill(**arguments)


def test_refusals():
    refused(r"cu_seqlens: expected int32 \[3\]", cu_seqlens=bounds_of([4, 3, 3]))
    refused(r"cu_seqlens: expected int32 \[3\]", cu_seqlens=bounds_of([4, 6]).float())
    refused(r"indices: expected int32 \[2\]", indices=torch.tensor(1, dtype=torch.int32))
    refused(r"k: expected bfloat16 \[10, 2, 16\]", k=torch.zeros(9, 2, 16, dtype=BF16))
    refused(r"out: expected", out=torch.zeros(10, 4, 32))
    refused(r"cu_seqlens: expected 0 to 10", checked=True, cu_seqlens=bounds_of([4, 5]))
    refused(r"cu_seqlens: expected 0 to 10", checked=True, cu_seqlens=torch.tensor([1, 4, 10]))
    refused(r"never falling, got \[0, 12, 10\]", checked=True, cu_seqlens=bounds_of([12, -2]))
    refused(r"indices: expected each live slot once", checked=True, indices=torch.tensor([2, 2], dtype=torch.int32))
    refused(r"needs an NVIDIA GPU", backend="flashinfer")
