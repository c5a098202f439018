"""The whole model at toy size on a CPU: prefill, decode and verify against float64 over the whole sequence."""

import pytest
import torch
from whole_model_reference import logits

from gdn_lab.engine.model_weights import ModelWeights
from gdn_lab.engine.served_model import ServedModel

MODELS = ["qwen3.5-35b-a3b", "qwen3.5-27b"]  # with experts, and dense
# Activations are bf16: a token is right if its logit is this near to the largest, in standard deviations of the logits.
# Processors sum products of bf16 in different orders: here 0.05 is not enough on each.
NEAR = 0.1
LENGTHS = (11, 3, 20)
STEPS = 6


@pytest.fixture(scope="module", params=MODELS)
def weights(request):
    return ModelWeights.random(request.param, precision="bf16", toy=True)


def build(weights, name="torch", **sizes):
    given = {"max_batch": 4, "slots": 6, "pages": 24, "page_size": 8, "max_length": 40, "prefill_tokens": 40}
    return ServedModel(weights, name, **given | {"batch_sizes": (1, 2)} | sizes)


def prompts(vocab=512):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, vocab, (length,), generator=generator) for length in LENGTHS]


def start(model, each, chunk=None):
    """Prefill prompts, at once or `chunk` tokens of each at a time, and put them into the buffers; the first tokens."""
    slots, pages = [model.slots.acquire() for _ in each], [model.cache.acquire(5) for _ in each]
    first = torch.zeros(len(each), dtype=torch.int64)
    for begin in range(0, max(LENGTHS), chunk or max(LENGTHS)):
        rows = [n for n, prompt in enumerate(each) if len(prompt) > begin]
        pieces = [each[n][begin : begin + (chunk or len(each[n]))] for n in rows]
        bounds = [sum(map(len, pieces[:n])) for n in range(len(pieces) + 1)]
        done = [i for i, n in enumerate(rows) if begin + len(pieces[i]) == len(each[n])]
        arguments = [begin] * len(rows), [slots[n] for n in rows], [pages[n] for n in rows], done
        first[[rows[i] for i in done]] = model.prefill(torch.cat(pieces), bounds, *arguments)
    enter(model, slots, pages, [len(prompt) for prompt in each], first)
    return first


def enter(model, slots, pages, positions, tokens):
    buffers, n = model.buffers, len(slots)
    buffers.indices.fill_(-1)
    buffers.indices[:n] = torch.tensor(slots)
    buffers.positions[:n] = torch.tensor(positions)
    buffers.page_table[:n, :5] = torch.tensor(pages)
    buffers.tokens[:n] = tokens


def test_warming_prompts_makes_every_size_and_changes_nothing_that_is_read(weights):
    model, cold = build(weights), build(weights)
    model.warm_prompts()
    assert set(model._prompts) == {16, 32, 40} == model._warm
    kept = [part for pool in model.pools for part in (pool.state[1:], pool.conv[1:])] + [*model.cache.k, *model.cache.v]
    assert not any(part.any() for part in kept)
    assert torch.equal(start(model, prompts()), start(cold, prompts()))
    steps = dict(model._prompts)
    model.warm_prompts()
    assert model._prompts == steps


def answers(model, first, steps=STEPS):
    return torch.stack([first] + [model.decode(len(first)).clone() for _ in range(steps)], 1)


def exact_logits(weights, prompt, tokens):
    """Of the tokens after the prompt, from float64: [len(tokens) + 1, vocab]."""
    return logits(weights, torch.cat((prompt, tokens)))[len(prompt) - 1 :]


def short_of_best(exact, tokens):
    """How far the logits of these tokens are below the largest, in standard deviations."""
    return (exact.max(1).values - exact.gather(1, tokens[:, None])[:, 0]) / exact.std(1)


def assert_right(weights, each, found):
    """Every token is one of the most likely ones after those before it, by float64."""
    for prompt, tokens in zip(each, found, strict=True):
        assert (short_of_best(exact_logits(weights, prompt, tokens[:-1]), tokens) <= NEAR).all()


