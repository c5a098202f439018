"""What the processes of tests/engine/test_model_on_ranks.py do: run a share of a toy model."""

import torch

from gdn_lab.engine.model_weights import ModelWeights
from gdn_lab.engine.served_model import ServedModel

__all__ = ["PROMPTS", "answers_on_rank"]

PROMPTS = [[5, 300, 17, 4], [77], [410, 8, 8, 2, 93, 54]]


def answers_on_rank(communicator, name, precision, steps):
    """(tokens of each prompt's answer, names of a step's parts) of this rank."""
    weights = ModelWeights.random(
        name, rank=communicator.rank, tp=communicator.size, precision=precision, toy=True, seed=1
    )
    sizes = {"max_batch": 4, "slots": 5, "pages": 8, "page_size": 8, "max_length": 16, "prefill_tokens": 16}
    model = ServedModel(weights, "torch", **sizes, communicator=communicator, batch_sizes=(4,))
    slots, pages = [model.slots.acquire() for _ in PROMPTS], [model.cache.acquire(2) for _ in PROMPTS]
    lengths = [len(prompt) for prompt in PROMPTS]
    bounds = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    first = model.prefill(torch.tensor(sum(PROMPTS, [])), bounds, [0] * 3, slots, pages)
    buffers = model.buffers
    buffers.tokens[:3] = first
    buffers.positions[:3], buffers.indices[:3] = torch.tensor(lengths), torch.tensor(slots)
    buffers.page_table[:3] = torch.tensor(pages)
    found = torch.stack([first] + [model.decode(3).clone() for _ in range(steps)], 1)
    return found.tolist(), [row["part"] for row in model.time_parts(3, 9)]
