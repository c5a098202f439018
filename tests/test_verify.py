"""verify() and StatePool.commit() on the CPU: `torch` against the reference, and every acceptance pattern against
decoding the accepted tokens one by one."""

import itertools

import pytest
import torch
from against_reference import filled_pool, row_slots, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from verify_against_reference import BOTH, INTERMEDIATE, OUTPUT, UPDATE, check_verify, inputs_of

from gdn_lab import GDNShape, StatePool, checks, decode, verify
from gdn_lab.backends import refusal
from gdn_lab.ops import make_inputs

FP32 = torch.float32
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
LAYOUTS = st.sampled_from(["VK", "KV"])
SMALL = GDNShape(1, 2, 4, 3)
shapes = st.builds(
    lambda HK, group, K, V: GDNShape(HK, HK * group, K, V),
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9),
)  # fmt: skip


@st.composite
def calls(draw):
    """(pool, indices, tokens, options of check_verify)"""
    shape, batch, tokens = draw(shapes), draw(st.integers(0, 4)), draw(st.integers(2, 16))
    pool = filled_pool(shape, batch + 3, layout=draw(LAYOUTS), dtype=draw(DTYPES), seed=draw(st.integers(0, 9)))
    padding = draw(st.sets(st.integers(0, batch - 1))) if batch else ()
    indices = row_slots(
        batch, pool.slots, padding=padding, dtype=draw(st.sampled_from([torch.int32, torch.int64])),
        seed=draw(st.integers(0, 99)),
    )  # fmt: skip
    options = dict(
        backend=draw(st.sampled_from(["auto", "torch", f"torch/{pool.layout.lower()}"])),
        mode=draw(st.sampled_from([UPDATE, INTERMEDIATE, OUTPUT, BOTH])),
        kind=draw(st.sampled_from(["strong", "mild", "parallel"])),
        io_dtype=draw(DTYPES),
        strides=draw(st.sampled_from(["packed", "contiguous", "odd"])),
        reserved=draw(st.sampled_from([None, tokens + 2])),
        scale=draw(st.sampled_from([None, 1.0, 0.25])),
        use_qk_l2norm=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )
    return pool, indices, tokens, options


@settings(max_examples=150)
@given(calls())
def test_verify_against_reference(call):
    pool, indices, tokens, options = call
    if not options["use_qk_l2norm"]:
        options["kind"] = "mild"  # unnormalised parallel keys grow without bound
        options["inputs"] = inputs_of(pool.shape, len(indices), tokens, "mild", dtype=options["io_dtype"])
        for x in (options["inputs"].k, options["inputs"].q):
            x.mul_(pool.shape.head_k_dim**-0.5 / 4)
    check_verify(pool, indices, tokens, **options)


# --- commit


def drafted(layout, dtype, batch, tokens, *, slots=8, padding=(), reserve=True, kind="strong", seed=0):
    """A pool after a verify call that left the state: (pool, indices, inputs, what each draft token feeds the
    convolution [B, conv_dim, T])."""
    pool = filled_pool(SMALL, slots, layout=layout, dtype=dtype, seed=seed)
    indices = row_slots(batch, slots, padding=padding, seed=seed)
    x = inputs_of(SMALL, batch, tokens, kind, dtype=FP32, seed=seed)
    pool.reserve_drafts(batch + 1, tokens + 1)
    verify(
        *x.arguments(), **x.gates(), pool=pool, indices=indices, update_state=False,
        intermediate_states=pool.intermediate_states[:batch, :tokens],
    )  # fmt: skip
    fed = torch.randn(batch, SMALL.conv_dim, tokens, generator=torch.Generator().manual_seed(seed)).bfloat16()
    pool.draft_inputs[:batch, :, :tokens] = fed
    return pool, indices, x, fed


def one_by_one(pool, indices, x, fed, accepted):
    """A copy of the pool in which each row's accepted tokens were decoded, and its window moved on, one by one."""
    other = pool.to()
    for row, n in enumerate(accepted):
        if indices[row] < 0:
            continue
        for t in range(n):
            arguments = (part[row : row + 1, t] for part in x.arguments())
            decode(*arguments, **x.gates(), pool=other, indices=indices[row : row + 1])
            window = other.conv[indices[row].long()]
            window.copy_(torch.cat([window[:, 1:], fed[row, :, t : t + 1]], dim=1))
    return other