@pytest.mark.parametrize("name", ["torch", "torch-kv"])
def test_decode_after_prefill_is_right(weights, name):
    model, each = build(weights, name), prompts()
    found = answers(model, start(model, each))
    assert_right(weights, each, found)
    assert len(found.unique()) > STEPS, "a model that repeats itself proves little"
    assert torch.equal(model.buffers.next_tokens[:3], found[:, -1])
    assert model.buffers.positions.tolist() == [length + STEPS for length in LENGTHS] + [0]


@pytest.mark.parametrize("chunk", [2, 7])
def test_prompts_in_pieces(weights, chunk):
    model, each = build(weights), prompts()
    assert_right(weights, each, answers(model, start(model, each, chunk), steps=2))


@pytest.mark.parametrize("name", ["torch", "torch-kv"])
def test_a_mixed_step_prefills_some_and_decodes_the_others(weights, name):
    """Two requests decode while the prompt of a third comes in pieces of 9 and 11 tokens."""
    model, each = build(weights, name), prompts()
    first = [start(model, each[:2])]
    slot, pages = model.slots.acquire(), model.cache.acquire(5)
    for begin, end, done in ((0, 9, []), (9, 20, [0])):
        arguments = [0, end - begin], [begin], [slot], [pages], done
        chosen = model.prefill(each[2][begin:end], *arguments, decoding=2)
        assert torch.equal(chosen[-2:], model.buffers.tokens[:2])
        first.append(chosen[-2:].clone())
    assert model.buffers.positions.tolist() == [13, 5, 0, 0] and len(chosen) == 3
    slots, table = model.buffers.indices[:2].tolist(), model.buffers.page_table[:2, :5].tolist()
    enter(model, [*slots, slot], [*table, pages], [13, 5, 20], torch.tensor([*chosen[1:], chosen[0]]))
    last = model.decode(3)
    decoded = [torch.stack([*(tokens[row] for tokens in first), last[row]]) for row in range(2)]
    assert_right(weights, each, [*decoded, torch.stack([chosen[0], last[2]])])


def test_fp8_answers_like_its_own_weights():
    """FP8 rounds activations too, to 4 bits: its tokens are likely ones of the same weights."""
    weights = ModelWeights.random(MODELS[0], precision="fp8", toy=True)
    model, each = build(weights), prompts()
    found = answers(model, start(model, each))
    for prompt, tokens in zip(each, found, strict=True):
        assert (short_of_best(exact_logits(weights, prompt, tokens[:-1]), tokens) <= 5 * NEAR).all()


def test_padding_rows_change_nothing(weights):
    model, each = build(weights), prompts()
    start(model, each)
    free = [model.slots.acquire() for _ in range(model.slots.free)]
    kept = model.cache.acquire(model.cache.free)
    for pool in model.pools:
        pool.state[free], pool.conv[free] = 7.0, 7.0
    model.cache.k[:, kept], model.cache.v[:, kept] = 7.0, 7.0
    model.decode(3)  # runs 4 rows
    for pool in model.pools:
        assert (pool.state[free] == 7).all() and (pool.conv[free] == 7).all()
    assert (model.cache.k[:, kept] == 7).all() and (model.cache.v[:, kept] == 7).all()
    assert model.buffers.tokens[3] == 0 and model.buffers.positions[3] == 0


