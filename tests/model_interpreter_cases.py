"""The whole model with its Triton kernels on the CPU, in the interpreter, against float64 over the whole sequence.

Run by test_triton_interpreter.py in a process of its own, under TRITON_INTERPRET=1.
"""

from unittest import mock

import pytest
import torch
from whole_model_reference import logits

from gdn_lab.backends.triton import recurrent, verify
from gdn_lab.backends.triton.backend import INTERPRETED
from gdn_lab.engine import model_sizes, served_model
from gdn_lab.engine.model_weights import ModelWeights
from gdn_lab.engine.served_model import ServedModel
from gdn_lab.layer import layer_reference
from gdn_lab.layer.configurations import Configuration
from gdn_lab.layer.gdn_layer import Kernels
from gdn_lab.layer.kernels import elementwise

assert INTERPRETED, "run under TRITON_INTERPRET=1"

LENGTHS = (5, 2)
NEAR = 0.5  # of the largest logit, in standard deviations: FP8 rounds activations to 4 bits


def build(gdn, others):
    """A dense model in FP8, fused with Triton's kernels around GDN, apart with PyTorch's. others: their module."""
    fused = others is elementwise
    entry = Configuration(
        name="interpreted",
        gdn=gdn,
        layout="VK",
        description="",
        fused=fused,
        prefill="torch/vk",  # the interpreter gets Triton's wrong in bf16
        verify="triton/vk",
    )
    kernels = Kernels(entry.gdn, others, fused=fused, overlap=False, torch_fp8=not fused)
    weights = ModelWeights.random("qwen3.5-27b", precision="fp8", toy=True, layers=2)
    with (
        mock.patch.object(served_model, "kernels_of", lambda *_: kernels),
        mock.patch.object(ServedModel, "refusal", lambda *_: None),
        mock.patch.object(served_model, "is_eager", lambda _: True),
    ):
        sizes = {"max_batch": 2, "slots": 4, "pages": 8, "page_size": 4, "max_length": 12, "prefill_tokens": 16}
        model = ServedModel(weights, entry, **sizes, batch_sizes=(2,))
        model.reserve_drafts(2, 2)
    return weights, model


@pytest.mark.parametrize("gdn, others", [("triton/vk", elementwise), ("triton/replay", layer_reference)])
@mock.patch.object(model_sizes, "ATTENTION_EVERY", 2)
@mock.patch.object(recurrent, "decode_tile", lambda *_: recurrent.Tile(64, 1))  # as of large batches: few programs
@mock.patch.object(verify, "verify_tile", lambda *_: recurrent.Tile(64, 1))
def test_prefill_in_pieces_decode_and_verify(gdn, others):
    weights, model = build(gdn, others)
    assert weights.sizes.is_attention == (False, True)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, model.vocab, (length,), generator=generator) for length in LENGTHS]
    slots, pages = [model.slots.acquire() for _ in LENGTHS], [model.cache.acquire(3) for _ in LENGTHS]
    model.prefill(prompts[0][:3], [0, 3], [0], slots[:1], pages[:1], [])
    rest = torch.cat((prompts[0][3:], prompts[1]))
    first = model.prefill(rest, [0, 2, 4], [3, 0], slots, pages)
    buffers = model.buffers
    buffers.tokens.copy_(first)
    buffers.positions.copy_(torch.tensor(LENGTHS))
    buffers.indices.copy_(torch.tensor(slots))
    buffers.page_table[:, :3] = torch.tensor(pages)
    found = [first, model.decode(2).clone()]
    model.drafts[:, 0], model.drafts[:, 1] = found[1], torch.tensor([7, 9])
    chosen = model.verify(2, 2).clone()
    model.commit(2, torch.tensor([1, 2], dtype=torch.int32))
    assert torch.equal(buffers.tokens, torch.stack((chosen[0, 0], chosen[1, 1])))
    last = model.decode(2).clone()
    for row, prompt in enumerate(prompts):
        drafted = model.drafts[row, 1:2] if row else chosen[0, :1]
        kept = [found[0][row], found[1][row], *drafted, *([chosen[1, 1]] if row else [])]
        sequence = torch.cat((prompt, torch.stack(kept)))
        exact = logits(weights, sequence)[len(prompt) - 1 :]
        tokens = [found[0][row], found[1][row], chosen[row, 0], *([chosen[1, 1]] if row else []), last[row]]
        short = exact.max(1).values - exact.gather(1, torch.stack(tokens)[:, None])[:, 0]
        assert (short <= NEAR * exact.std(1)).all(), short / exact.std(1)