@pytest.mark.parametrize("layout", ["VK", "KV"])
def test_every_acceptance_pattern_equals_decoding_one_by_one(layout):
    pool, indices, x, fed = drafted(layout, FP32, 3, 4)
    start, conv = pool.state.clone(), pool.conv.clone()
    for accepted in itertools.product(range(5), repeat=3):
        pool.state.copy_(start)
        pool.conv.copy_(conv)
        expected = one_by_one(pool, indices, x, fed, accepted)
        pool.commit(indices, torch.tensor(accepted))
        assert_close(f"state after {accepted}", pool.read(indices), expected.read(indices).double(), FP32)
        assert same_bits(pool.conv[1:], expected.conv[1:]), f"window after {accepted}"
        untouched = torch.ones(pool.slots, dtype=torch.bool)
        untouched[indices.long()] = torch.tensor(accepted) == 0
        untouched[0] = False  # the null slot may change
        assert same_bits(pool.state[untouched], start[untouched]), f"an untouched state after {accepted}"


@given(
    LAYOUTS, DTYPES, st.integers(2, 16), st.lists(st.integers(0, 16), min_size=1, max_size=5), st.data(),
    st.sampled_from(["strong", "mild", "parallel"]),
)  # fmt: skip
def test_commit_equals_decoding_one_by_one(layout, dtype, tokens, accepted, data, kind):
    accepted = [min(n, tokens) for n in accepted]
    padding = data.draw(st.sets(st.integers(0, len(accepted) - 1)))
    pool, indices, x, fed = drafted(layout, FP32, len(accepted), tokens, padding=padding, kind=kind, seed=tokens)
    pool = pool if dtype is FP32 else rounded(pool, dtype, indices, x, fed)
    exact = pool.to(dtype=FP32)  # decoding one by one from the same state, without rounding after each token
    expected = one_by_one(exact, indices, x, fed, accepted)
    given_as = torch.tensor(accepted, dtype=data.draw(st.sampled_from([torch.int32, torch.int64])))
    given_as[sorted(padding)] = 99  # means nothing
    pool.commit(indices, given_as)
    assert_close("state", pool.read(indices), expected.read(indices).double(), dtype)
    assert same_bits(pool.conv[1:], expected.conv[1:])


def rounded(pool, dtype, indices, x, fed):
    """The pool in another dtype, its drafts verified anew from the rounded state."""
    other = pool.to(dtype=dtype)
    B, T = x.q.shape[:2]
    states = other.intermediate_states[:B, :T]
    verify(*x.arguments(), **x.gates(), pool=other, indices=indices, intermediate_states=states, update_state=False)
    other.draft_inputs[:B, :, :T] = fed
    return other


def test_rejected_drafts_leave_no_trace():
    """NaN in all that belongs to rejected drafts: none of it arrives."""
    pool, indices, x, fed = drafted("VK", FP32, 4, 3, padding=[3])
    accepted = torch.tensor([0, 1, 2, 3])
    for row, n in enumerate(accepted.tolist()):
        pool.intermediate_states[row, n if row < 3 else 0 :] = torch.nan
        pool.draft_inputs[row, :, n if row < 3 else 0 :] = torch.nan
    free = [slot for slot in range(1, 8) if slot not in indices.tolist()]
    before = pool.to()
    pool.commit(indices, accepted)
    assert torch.isfinite(pool.state[1:]).all() and torch.isfinite(pool.conv[1:]).all()
    kept = [*free, int(indices[0])]
    assert same_bits(pool.state[kept], before.state[kept]) and same_bits(pool.conv[kept], before.conv[kept])


def test_commit_takes_buffers_of_the_callers():
    pool, indices, x, fed = drafted("KV", FP32, 2, 4)
    mine, accepted = pool.to(), torch.tensor([4, 1])
    states = pool.intermediate_states[:2, :4].clone()
    pool.commit(indices, accepted)
    mine.reserve_drafts(0, 0)
    mine.commit(indices, accepted, intermediate_states=states, draft_inputs=fed)
    assert same_bits(mine.state, pool.state) and same_bits(mine.conv, pool.conv)


def test_what_drafts_cost():
    pool = StatePool(SMALL, 4, dtype=torch.float16)
    bare = pool.nbytes
    pool.reserve_drafts(3, 5)
    assert pool.nbytes == bare + 3 * sum(StatePool.draft_nbytes(SMALL, 5, torch.float16).values())
    assert pool.nbytes == sum(x.nbytes for x in (pool.state, pool.conv, pool.intermediate_states, pool.draft_inputs))
    other = pool.to(layout="KV", dtype=FP32)
    assert other.intermediate_states.shape == (3, 5, 2, 4, 3) and other.draft_inputs.shape == (3, SMALL.conv_dim, 5)
    pool.reserve_drafts(0, 0)
    assert pool.nbytes == bare and pool.intermediate_states is None