def test_verify_and_commit_equal_decode(weights):
    """Right drafts are kept, wrong ones leave nothing behind: the tokens after them are right all the same."""
    each, rows = prompts(), torch.arange(3)
    plain = build(weights)
    expected = answers(plain, start(plain, each), steps=9)
    exact = [exact_logits(weights, prompt, tokens) for prompt, tokens in zip(each, expected, strict=True)]
    model = build(weights)
    start(model, each)
    model.reserve_drafts(3, 3)
    given = torch.ones(3, dtype=torch.int64)
    for accepted in ([3, 1, 2], [1, 3, 2], [2, 2, 1]):
        kept = torch.tensor(accepted, dtype=torch.int32)
        model.buffers.tokens[:3] = expected[rows, given - 1]  # near ties may have gone another way
        for offset in range(3):
            right = expected[rows, given + offset - 1]
            model.drafts[:3, offset] = torch.where(kept > offset, right, (right + 17) % 512)
        chosen = model.verify(3, 3).clone()
        model.commit(3, kept)
        for row, count in enumerate(accepted):
            after = exact[row][given[row] : given[row] + count]
            assert (short_of_best(after, chosen[row, :count]) <= NEAR).all()
        given += kept
        assert torch.equal(model.buffers.tokens[:3], chosen[rows, kept.long() - 1])
        assert torch.equal(model.buffers.positions[:3], torch.tensor(LENGTHS) + given - 1)
    model.buffers.tokens[:3] = expected[rows, given - 1]
    after = torch.stack([exact[row][given[row]] for row in range(3)])
    assert (short_of_best(after, model.decode(3)) <= NEAR).all()
    model.reserve_drafts(0, 0)
    assert model.drafts is None and model.pools[0].intermediate_states is None


def test_parts_of_a_step_and_memory(weights):
    model = build(weights)
    rows = {row["part"]: row for row in model.time_parts(2, 30)}
    assert set(rows) == {"embedding", "GDN layer", "attention layer", "GDN kernel", "head and sampler"}
    assert rows["GDN layer"]["count"] == 3 and all(row["us"] > 0 for row in rows.values())
    assert (model.buffers.indices == -1).all()
    memory = model.memory()
    assert memory["state of a slot"] * 6 == sum(pool.nbytes for pool in model.pools)
    assert memory["KV of a token"] == model.cache.nbytes // (24 * 8)


@pytest.mark.parametrize(
    "sizes, sentence",
    [
        ({"max_batch": 0}, "max_batch: expected a positive int, got 0"),
        ({"slots": 1}, "slots: expected an int of at least 2"),
        ({"prefill_tokens": 10_000}, "prefill_tokens: expected at most 8192, got 10000"),
        ({"batch_sizes": (0,)}, r"batch_sizes: expected positive ints, got \(0,\)"),
        ({"name": "best"}, "configuration 'best' "),
        ({"name": "replay-fp8"}, "configuration 'replay-fp8' needs an NVIDIA GPU"),
        ({"name": "fastest"}, "configuration: 'fastest' is unknown"),
    ],
)
def test_what_cannot_be_built_is_refused(weights, sizes, sentence):
    options = {"max_batch": 2, "slots": 3, "pages": 4, "max_length": 8} | sizes
    with pytest.raises(ValueError, match=sentence):
        ServedModel(weights, options.pop("name", "torch"), **options)


def test_calls_out_of_range_are_refused(weights):
    model = build(weights)
    with pytest.raises(ValueError, match=r"batch: expected 1 to 4 \(max_batch\), got 5"):
        model.decode(5)
    with pytest.raises(ValueError, match="tokens: expected 1 to 40"):
        model.prefill(torch.zeros(41, dtype=torch.int64), [0, 41], [0], [1], [[0]])
    with pytest.raises(ValueError, match="cu_seqlens: expected 0 to 3 in 1 pieces"):
        model.prefill(torch.zeros(3, dtype=torch.int64), [0, 2], [0], [1], [[0]])
    with pytest.raises(ValueError, match="tokens: expected 2 to 8 draft tokens, got 9"):
        model.reserve_drafts(2, 9)
    with pytest.raises(ValueError, match="batch: expected at most 0 rows, as reserved, got 1"):
        model.verify(1, 2)


def test_slots_are_zeroed_in_every_layer_and_handed_out_once(weights):
    model = build(weights)
    slots = [model.slots.acquire() for _ in range(5)]
    assert sorted(slots) == [1, 2, 3, 4, 5] and model.slots.free == 0
    with pytest.raises(RuntimeError, match="none of 5 slots is free"):
        model.slots.acquire()
    for pool in model.pools:
        pool.state[3], pool.conv[3] = 1.0, 1.0
    model.slots.release(3)
    with pytest.raises(ValueError, match="expected one that was handed out, got 3"):
        model.slots.release(3)
    assert model.slots.acquire() == 3
    assert not any(pool.state[3].any() or pool.conv[3].any() for pool in model.pools)
