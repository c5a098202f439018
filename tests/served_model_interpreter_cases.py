"""The whole model on an FP8 state, in Triton's interpreter: pieces of prompts, mixed steps, decode, verify.

Run by test_triton_interpreter.py in a process of its own, under TRITON_INTERPRET=1.
"""

from dataclasses import replace

import torch
from whole_model_reference import logits

from gdn_lab import ops
from gdn_lab.backends.triton.backend import INTERPRETED
from gdn_lab.engine import served_model
from gdn_lab.engine.model_weights import ModelWeights
from gdn_lab.layer import CONFIGURATIONS, layer_reference, sequences
from gdn_lab.layer.gdn_layer import Kernels
from gdn_lab.rounding import FP8

assert INTERPRETED, "run under TRITON_INTERPRET=1"

NEAR = 0.15  # of the largest logit, in standard deviations: bf16 activations are allowed 0.05, the rest is the state's
LENGTHS, DRAFTS = (11, 5), 2


def served(monkeypatch):
    """The toy model in the configuration replay-fp8, its other parts in eager PyTorch."""
    monkeypatch.setattr(
        served_model,
        "kernels_of",
        lambda entry, _: Kernels(entry.gdn, layer_reference, fused=False, overlap=False, torch_fp8=True),
    )
    monkeypatch.setattr(served_model, "is_eager", lambda _: True)  # needs no GPU
    monkeypatch.setattr(served_model.ServedModel, "refusal", lambda *_: None)  # of bf16 prompts in the interpreter
    whole = ops.prefill

    def wide(*inputs, out, **options):  # the interpreter gets Triton's prefill wrong in bf16
        return out.copy_(whole(*(x.float() for x in inputs), **options))

    monkeypatch.setattr(sequences.ops, "prefill", wide)
    weights = ModelWeights.random("qwen3.5-27b", precision="bf16", toy=True, layers=2)
    sizes = {"max_batch": 2, "slots": 3, "pages": 10, "page_size": 8, "max_length": 40, "prefill_tokens": 16}
    entry = replace(
        CONFIGURATIONS["replay-fp8"], prefill="triton", verify="triton"
    )  # "auto" leaves out the interpreter
    return served_model.ServedModel(weights, entry, **sizes, batch_sizes=(2,))


def test_a_server_with_an_fp8_state(monkeypatch):
    """One prompt at once, the other in two pieces, the second in a mixed step; a fold; drafts; each against float64."""
    model = served(monkeypatch)
    assert {pool.dtype for pool in model.pools} == {FP8} and len({id(pool.ring.operands) for pool in model.pools}) == 1
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, model.vocab, (length,), generator=generator) for length in LENGTHS]
    slots, pages = [model.slots.acquire() for _ in prompts], [model.cache.acquire(5) for _ in prompts]
    for pool in model.pools:
        pool.ring.span[slots] = pool.ring.updates - 3  # folds in the third step
    bounds = [0, LENGTHS[0], LENGTHS[0] + 3]
    (first,) = model.prefill(torch.cat((prompts[0], prompts[1][:3])), bounds, [0, 0], slots, pages, [0]).tolist()
    buffers = model.buffers
    buffers.tokens[0], buffers.positions[0], buffers.indices[0] = first, LENGTHS[0], slots[0]
    buffers.page_table[:2] = torch.tensor(pages)
    other, second = model.prefill(prompts[1][3:], [0, 2], [3], slots[1:], pages[1:], decoding=1).tolist()
    buffers.tokens[1], buffers.positions[1], buffers.indices[1] = other, LENGTHS[1], slots[1]
    found = [[first, second], [other]]
    for _ in range(3):
        for tokens, token in zip(found, model.decode(2).tolist(), strict=True):
            tokens.append(token)
    assert all(pool.launch_state.rounding.steps[slots].tolist() == [1, 1] for pool in model.pools), "both have folded"
    model.reserve_drafts(2, DRAFTS)
    model.drafts[:, 0], model.drafts[:, 1] = buffers.tokens, 5
    chosen = model.verify(2, DRAFTS).tolist()
    model.commit(2, torch.tensor([1, 2], dtype=torch.int32))
    last = model.decode(2).tolist()
    for row, (prompt, tokens) in enumerate(zip(prompts, found, strict=True)):
        tokens = torch.tensor([*tokens, *chosen[row][: row + 1], last[row]])
        fed = tokens[:-1].clone()
        if row:
            fed[-2] = 5  # the draft that was kept
        exact = logits(model.weights, torch.cat((prompt, fed)))[len(prompt) - 1 :]
        short = (exact.max(1).values - exact.gather(1, tokens[:, None])[:, 0]) / exact.std(1)
        assert (short <= NEAR).all(), short