# --- what is refused


def test_commit_refuses_in_sentences():
    pool, indices, x, fed = drafted("VK", FP32, 2, 3)
    accepted = torch.tensor([1, 2])
    states = pool.intermediate_states[:2, :3]

    def refused(match, *arguments, **options):
        before = pool.state.clone()
        with pytest.raises(ValueError, match=match):
            pool.commit(*arguments, **options)
        assert same_bits(pool.state, before)

    refused(r"accepted: expected 0 to 4 draft tokens for each row, got \[5\]", indices, torch.tensor([1, 5]))
    refused("accepted: expected 0 to 4", indices, torch.tensor([-1, 2]))
    refused(r"accepted: expected int32 or int64 \[2\] on cpu, got torch.float32", indices, accepted.float())
    refused("accepted: expected", indices, accepted[:1])
    refused("indices: expected each slot once", torch.tensor([3, 3]), accepted)
    refused("indices: expected each slot once, from 1 up", torch.tensor([0, 3]), accepted)
    refused("indices: expected slots below 8", torch.tensor([8, 3]), accepted)
    refused("indices: expected at most as many rows", torch.arange(1, 5), torch.ones(4, dtype=torch.int64))
    refused("draft_inputs: expected both or neither, got None", indices, accepted, intermediate_states=states)
    refused("intermediate_states: expected both or neither", indices, accepted, draft_inputs=fed)
    refused(
        "intermediate_states: expected float32", indices, accepted, intermediate_states=states.half(), draft_inputs=fed
    )
    refused("draft_inputs: expected bfloat16", indices, accepted, intermediate_states=states, draft_inputs=fed.float())
    with pytest.raises(ValueError, match="tokens: expected an int of at least 0, got -1"):
        pool.reserve_drafts(1, -1)
    with pytest.raises(ValueError, match=r"room for \(none\)"):
        StatePool(SMALL, 3).commit(indices, accepted)


def test_verify_refuses_in_sentences():
    pool = filled_pool(SMALL, 5, layout="VK", dtype=FP32)
    indices = row_slots(2, 5)

    def refused(match, tokens=3, **options):
        x = make_inputs(SMALL, 2, tokens=tokens, dtype=FP32)
        arguments = options.pop("arguments", x.arguments())
        with pytest.raises(ValueError, match=match):
            verify(*arguments, **x.gates(), pool=pool, **({"indices": indices} | options))

    refused(r"q: expected 2 to 16 draft tokens in \[B, T, HK, K\], got \[2, 1, 1, 4\]", tokens=1)
    refused("q: expected 2 to 16", tokens=17)
    refused(r"k: expected float32 \[2, 3, 1, 4\]", arguments=_with(1, lambda k: k[:, :2]))
    refused(r"v: expected float32 \[2, 3, 2, 3\]", arguments=_with(2, lambda v: v.double()))
    refused("indices: expected", indices=indices[:1])
    refused("out: expected", out=torch.empty(2, 3, 2, 4))
    refused(r"intermediate_states: expected float32 \[2, 3, 2, 3, 4\]", intermediate_states=torch.empty(2, 4, 2, 3, 4))
    refused("contiguous but for its first", intermediate_states=torch.empty(2, 3, 2, 4, 3).transpose(-1, -2))
    refused("backend 'triton/kv8' has no verify kernel|needs an NVIDIA GPU", backend="triton/kv8")
    with checks():
        refused("indices: expected each live slot once", indices=torch.tensor([2, 2]))


def _with(position, change):
    arguments = list(make_inputs(SMALL, 2, tokens=3, dtype=FP32).arguments())
    arguments[position] = change(arguments[position])
    return arguments


def test_flashinfer_says_which_modes_it_has(monkeypatch):
    from gdn_lab.backends.flashinfer import FlashInferBackend

    monkeypatch.setattr(FlashInferBackend, "missing", lambda self, device: None)

    def said(name, mode, **options):
        return refusal(name, GDNShape(16, 64), phase="verify", mode=mode, **options)

    for mode in (UPDATE, INTERMEDIATE, OUTPUT):
        assert said("flashinfer", mode) is None and said("flashinfer/vk", mode, dtype=FP32) is None
    assert "update_state=False" in said("flashinfer", BOTH)
    assert said("flashinfer/wy", OUTPUT) is None
    assert said("flashinfer/wy", UPDATE) == "has no verify kernel wy for mode 'update', only output alone"
    assert "bfloat16" in said("flashinfer/wy", OUTPUT, dtype=FP32)
