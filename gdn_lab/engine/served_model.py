"""A whole model that prefills, decodes and verifies for the requests in its slots.

weights = ModelWeights.random("qwen3.5-35b-a3b", device="cuda")
model = ServedModel(weights, "best", max_batch=256, slots=257, pages=4096, page_size=64, max_length=4096)
slot = model.slots.acquire()                      # of the state pools, zeroed in every layer
pages = model.cache.acquire(model.cache.pages_for(len(prompt)))
first = model.prefill(tokens, cu_seqlens, starts, indices, page_table)
model.buffers.tokens[:1] = first                  # and positions, indices, page_table
model.decode(1)                                   # next tokens, left in the buffers for the next step
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Buffers(NamedTuple):
    """Static inputs and outputs of a decode step, on the device; row i is the i-th request of the batch.

    tokens [max_batch] int64: the token to feed. positions [max_batch] int32: its position, counted from 0. indices
    [max_batch] int32: its slot, -1 for padding. page_table [max_batch, max_pages] int32. next_tokens [max_batch] int64:
    what the last step chose. A step writes tokens, positions and next_tokens; the host writes the rest, and never
    between a step and its end.
    """

    tokens: Tensor
    positions: Tensor
    indices: Tensor
    page_table: Tensor
    next_tokens: Tensor


class Slots:
    """Slots of the state pools: slot i is the same request in every layer."""

    free: int

    def acquire(self) -> int:
        """Hand out a slot, zeroed in every layer. RuntimeError, one sentence, if none is free."""
        raise NotImplementedError

    def release(self, slot: int) -> None:
        """Take a slot back. ValueError if it was not handed out."""
        raise NotImplementedError


class ServedModel:
    """The model for up to `max_batch` requests at a time.

    configuration: a name of layer/configurations.py. slots: of the state pools, the null slot included. pages,
    page_size, max_length (tokens of the longest request): of the KV cache. state_dtype: of the pools. communicator:
    sums over ranks; None where there is one. prefill_tokens: most tokens of one prefill call. batch_sizes: padded sizes
    for which there is a CUDA graph; by default 1, 2, 4, 8, 16, then every 16 to 64, every 32 to 256, every 64.
    ValueError with a sentence for a configuration that cannot run here.

    Attributes: slots (Slots), cache (PagedCache), buffers (Buffers), batch_sizes, pools (a StatePool for each GDN
    layer), max_pages (of a request); max_batch, max_length and prefill_tokens as given; vocab; drafts.
    """

    def __init__(
        self,
        weights,
        configuration: str,
        *,
        max_batch: int,
        slots: int,
        pages: int,
        page_size: int = 64,
        max_length: int = 4096,
        state_dtype: torch.dtype = torch.bfloat16,
        communicator=None,
        prefill_tokens: int = 2048,
        batch_sizes: tuple[int, ...] | None = None,
    ):
        raise NotImplementedError

    def decode(self, batch: int) -> Tensor:
        """Take one token for each of the first `batch` rows of the buffers; return next_tokens[:batch].

        Rows from `batch` to the padded size must have index -1. Replays a CUDA graph (eager on a CPU), which also
        writes tokens and positions for the next step. Never synchronises.
        """
        raise NotImplementedError

    def prefill(
        self,
        tokens: Tensor,
        cu_seqlens: list[int],
        starts: list[int],
        indices: list[int],
        page_table: list[list[int]],
        finished_rows: list[int] | None = None,
    ) -> Tensor:
        """Take packed pieces of prompts; return the next tokens [len(finished_rows)] int64, on the device.

        tokens [N] int64 on any device, N up to prefill_tokens; cu_seqlens [n + 1]: where each piece begins and ends;
        starts [n]: the position of its first token, above 0 for a later piece of a prompt; indices [n]: slots;
        page_table: each request's pages, enough for all its tokens so far; finished_rows: the pieces that end their
        prompt, by default all. Host values are plain lists, so nothing is read from the device.
        """
        raise NotImplementedError

    def reserve_drafts(self, batch: int, tokens: int) -> None:
        """Allocate what verify(batch, tokens) needs until commit(), and make its graphs; 0 frees it."""
        raise NotImplementedError

    def verify(self, batch: int, tokens: int) -> Tensor:
        """Take `tokens` (2 to 8) tokens for each row: drafts[:batch, :tokens]; return the next token after each.

        drafts [rows, tokens] int64, an attribute made by reserve_drafts(): the token that decode() would take, then
        the proposals. Returns [batch, tokens] int64. States and positions stay as they are until commit().
        """
        raise NotImplementedError

    def commit(self, batch: int, accepted: Tensor) -> None:
        """Keep the first `accepted` [batch] int32 (1 to tokens) tokens of each row of the last verify().

        Afterwards the buffers are as if decode() had taken these tokens one by one.
        """
        raise NotImplementedError

    def time_parts(self, batch: int, length: int) -> list[dict]:
        """Rows {part, us, count} of one decode step at this batch, every request `length` tokens long.

        Parts: GDN layer, attention layer, embedding, head and sampler, all-reduce; us is of one, of which a step has
        count. Timed by replays of CUDA graphs of each.
        """
        raise NotImplementedError

    def memory(self) -> dict[str, int]:
        """Bytes on this rank: weights by part, "state of a slot", "KV of a token", "drafts of a request"."""
        raise NotImplementedError
