"""The whole model on a GPU: kernels of full attention, and each configuration in CUDA graphs, against float64."""

import dataclasses

import pytest
import torch
from attention_against_reference import check_attention, scene
from whole_model_reference import logits

from gdn_lab.backends.registry import variant
from gdn_lab.engine.model_weights import ModelWeights
from gdn_lab.engine.served_model import ServedModel
from gdn_lab.layer import configuration, made_for

pytestmark = pytest.mark.gpu

DENSE = "qwen3.5-27b"
LENGTHS, STEPS = [11, 3, 20], 6
MORE_STEPS = 40  # where updates are deferred: each slot's ring of 16 is folded into its state at least twice
NEAR = 0.1  # of the largest logit, in standard deviations
FP8_NEAR = (
    0.2  # rounding the state to nearest every 16 steps alone shifts logits by 0.02 of these, stochastically twice
)


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("heads", [(32, 2, 256), (24, 4, 256), (16, 1, 256), (4, 1, 128)])
@pytest.mark.parametrize(
    "lengths, max_length",
    [
        ([(70, 1), None, (1, 1), (1000, 1)], 1024),
        ([(40, 4), (9, 4), (700, 4)], 1024),
        ([(300, 300), None, (75, 9), (1, 1)], 512),
        ([(5000, 1)], 8192),
    ],
)
def test_attention(lengths, max_length, heads, quantize):
    from gdn_lab.engine import attention_kernels

    made = scene(lengths, heads, max_length=max_length, padding=2, device="cuda")
    check_attention(made, attention_kernels, quantize=quantize)


def on_cpu(value):
    """The same weights on the CPU."""
    if torch.is_tensor(value):
        return value.cpu()
    if isinstance(value, tuple):
        moved = (on_cpu(part) for part in value)
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name not in ("sizes", "device")]
        return dataclasses.replace(value, **{name: on_cpu(getattr(value, name)) for name in names})
    return value


@pytest.mark.parametrize("name", [*made_for("cuda"), "replay", "replay-fp8", "torch"])
def test_each_configuration_in_cuda_graphs(name):
    weights = ModelWeights.random(DENSE, precision="bf16", toy=True, device="cuda")
    steps = MORE_STEPS if variant(configuration(name).gdn).ring else STEPS
    sizes = {"max_batch": 4, "slots": 6, "pages": 40, "page_size": 16, "max_length": 80, "prefill_tokens": 64}
    if reason := ServedModel.refusal(name, weights):
        pytest.xfail(reason)
    model = ServedModel(weights, name, **sizes, batch_sizes=(1, 2))
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, model.vocab, (length,), generator=generator) for length in LENGTHS]
    slots, pages = [model.slots.acquire() for _ in LENGTHS], [model.cache.acquire(5) for _ in LENGTHS]
    bounds = [sum(LENGTHS[:n]) for n in range(len(LENGTHS) + 1)]
    first = model.prefill(torch.cat(prompts), bounds, [0] * 3, slots, pages)
    buffers = model.buffers
    buffers.tokens[:3] = first
    for target, values in ((buffers.positions, LENGTHS), (buffers.indices, slots), (buffers.page_table, pages)):
        target[:3] = torch.tensor(values, dtype=torch.int32, device="cuda")
    found = torch.stack([first] + [model.decode(3).clone() for _ in range(steps)], 1).cpu()
    model.reserve_drafts(3, 3)
    model.drafts[:3] = torch.tensor([5, 5, 5], device="cuda")
    model.drafts[:3, 0] = buffers.tokens[:3]
    chosen = model.verify(3, 3).clone()
    model.commit(3, torch.tensor([1, 2, 3], dtype=torch.int32, device="cuda"))
    last, exact = model.decode(3).cpu(), on_cpu(weights)
    near = NEAR if model.pools[0].scales is None else FP8_NEAR
    for row, (prompt, tokens) in enumerate(zip(prompts, found, strict=True)):
        kept = chosen[row, row : row + 1].cpu()
        fed = torch.cat((prompt, tokens, torch.tensor([5] * row, dtype=torch.int64), kept))
        after = logits(exact, fed)[len(prompt) - 1 :]
        tokens = torch.cat((tokens, chosen[row, : row + 1].cpu(), last[row : row + 1]))
        short = after.max(1).values - after.gather(1, tokens[:, None])[:, 0]
        assert (short <= near * after.std(1)).all(), short / after.std(1)
