"""Every refusal of decode, pool and shapes: the exception, and what its sentence says."""

import os
import subprocess
import sys

import pytest
import torch
from against_reference import PADDING, filled_pool, same_bits

from gdn_lab import GDNShape, StatePool, checks, decode
from gdn_lab.ops import decode_gathered, make_inputs

SHAPE = GDNShape(2, 4, 8, 4)
BIG = GDNShape(2, 4)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CUDA = torch.device("cuda", 0)


def refused(call, *sentence, error=ValueError):
    """call() raises `error`, in one sentence, with each of these parts in it. Returns the sentence."""
    with pytest.raises(error) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said, said
    for part in sentence:
        assert part in said, said
    return said


# Shapes


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: GDNShape(3, 8), "num_v_heads: expected a multiple of num_k_heads (3), got 8"),
        (lambda: GDNShape(0, 8), "num_k_heads: expected a positive int, got 0"),
        (lambda: GDNShape(2, -2), "num_v_heads: expected a positive int, got -2"),
        (lambda: GDNShape(2, 8, 128.0), "head_k_dim: expected a positive int, got 128.0"),
        (lambda: GDNShape(2, 8, 128, True), "head_v_dim: expected a positive int, got True"),
        (lambda: GDNShape.from_model("gpt-2"), "model: 'gpt-2' is not in the table; choose one of qwen3.5-397b-a17b, "),
        (lambda: GDNShape.from_model("qwen3.5-397b-a17b", tp=0), "tp: expected a positive int, got 0"),
        (lambda: GDNShape.from_model("qwen3.5-397b-a17b", tp="8"), "tp: expected a positive int, got '8'"),
        (
            lambda: GDNShape.from_model("qwen3.5-397b-a17b", tp=3),
            "tp: qwen3.5-397b-a17b has 16 key and 64 value heads, which 3 GPUs cannot share evenly; "
            "choose one of 1, 2, 4, 8, 16",
        ),
        (lambda: GDNShape.from_model("qwen3.5-397b-a17b", tp=32), "choose one of 1, 2, 4, 8, 16"),
    ],
)
def test_shapes(call, sentence):
    refused(call, sentence)


# Pools


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: StatePool((2, 8), 4), "shape: expected a GDNShape, got tuple"),
        (lambda: StatePool(SHAPE, 1), "slots: expected an int of at least 2 (slot 0 is the null slot), got 1"),
        (lambda: StatePool(SHAPE, 4.0), "slots: expected an int of at least 2"),
        (lambda: StatePool(SHAPE, 4, layout="VKQ"), "layout: expected one of VK, KV, got 'VKQ'"),
        (
            lambda: StatePool(SHAPE, 4, dtype=torch.float64),
            "dtype: expected one of torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, got torch.float"
            "64",
        ),
        (lambda: StatePool(SHAPE, 4).to(layout="LD"), "layout: expected one of VK, KV, got 'LD'"),
        (lambda: StatePool(SHAPE, 4).to(dtype=torch.int8), "dtype: expected one of"),
        (lambda: StatePool(SHAPE, 4).acquire(-1), "n: expected an int of at least 0, got -1"),
        (lambda: StatePool(SHAPE, 4).acquire(1.0), "n: expected an int of at least 0, got 1.0"),
        (lambda: StatePool(SHAPE, 4).read([1]), "indices: expected an int32 or int64 tensor [n], got list"),
        (lambda: StatePool(SHAPE, 4).read(torch.tensor([1.0])), "got torch.float32 [1]"),
        (lambda: StatePool(SHAPE, 4).read(torch.tensor([[1]])), "got torch.int64 [1, 1]"),
        (lambda: StatePool(SHAPE, 4).read(torch.tensor([1, 4, 9])), "indices: expected slots below 4, got [4, 9]"),
        (lambda: StatePool(SHAPE, 4).release(torch.tensor([7])), "indices: expected slots below 4, got [7]"),
        (
            lambda: StatePool(SHAPE, 4).release(torch.tensor([2])),
            "indices: expected slots that were handed out, got [2], free or the null slot",
        ),
        (lambda: StatePool(SHAPE, 4).release(torch.tensor([0])), "got [0], free or the null slot"),
        (
            lambda: StatePool(SHAPE, 4).write(torch.tensor([1]), torch.zeros(1, 4, 8, 4)),
            "state: expected shape [1, 4, 4, 8] ([n, HV, V, K]), got [1, 4, 8, 4]",
        ),
        (
            lambda: StatePool(SHAPE, 4).write(torch.tensor([5]), torch.zeros(1, 4, 4, 8)),
            "indices: expected slots below 4, got [5]",
        ),
    ],
)
def test_pools(call, sentence):
    refused(call, sentence)


def test_a_slot_released_twice():
    pool = StatePool(SHAPE, 4)
    pool.acquire(2)
    refused(lambda: pool.release(torch.tensor([1, 1])), "indices: expected each slot once, got [1, 1]")
    assert pool.free == 1


