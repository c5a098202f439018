"""The reference against results worked out by hand, a loop over plain Python floats, and itself by chunks."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from gdn_lab import GDNShape, reference
from gdn_lab.ops import make_inputs

# a + dt_bias = 0 and A_log = 0 make g = exp(-ln 2) = 1/2; b = 0 makes beta = 1/2
HALF = dict(A_log=torch.tensor([0.0]), dt_bias=torch.tensor([0.75]))
HALF_A, HALF_B = torch.tensor([[-0.75]]), torch.tensor([[0.0]])
CLOSE = dict(rtol=1e-9, atol=1e-12)


def close(actual, expected, **tolerance):
    torch.testing.assert_close(
        actual, torch.as_tensor(expected, dtype=torch.float64), **(tolerance or dict(rtol=1e-12, atol=1e-12))
    )


def test_one_by_one_by_hand():
    q, k, v = (torch.tensor([[[x]]]) for x in (2.0, 3.0, 5.0))
    state = torch.tensor([[[[4.0]]]])
    o, new = reference.decode(q, k, v, HALF_A, HALF_B, **HALF, state=state, scale=1.0, use_qk_l2norm=False)
    # S = 2; u = (5 - 2 * 3) / 2 = -1/2; S = 2 - 3/2; o = 2 S
    close(new, [[[[0.5]]]])
    close(o, [[[1.0]]])
    assert state.item() == 4.0, "the state passed in has changed"


def test_two_by_two_by_hand():
    q, k, v = torch.tensor([[[1.0, -1.0]]]), torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 5.0]]])
    state = torch.tensor([[[[4.0, 0.0], [2.0, 6.0]]]])  # rows are values, columns keys
    o, new = reference.decode(q, k, v, HALF_A, HALF_B, **HALF, state=state, scale=1.0, use_qk_l2norm=False)
    # S = [[2, 0], [1, 3]]; S k = (2, 7); u = (1/2, -1); u kᵀ = [[1/2, 1], [-1, -2]]
    close(new, [[[[2.5, 1.0], [0.0, 1.0]]]])
    close(o, [[[1.5, -1.0]]])


def test_norm_and_default_scale_by_hand():
    q, k, v = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[8.0]]])
    state = torch.zeros(1, 1, 1, 2)
    o, new = reference.decode(q, k, v, HALF_A, HALF_B, **HALF, state=state)
    # k = (0, 1), q = (0.6, 0.8) / sqrt(2), but for the 1e-6 under the root; u = 4; S = (0, 4)
    close(new, [[[[0.0, 4.0]]]], rtol=1e-6, atol=0.0)
    close(o, [[[3.2 / math.sqrt(2)]]], rtol=1e-6, atol=0.0)
    close(new[0, 0, 0, 1], 8 / math.sqrt(4 + 1e-6), rtol=1e-12, atol=0.0)


def test_softplus_is_linear_above_20():
    x = torch.tensor([[20.0, 20.5, 100.0, -30.0]])
    log_g = reference.log_decay(x, torch.zeros(4), torch.zeros(4))
    close(log_g, [[-math.log1p(math.exp(20)), -20.5, -100.0, -math.log1p(math.exp(-30))]])
    close(reference.log_decay(x, torch.full((4,), math.log(16)), torch.zeros(4)), 16 * log_g, rtol=1e-6, atol=0.0)


def test_value_heads_read_their_key_head():
    """HK 2, HV 4: heads 0, 1 read key head 0 and heads 2, 3 read key head 1."""
    k = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    v = torch.ones(1, 4, 1)
    gates = dict(A_log=torch.zeros(4), dt_bias=torch.zeros(4))
    zero = torch.zeros(1, 4)
    o, new = reference.decode(
        k, k, v, zero, zero, **gates, state=torch.zeros(1, 4, 1, 2), scale=1.0, use_qk_l2norm=False
    )
    close(new[0, :, 0], [[0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, 0.5]])
    close(o, torch.full((1, 4, 1), 0.5))


def plain_step(q, k, v, x, A, b, S, scale, normalise):
    """One head and token on lists of Python floats: q, k [K]; v [V]; S [V][K], changed in place. Returns o [V]."""
    K, V = len(k), len(v)
    if normalise:
        length_q, length_k = (math.sqrt(sum(t * t for t in vec) + 1e-6) for vec in (q, k))
        q, k = [t / length_q for t in q], [t / length_k for t in k]
    g = math.exp(-A * (x if x > 20 else math.log1p(math.exp(x))))
    beta = 1 / (1 + math.exp(-b))
    o = []
    for i in range(V):
        row = [g * S[i][j] for j in range(K)]
        u = beta * (v[i] - sum(row[j] * k[j] for j in range(K)))
        S[i] = [row[j] + u * k[j] for j in range(K)]
        o.append(scale * sum(S[i][j] * q[j] for j in range(K)))
    return o


small_shapes = st.builds(
    lambda HK, group, K, V: GDNShape(HK, HK * group, K, V),
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5),
)  # fmt: skip


@given(small_shapes, st.integers(1, 3), st.booleans(), st.sampled_from([None, 1.0, 0.3]), st.integers(0, 2**16))
def test_decode_against_plain_python(shape, batch, normalise, scale, seed):
    x = make_inputs(shape, batch, dtype=torch.float32, seed=seed)
    state = torch.randn(batch, shape.num_v_heads, shape.head_v_dim, shape.head_k_dim, dtype=torch.float64)
    o, new = reference.decode(*x.arguments(), **x.gates(), state=state, scale=scale, use_qk_l2norm=normalise)
    for row in range(batch):
        for head in range(shape.num_v_heads):
            key = head // shape.group
            S = state[row, head].tolist()
            gate = x.a[row, head].item() + x.dt_bias[head].item()
            expected = plain_step(
                x.q[row, key].tolist(), x.k[row, key].tolist(), x.v[row, head].tolist(), gate,
                math.exp(x.A_log[head].item()), x.b[row, head].item(), S,
                shape.head_k_dim**-0.5 if scale is None else scale, normalise,
            )  # fmt: skip
            close(o[row, head], expected, **CLOSE)
            close(new[row, head], S, **CLOSE)


@given(small_shapes, st.integers(1, 2), st.integers(1, 6), st.integers(0, 2**16))
def test_verify_is_repeated_decode(shape, batch, tokens, seed):
    steps = [make_inputs(shape, batch, seed=seed + t) for t in range(tokens)]
    gates = steps[0].gates()
    state = torch.randn(batch, shape.num_v_heads, shape.head_v_dim, shape.head_k_dim)
    arguments = [torch.stack(parts, 1) for parts in zip(*(x.arguments() for x in steps), strict=True)]
    o, states = reference.verify(*arguments, **gates, state=state)
    assert states.shape == (batch, tokens, *state.shape[1:])
    S = state
    for t in range(tokens):
        expected, S = reference.decode(*steps[t].arguments(), **gates, state=S)
        close(o[:, t], expected)
        close(states[:, t], S)


def packed(shape, lengths, seed, strong_decay=True):
    """(arguments, gates, state, cu_seqlens) of sequences of these lengths."""
    x = make_inputs(shape, sum(lengths), dtype=torch.float32, seed=seed, strong_decay=strong_decay)
    rng = torch.Generator().manual_seed(seed)
    state = torch.randn(len(lengths), shape.num_v_heads, shape.head_v_dim, shape.head_k_dim, generator=rng)
    return x.arguments(), x.gates(), state, torch.tensor([0, *lengths]).cumsum(0)


lengths = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@given(small_shapes, lengths, st.integers(0, 2**16))
def test_prefill_is_repeated_decode(shape, lengths, seed):
    arguments, gates, state, cu_seqlens = packed(shape, lengths, seed)
    o, final = reference.prefill(*arguments, **gates, state=state, cu_seqlens=cu_seqlens)
    for n, (start, end) in enumerate(zip(cu_seqlens, cu_seqlens[1:], strict=False)):
        S = state[n : n + 1]
        for t in range(start, end):
            expected, S = reference.decode(*(x[t : t + 1] for x in arguments), **gates, state=S)
            close(o[t : t + 1], expected)
        close(final[n : n + 1], S.double())


@given(
    small_shapes,
    st.lists(st.sampled_from([0, 1, 2, 7, 8, 9, 16, 33]), min_size=1, max_size=4),
    st.sampled_from([1, 2, 8, 64]),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_chunked_is_recurrent(shape, lengths, chunk, strong_decay, seed):
    """Empty sequences, single tokens, chunk boundaries met and missed by one."""
    arguments, gates, state, cu_seqlens = packed(shape, lengths, seed, strong_decay)
    o, final = reference.prefill(*arguments, **gates, state=state, cu_seqlens=cu_seqlens)
    o_chunked, final_chunked = reference.prefill_chunked(
        *arguments, **gates, state=state, cu_seqlens=cu_seqlens, chunk=chunk
    )
    assert torch.isfinite(o).all() and torch.isfinite(final).all()
    close(o_chunked, o, **CLOSE)
    close(final_chunked, final, **CLOSE)
    empty = [n for n, length in enumerate(lengths) if length == 0]
    close(final_chunked[empty], state[empty].double())


def test_the_strongest_decay_gives_no_nan():
    """A = 16 and gates of ±80 on 130 tokens: g is 0 or 1, the sums of log g reach -80,000."""
    shape = GDNShape(1, 2, 4, 4)
    arguments, gates, state, cu_seqlens = packed(shape, [130, 1, 0], seed=3)
    gates["A_log"].fill_(math.log(16))
    arguments[3].copy_(torch.where(torch.randn(131, 2, generator=torch.Generator().manual_seed(4)) > 0, 80.0, -80.0))
    o, final = reference.prefill(*arguments, **gates, state=state, cu_seqlens=cu_seqlens)
    o_chunked, final_chunked = reference.prefill_chunked(*arguments, **gates, state=state, cu_seqlens=cu_seqlens)
    assert torch.isfinite(o).all() and torch.isfinite(o_chunked).all() and torch.isfinite(final_chunked).all()
    close(o_chunked, o, **CLOSE)
    close(final_chunked, final, **CLOSE)


def test_everything_is_float64_on_the_cpu():
    shape = GDNShape(1, 2, 4, 4)
    arguments, gates, state, cu_seqlens = packed(shape, [2, 3], seed=0)
    results = [
        *reference.prefill(*arguments, **gates, state=state, cu_seqlens=cu_seqlens),
        *reference.decode(*(x[:2] for x in arguments), **gates, state=state.to(torch.bfloat16)),
    ]
    assert all(x.dtype == torch.float64 and x.device.type == "cpu" for x in results)
