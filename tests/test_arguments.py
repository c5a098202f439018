"""What calls refuse besides shapes: memory that is shared, what is no tensor here; autograd; threads; empty calls."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from against_reference import filled_pool, row_slots, same_bits
from prefill_against_reference import bounds_of

from gdn_lab import GDNShape, StatePool, checks, decode, prefill, verify
from gdn_lab.arguments import check_call
from gdn_lab.backends.registry import backends
from gdn_lab.memory import shares_memory
from gdn_lab.ops import decode_gathered, make_inputs
from gdn_lab.pool import checks_values

SHAPE = GDNShape(2, 4, 16, 16)
BF16 = torch.bfloat16


def call_of(phase, *, out=None, pool=None, rows=3, tokens=2, **changes):
    """Make one call of `rows` rows (prefill: sequences of two tokens) on `torch`; return what it returns."""
    drafts = {"tokens": tokens} if phase == "verify" else {}
    inputs = make_inputs(SHAPE, rows * 2 if phase == "prefill" else rows, dtype=changes.pop("dtype", BF16), **drafts)
    pool = filled_pool(SHAPE, 6, layout="VK", dtype=BF16) if pool is None else pool
    options = inputs.gates() | {"pool": pool, "indices": row_slots(rows, 6), "out": out}
    if phase == "prefill":
        options["cu_seqlens"] = bounds_of([2] * rows)
    positional = dict(zip("qkvab", inputs.arguments(), strict=True))
    positional |= {name: changes.pop(name) for name in list(changes) if name in positional}
    return {"decode": decode, "verify": verify, "prefill": prefill}[phase](**positional, **(options | changes))


def refused(call, sentence):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value), str(caught.value)


PHASES = pytest.mark.parametrize("phase", ["decode", "verify", "prefill"])


# ---- autograd -------------------------------------------------------------------------------------------------------


@PHASES
@pytest.mark.parametrize("name", ["q", "k", "v", "a", "b", "A_log", "dt_bias"])
def test_a_pool_keeps_no_graph(phase, name):
    pool, plain = (filled_pool(SHAPE, 6, layout="VK", dtype=BF16) for _ in range(2))
    inputs = make_inputs(SHAPE, 6 if phase == "prefill" else 3, tokens=2 if phase == "verify" else None)
    x = getattr(inputs, name)
    for _ in range(2):
        out = call_of(phase, pool=pool, **{name: torch.nn.Parameter(x.clone())})
        same = call_of(phase, pool=plain, **{name: x})
    assert not pool.state.requires_grad and pool.state.grad_fn is None
    assert not out.requires_grad
    assert same_bits(out, same) and same_bits(pool.state, plain.state)


def test_the_pool_stores_states_without_their_graph():
    pool = StatePool(SHAPE, 4)
    slots = pool.acquire(2)
    state = torch.ones(2, *pool.state.shape[1:], requires_grad=True)
    pool.write(slots, state * 2)
    assert not pool.state.requires_grad
    assert pool.read(slots).numpy().max() == 2
    pool.reserve_drafts(2, 3)
    drafts = (torch.ones(2, 3, *pool.state.shape[1:], requires_grad=True) * 3).to(BF16)
    with pytest.raises(ValueError, match="intermediate_states: expected a tensor that requires no gradient"):
        pool.commit(slots, torch.tensor([1, 2]), intermediate_states=drafts, draft_inputs=pool.draft_inputs)
    pool.commit(slots, torch.tensor([1, 2]), intermediate_states=drafts.detach(), draft_inputs=pool.draft_inputs)
    assert not pool.state.requires_grad and pool.state[slots].min() == 3


@PHASES
def test_an_output_that_requires_a_gradient_is_refused(phase):
    shape = make_inputs(SHAPE, 6 if phase == "prefill" else 3, tokens=2 if phase == "verify" else None).v.shape
    refused(lambda: call_of(phase, out=torch.zeros(shape, dtype=BF16, requires_grad=True)), "out: expected a tensor")


# ---- memory ---------------------------------------------------------------------------------------------------------


@PHASES
def test_an_output_in_the_pool_or_over_an_input_is_refused(phase):
    pool = filled_pool(SHAPE, 6, layout="VK", dtype=BF16)
    inputs = make_inputs(SHAPE, 6 if phase == "prefill" else 3, tokens=2 if phase == "verify" else None)
    before, size = pool.state.clone(), inputs.v.numel()
    inside = pool.state.view(-1)[7 : 7 + size].view(inputs.v.shape)
    refused(lambda: call_of(phase, pool=pool, out=inside), "out: lies in pool.state")
    buffer = torch.zeros(3 * size, dtype=BF16)
    out = buffer[:size].view(inputs.v.shape)
    for name in "qkab":
        x = getattr(inputs, name)
        over = buffer[size - 1 : size - 1 + x.numel()].view(x.shape).copy_(x)  # one element is shared
        refused(
            lambda name=name, over=over: call_of(phase, pool=pool, out=out, **{name: over}),
            f"out: shares memory with {name}",
        )
        apart = buffer[size : size + x.numel()].view(x.shape).copy_(x)
        call_of(phase, out=out, **{name: apart})
    shifted = buffer[4 : 4 + size].view(inputs.v.shape)
    refused(lambda: call_of(phase, pool=pool, out=out, v=shifted), "out: shares memory with v")
    assert same_bits(pool.state, before)


@PHASES
def test_an_input_that_lies_in_the_pool_is_refused(phase):
    pool = filled_pool(SHAPE, 6, layout="VK", dtype=BF16)
    inputs = make_inputs(SHAPE, 6 if phase == "prefill" else 3, tokens=2 if phase == "verify" else None)
    before = pool.state.clone()
    for name in "qkvab":
        x = getattr(inputs, name)
        inside = pool.state.view(-1)[-x.numel() :].view(x.shape)
        refused(lambda name=name, x=inside: call_of(phase, pool=pool, **{name: x}), f"{name}: lies in pool.state")
    assert same_bits(pool.state, before)


def test_drafts_that_lie_in_the_pool_are_refused():
    pool = filled_pool(SHAPE, 6, layout="VK", dtype=BF16)
    pool.reserve_drafts(2, 2)
    slots, accepted = torch.tensor([4, 5]), torch.tensor([1, 2])
    states = pool.state.view(-1)[: pool.intermediate_states.numel()].view(pool.intermediate_states.shape)
    inputs = pool.conv.view(-1)[: pool.draft_inputs.numel()].view(pool.draft_inputs.shape)
    before = pool.state.clone(), pool.conv.clone()
    for name, value in (("intermediate_states", states), ("draft_inputs", inputs)):
        drafts = {"intermediate_states": pool.intermediate_states, "draft_inputs": pool.draft_inputs} | {name: value}
        refused(lambda drafts=drafts: pool.commit(slots, accepted, **drafts), f"{name}: lies in pool.")
    assert same_bits(pool.state, before[0]) and same_bits(pool.conv, before[1])


@PHASES
def test_the_output_may_be_v(phase):
    v = make_inputs(SHAPE, 6 if phase == "prefill" else 3, tokens=2 if phase == "verify" else None).v.contiguous()
    expected, taken = call_of(phase, v=v.clone()), v.clone()
    assert same_bits(call_of(phase, v=taken, out=taken), expected)


def test_intermediate_states_that_overlap_are_refused():
    pool = filled_pool(SHAPE, 6, layout="VK", dtype=BF16)
    before, row = pool.state.clone(), 2 * pool.state[0].numel()
    buffer = torch.zeros(4 * row, dtype=BF16)
    shape, inner = (3, 2, *pool.state.shape[1:]), torch.empty(2, *pool.state.shape[1:]).stride()
    for stride in (0, row // 2, row - 1):
        states = buffer.as_strided(shape, (stride, *inner))
        sentence = "intermediate_states: expected [3, 2, 4, 16, 16] contiguous but for its first dimension"
        refused(lambda states=states: call_of("verify", pool=pool, intermediate_states=states), sentence)
    inside = pool.state.view(-1)[: 3 * row].view(shape)
    refused(lambda: call_of("verify", pool=pool, intermediate_states=inside), "intermediate_states: lies in pool.state")
    out = buffer[: 3 * 2 * 4 * 16].view(3, 2, 4, 16)
    states = buffer[: 3 * row].view(shape)
    sentence = "intermediate_states: shares memory with another argument"
    refused(lambda: call_of("verify", pool=pool, intermediate_states=states, out=out), sentence)
    assert same_bits(pool.state, before)
    call_of("verify", pool=pool, intermediate_states=buffer.as_strided(shape, (row + 8, *inner)), update_state=False)


def test_memory_is_shared_from_the_first_element_to_the_last():
    x = torch.zeros(100)
    assert shares_memory(x[:10], x[9:20]) and shares_memory(x[9:20], x[:10])
    assert not shares_memory(x[:10], x[10:20])
    assert shares_memory(x[::10], x[85:95]) and not shares_memory(x[0:20:10], x[11:15])
    assert not shares_memory(x[:0], x) and not shares_memory(
        torch.zeros(4, device="meta"), torch.zeros(4, device="meta")
    )


# ---- what is no tensor, or not here ---------------------------------------------------------------------------------


@PHASES
@pytest.mark.parametrize("value", [None, 3, [1, 2, 3], np.zeros(3), "q"], ids=repr)
def test_what_is_no_tensor_is_named(phase, value):
    for name in ("q", "v", "b", "A_log", "indices"):
        refused(lambda name=name: call_of(phase, **{name: value}), f"{name}: expected a tensor on cpu, got ")
    if value is not None:
        refused(lambda: call_of(phase, out=value), "out: expected a tensor on cpu, got ")
        refused(lambda: call_of(phase, pool=value), "pool: expected a StatePool, got ")


def test_a_tensor_on_meta_and_a_sparse_one_are_refused():
    for name, x in make_inputs(SHAPE, 3).__dict__.items():
        if name != "mixed_qkv":
            refused(lambda name=name, x=x: call_of("decode", **{name: x.to("meta")}), f"{name}: expected ")
            refused(
                lambda name=name, x=x: call_of("decode", **{name: x.to_sparse()}), f"{name}: expected a tensor on cpu"
            )
    refused(lambda: call_of("decode", indices=row_slots(3, 6).to("meta")), "indices: expected ")
    refused(
        lambda: StatePool(SHAPE, 4).release(torch.tensor([1], device="meta")), "indices: expected a tensor with values"
    )


def test_the_backend_and_the_scale():
    for backend in (None, 3, ["torch"], "torch/", "torch/none", "none"):
        refused(lambda backend=backend: call_of("decode", backend=backend), "backend: ")
    refused(lambda: call_of("decode", scale="1"), "scale: expected a number or None, got '1'")
    call_of("decode", scale=np.float32(0.5))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    "device, sentence",
    [
        ("cuda", "device: expected one that is there, got 'cuda'; torch sees no GPU"),
        ("cuda:3", "device: expected one that is there, got 'cuda:3'; torch sees no GPU"),
        ("gpu", "device: expected a name such as 'cpu' or 'cuda:0', got 'gpu'"),
        ("xpu", "device: expected cpu, cuda or meta, got 'xpu'"),
    ],
)
def test_a_device_that_is_not_there(device, sentence):
    refused(lambda: StatePool(SHAPE, 4, device=device), sentence)
    refused(lambda: StatePool(SHAPE, 4).to(device=device), sentence)
    refused(lambda: backends(device), sentence)


def test_gathered_decode_checks_its_indices():
    pool, scratch = (StatePool(SHAPE, 6) for _ in range(2))
    inputs, rows = make_inputs(SHAPE, 3), torch.arange(1, 4, dtype=torch.int32)
    options = inputs.gates() | {"pool": pool, "scratch": scratch, "rows": rows}
    for indices in (torch.tensor([1.0, 2.0, 3.5]), [1, 2, 3], torch.tensor([1, 2]), torch.tensor([1, 2, 6])):
        refused(
            lambda indices=indices: decode_gathered(*inputs.arguments(), indices=indices, **options),
            "indices: expected ",
        )


# ---- empty calls ----------------------------------------------------------------------------------------------------


def test_calls_without_rows_or_tokens():
    pool = filled_pool(SHAPE, 6, layout="VK", dtype=BF16)
    before = pool.state.clone()
    none = torch.zeros(0, dtype=torch.int32)
    empty = {name: getattr(make_inputs(SHAPE, 3), name)[:0] for name in "qkvab"}
    gates = make_inputs(SHAPE, 1).gates()
    assert decode(**empty, **gates, pool=pool, indices=none).shape == (0, 4, 16)
    bounds = torch.zeros(1, dtype=torch.int32)
    assert prefill(**empty, **gates, pool=pool, indices=none, cu_seqlens=bounds).shape == (0, 4, 16)
    two_empty = torch.zeros(3, dtype=torch.int32)
    prefill(**empty, **gates, pool=pool, indices=row_slots(2, 6), cu_seqlens=two_empty)
    drafts = {name: getattr(make_inputs(SHAPE, 3, tokens=2), name)[:0] for name in "qkvab"}
    assert verify(**drafts, **gates, pool=pool, indices=none).shape == (0, 2, 4, 16)
    pool.reserve_drafts(2, 2)
    pool.commit(none, none)
    states, inputs = pool.intermediate_states[:, :0], pool.draft_inputs[..., :0]
    pool.commit(row_slots(2, 6), torch.zeros(2, dtype=torch.int32), intermediate_states=states, draft_inputs=inputs)
    assert same_bits(pool.state, before)
    strided = torch.from_numpy(np.zeros((0, 2, 16), np.float32)).to(BF16).as_strided((0, 2, 16), (0, 0, 0))
    assert decode(**(empty | {"q": strided}), **gates, pool=pool, indices=none).shape == (0, 4, 16)


@pytest.mark.parametrize("bounds", [[0, 2, 4, 5], [1, 2, 4, 6], [0, 4, 2, 6], [0, 2, 4, 7], [-1, 2, 4, 6]], ids=str)
def test_bounds_that_do_not_cover_the_tokens_are_refused_on_the_host(bounds):
    pool = filled_pool(SHAPE, 6, layout="VK", dtype=BF16)
    before = pool.state.clone()
    refused(lambda: call_of("prefill", pool=pool, cu_seqlens=torch.tensor(bounds)), "cu_seqlens: expected 0 to 6")
    assert same_bits(pool.state, before)


def test_tokens_of_no_sequence_are_refused_on_any_device():
    pool = StatePool(SHAPE, 4, device="meta")
    inputs = make_inputs(SHAPE, 3, device="meta")
    none, bounds = torch.zeros(0, dtype=torch.int32, device="meta"), torch.zeros(1, dtype=torch.int32, device="meta")
    options = inputs.gates() | {"pool": pool, "indices": none, "cu_seqlens": bounds}
    refused(lambda: prefill(*inputs.arguments(), **options), "cu_seqlens: expected sequences that cover the 3 tokens")


@PHASES
def test_a_slot_beyond_the_pool_is_refused_on_the_host(phase):
    refused(lambda: call_of(phase, indices=torch.tensor([1, 2, 6])), "indices: expected slots below 6")


# ---- threads --------------------------------------------------------------------------------------------------------


def test_checks_belong_to_the_thread():
    inside, go_on, seen = threading.Event(), threading.Event(), []

    def other():
        seen.append(checks_values())
        with checks(False):
            inside.set()
            go_on.wait(10)
        seen.append(checks_values())

    with checks():
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(10)
        assert checks_values()
    assert not checks_values()
    go_on.set()
    thread.join()
    assert seen == [False, False] and not checks_values()


def test_threads_that_acquire_and_release_lose_no_slot():
    pool = StatePool(GDNShape(1, 1, 4, 4), 9)

    def work(number):
        held = 0
        for _ in range(200):
            try:
                slots = pool.acquire(1 + number % 3)
            except RuntimeError as error:
                assert "the pool is full" in str(error)
                continue
            held += len(slots)
            pool.release(slots)
        return held

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(work, range(8))) > 0
    assert pool.free == 8
    assert sorted(pool.acquire(8).tolist()) == list(range(1, 9))


def test_an_acquire_that_fails_takes_nothing(monkeypatch):
    pool = StatePool(SHAPE, 5)
    first = pool.acquire(1).tolist()

    def broken(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "tensor", broken)
    with pytest.raises(KeyboardInterrupt):
        pool.acquire(3)
    monkeypatch.undo()
    assert pool.free == 3
    assert pool.acquire(3).tolist() == [2, 3, 4] and first == [1]


def test_reserving_drafts_that_do_not_fit_keeps_the_old_ones(monkeypatch):
    pool = StatePool(SHAPE, 5)
    pool.reserve_drafts(2, 3)
    kept = pool.intermediate_states, pool.draft_inputs

    def out_of_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch, "zeros", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        pool.reserve_drafts(20, 3)
    assert pool.intermediate_states is kept[0] and pool.draft_inputs is kept[1]


def test_writing_a_slot_twice_or_complex_numbers_is_refused():
    pool = StatePool(SHAPE, 5)
    slots, state = pool.acquire(2), torch.ones(2, 4, 16, 16)
    refused(lambda: pool.write(slots[[0, 0]], state), "indices: expected each slot once, got [1, 1]")
    refused(lambda: pool.write(slots, state.to(torch.complex64)), "state: expected a tensor of real numbers")
    refused(lambda: pool.write(slots, None), "state: expected a tensor of real numbers, got NoneType")
    assert not pool.state.any()


def test_a_good_call_asks_nothing_of_the_cold_path(monkeypatch):
    """What works out who is to blame must not run on calls that fit: it costs as much as a small kernel."""
    monkeypatch.setattr("gdn_lab.arguments._refuse_call", lambda *args: pytest.fail("asked"))
    inputs = make_inputs(SHAPE, 3)
    pool = StatePool(SHAPE, 6)
    check_call(1, *inputs.arguments(), *inputs.gates().values(), pool, row_slots(3, 6), None, "auto", None)