def test_a_full_pool():
    refused(
        lambda: StatePool(SHAPE, 4).acquire(5),
        "the pool is full: acquire(5) with 3 of 3 slots free; release slots first or build the pool with more",
        error=RuntimeError,
    )


# Arguments of decode


def arguments(pool=None, **changed):
    """Keyword arguments of a good call of 3 rows on SHAPE, some of them changed: a value, or a function of the good."""
    x = make_inputs(SHAPE, 3)
    good = dict(
        q=x.q, k=x.k, v=x.v, a=x.a, b=x.b, A_log=x.A_log, dt_bias=x.dt_bias, pool=pool or StatePool(SHAPE, 6),
        indices=torch.tensor([1, PADDING, 3], dtype=torch.int32), out=torch.empty(3, 4, 4, dtype=BF16),
    )  # fmt: skip
    return good | {name: change(good[name]) if callable(change) else change for name, change in changed.items()}


def strided_last(x):
    return torch.stack([x, x], -1)[..., 0]


@pytest.mark.parametrize(
    "name, change, sentence",
    [
        ("q", lambda q: q.int(), "q: expected bfloat16 [3, 2, 8] on cpu"),
        ("q", lambda q: q[:, :1], "q: expected bfloat16 [3, 2, 8] on cpu, the last dimension contiguous; got bfloat16"),
        ("q", lambda q: q.unsqueeze(1), "q: expected bfloat16 [3, 2, 8]"),
        ("q", strided_last, "q: expected bfloat16 [3, 2, 8] on cpu, the last dimension contiguous; got bfloat16"),
        ("q", lambda q: q[:2], "q: expected bfloat16 [3, 2, 8]"),  # q's first dimension is the batch
        ("k", lambda k: k.float(), "k: expected bfloat16 [3, 2, 8] on cpu, the last dimension contiguous; got float32"),
        ("k", lambda k: k[:2], "k: expected bfloat16 [3, 2, 8]"),
        ("k", strided_last, "with strides [32, 16, 2]"),
        ("v", lambda v: v.transpose(1, 2), "v: expected bfloat16 [3, 4, 4]"),
        ("v", lambda v: v.half(), "v: expected bfloat16 [3, 4, 4]"),
        ("v", strided_last, "v: expected bfloat16 [3, 4, 4] on cpu, the last dimension contiguous"),
        ("a", lambda a: a[:, :2], "a: expected bfloat16 [3, 4]"),
        ("a", lambda a: a.float(), "a: expected bfloat16 [3, 4] on cpu, the last dimension contiguous; got float32"),
        ("a", strided_last, "a: expected bfloat16 [3, 4]"),
        ("b", lambda b: b[..., None], "b: expected bfloat16 [3, 4]"),
        ("b", lambda b: b.float(), "b: expected bfloat16 [3, 4]"),
        ("b", strided_last, "b: expected bfloat16 [3, 4]"),
        ("A_log", lambda x: x.to(BF16), "A_log: expected float32 [4] on cpu, contiguous; got bfloat16 [4] on cpu"),
        ("A_log", lambda x: x[:3], "A_log: expected float32 [4] on cpu, contiguous; got float32 [3] on cpu"),
        ("A_log", strided_last, "A_log: expected float32 [4] on cpu, contiguous; got float32 [4] on cpu with strides"),
        ("dt_bias", lambda x: x.to(BF16), "dt_bias: expected float32 [4] on cpu, contiguous; got bfloat16 [4] on cpu"),
        ("dt_bias", lambda x: x[None], "dt_bias: expected float32 [4]"),
        ("indices", lambda x: x[:2], "indices: expected int32 [3] on cpu, contiguous; got int32 [2] on cpu"),
        ("indices", lambda x: x.short(), "indices: expected int32 [3] on cpu, contiguous; got int16 [3] on cpu"),
        ("indices", lambda x: x.float(), "indices: expected int32 [3] on cpu, contiguous; got float32 [3] on cpu"),
        ("indices", lambda x: x.long()[None], "indices: expected int64 [3] on cpu, contiguous; got int64 [1, 3]"),
        ("indices", strided_last, "indices: expected int32 [3] on cpu, contiguous; got int32 [3] on cpu with"),
        ("out", lambda x: x.float(), "out: expected bfloat16 [3, 4, 4] on cpu, contiguous; got float32 [3, 4, 4]"),
        ("out", lambda x: x[:2], "out: expected bfloat16 [3, 4, 4]"),
        ("out", lambda x: x.transpose(1, 2), "out: expected bfloat16 [3, 4, 4] on cpu, contiguous; got bfloat16"),
        ("backend", "cuda", "backend: 'cuda' is unknown; choose auto or one of "),
        ("backend", "torch/kv8", "backend: torch has no variant 'kv8'; choose one of vk, kv"),
        ("backend", "torch/kv", "backend 'torch/kv' needs a pool of layout KV; this one is VK"),
        ("backend", "triton", "backend 'triton' needs an NVIDIA GPU of compute capability 8.0 or newer; this is a CPU"),
        ("backend", "flashinfer", "'flashinfer' needs an NVIDIA GPU of compute capability 9.0 or newer; this is a CPU"),
    ],
)  # fmt: skip
def test_arguments_of_decode(name, change, sentence):
    pool = filled_pool(SHAPE, 6, layout="VK", dtype=BF16)
    before = pool.state.clone()
    refused(lambda: decode(**arguments(pool, **{name: change})), sentence)
    assert same_bits(pool.state, before)


def test_the_good_arguments_are_good():
    assert decode(**arguments()).shape == (3, 4, 4)


def test_a_gather_and_scatter_call():
    good = arguments()
    pool = good["pool"]
    rows = torch.arange(1, 4, dtype=torch.int32)

    def gathered(scratch, **changed):
        return decode_gathered(**good | changed, scratch=scratch, rows=rows)

    gathered(StatePool(SHAPE, 4))
    for scratch in (StatePool(SHAPE, 3), StatePool(SHAPE, 4, layout="KV"), StatePool(SHAPE, 4, dtype=FP32)):
        refused(lambda scratch=scratch: gathered(scratch), f"scratch: expected 4 slots like those of {pool}, got ")
    refused(lambda: gathered(StatePool(SHAPE, 4), indices=torch.tensor([1, 2])), "indices: expected int64 [3] on cpu")
    with checks(True):
        refused(lambda: gathered(StatePool(SHAPE, 4), indices=torch.tensor([2, 1, 2])), "indices: expected each live")


# Values, which are read only with checks on


@pytest.mark.parametrize(
    "slots, spoil, sentence",
    [
        ([1, 6, 7], None, "indices: expected slots below 6 or negative for padding, got [6, 7]"),
        ([1, 0, 2], None, "indices: expected slots from 1 (slot 0 is the null slot) or negative for padding, got 0"),
        ([5, 2, 5], None, "indices: expected each live slot once, got [5] more than once"),
        ([4, PADDING, 3], (3, torch.nan), "pool.state: expected finite values, got NaN or infinity in slots [3]"),
        ([3, PADDING, 4], (3, -torch.inf), "pool.state: expected finite values, got NaN or infinity in slots [3]"),
    ],
)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_values(slots, spoil, sentence, index_dtype):
    pool = StatePool(SHAPE, 6)
    if spoil:
        pool.state[spoil[0], 1, 2, 3] = spoil[1]
    given = arguments(pool, indices=torch.tensor(slots, dtype=index_dtype))
    with checks(True):
        refused(lambda: decode(**given), sentence)
        with checks(False):
            if max(slots) < 6:
                decode(**given)  # not read, so not refused
        refused(lambda: decode(**given), sentence)


def test_good_values_pass_the_checks():
    pool = StatePool(SHAPE, 6)
    pool.state[[0, 2]] = torch.nan  # the null slot and one that no row names
    with checks(True):
        decode(**arguments(pool, indices=torch.tensor([5, PADDING, PADDING])))


def test_checks_end_with_their_block_and_with_an_exception():
    pool = StatePool(SHAPE, 6)
    given = arguments(pool, indices=torch.tensor([2, 2, 1]))
    with checks(True):
        refused(lambda: decode(**given), "each live slot once")
    decode(**given)


def test_checks_by_environment(forked_python):
    """GDN_LAB_CHECKS=1 does for a whole process what checks(True) does for a block."""
    program = """
import torch
from gdn_lab import GDNShape, StatePool, decode
from gdn_lab.ops import make_inputs
shape = GDNShape(1, 1, 4, 4)
x = make_inputs(shape, 2)
decode(*x.arguments(), **x.gates(), pool=StatePool(shape, 3), indices=torch.tensor([1, 1]))
print("no check")
"""
    results = {}
    for value in ("1", "0"):
        environment = os.environ | {"GDN_LAB_CHECKS": value}
        results[value] = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )
    assert results["1"].returncode != 0 and "each live slot once, got [1] more than once" in results["1"].stderr
    assert results["0"].returncode == 0 and "no check" in results["0"].stdout


@pytest.mark.parametrize("largest, warned", [(8000.0, False), (8192.0, True), (-60_000.0, True)])
def test_checks_warn_of_a_float16_state_near_its_limit(largest, warned, recwarn):
    pool = StatePool(SHAPE, 4, dtype=torch.float16, device="cpu")
    slots = pool.acquire(2)
    pool.state[slots[1], 1, 2, 3] = largest
    x = make_inputs(SHAPE, 2)
    decode(*x.arguments(), **x.gates(), pool=pool, indices=slots, backend="torch")
    assert not len(recwarn), "without checks nothing is read"
    pool.state[slots[1], 1, 2, 3] = largest
    with checks(True):
        decode(*x.arguments(), **x.gates(), pool=pool, indices=slots, backend="torch")
    said = [str(each.message) for each in recwarn]
    assert [f"in slots [{slots[1]}], within a factor of 8 of float16's limit" in line for line in said] == [
        True
    ] * warned
