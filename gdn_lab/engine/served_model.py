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

from ..backends.base import needs_capability
from ..backends.registry import refusal, variant
from ..layer.configurations import Configuration
from ..layer.configurations import configuration as record_of
from ..layer.step import is_eager, kernels_of, pool_dtype
from ..layer.workspace import Workspace
from .attention_reference import rotary_table
from .communicator import Alone, Communicator
from .decoder import ROWS, ModelParts
from .kv_cache import PagedCache
from .model_sizes import THETA
from .model_steps import DecodeStep, VerifyStep
from .model_weights import ModelWeights
from .part_times import part_times
from .prompt_step import PromptStep, rounded
from .sampling import Sampling, SamplingRows
from .slots import Slots
from .step_graphs import StepGraphs

MOST_DRAFT_TOKENS = 8
MOST_PROMPT_TOKENS = 8192  # of one prefill call: the experts' rows are counted in 32 bits


class Buffers(NamedTuple):
    """Static inputs and outputs of a decode step, on the device; row i is the i-th request of the batch.

    tokens [max_batch] int64: the token to feed. positions [max_batch] int32: its position, counted from 0. indices
    [max_batch] int32: its slot, -1 for padding. page_table [max_batch, max_pages] int32. next_tokens [max_batch] int64:
    what the last step chose. sampling: a row for each, or None: every token is the most likely one. A step writes
    tokens, positions and next_tokens; the host writes the rest, and never between a step and its end.
    """

    tokens: Tensor
    positions: Tensor
    indices: Tensor
    page_table: Tensor
    next_tokens: Tensor
    sampling: SamplingRows | None = None


class ServedModel:
    """The model for up to `max_batch` requests at a time.

    configuration: a record of layer/configurations.py, or its name. slots: of the state pools, the null slot included.
    pages, page_size, max_length (tokens of the longest request): of the KV cache. state_dtype: of the pools, unless the
    configuration has one of its own.
    communicator: sums over ranks; None where there is one. prefill_tokens: most tokens of one prefill call.
    batch_sizes: padded sizes that have a CUDA graph; by default 1, 2, 4, 8, 16, 32, 48, 64, then every 32 to 256, 64.
    sampling: whether requests may draw their tokens (sampling.py); tokens of those that do not are the same either way.
    With several ranks each then gathers all logits.
    ValueError with a sentence for a configuration that cannot run here.

    Attributes: slots (Slots), cache (PagedCache), buffers (Buffers), batch_sizes, pools (a StatePool for each GDN
    layer), max_pages (of a request); max_batch, max_length and prefill_tokens as given; vocab; drafts.
    """

    def __init__(
        self,
        weights: ModelWeights,
        configuration: str | Configuration,
        *,
        max_batch: int,
        slots: int,
        pages: int,
        page_size: int = 64,
        max_length: int = 4096,
        state_dtype: torch.dtype = torch.bfloat16,
        communicator: Communicator | None = None,
        prefill_tokens: int = 2048,
        batch_sizes: tuple[int, ...] | None = None,
        sampling: bool = False,
    ):
        sizes, device = weights.sizes, weights.device
        entry = record_of(configuration)
        self.configuration, self.weights = entry, weights
        communicator = communicator or Alone(device)
        for name, value in (("max_batch", max_batch), ("max_length", max_length), ("prefill_tokens", prefill_tokens)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: expected a positive int, got {value!r}")
        if prefill_tokens > MOST_PROMPT_TOKENS:
            raise ValueError(f"prefill_tokens: expected at most {MOST_PROMPT_TOKENS}, got {prefill_tokens}")
        if communicator.size != sizes.tp:
            raise ValueError(f"communicator: expected {sizes.tp} ranks, as the weights have, got {communicator.size}")
        if reason := self.refusal(entry, weights, state_dtype):
            raise ValueError(f"configuration {entry.name!r} {reason}")
        self.max_batch, self.max_length, self.prefill_tokens = max_batch, max_length, prefill_tokens
        self.vocab = sizes.vocab
        kernels = kernels_of(entry, device)
        self.slots = Slots(
            sizes.step.shape,
            sizes.gdn_layers,
            slots,
            layout=entry.layout,
            dtype=pool_dtype(entry, state_dtype),
            device=device,
            ring=variant(entry.gdn).ring,
        )
        attention, layers = sizes.attention, max(1, sizes.attention_layers)
        self.cache = PagedCache(layers, pages, page_size, attention.kv_heads, attention.head_dim, device=device)
        self.max_pages = self.cache.pages_for(max_length)
        shares = None
        if communicator.size > 1:
            rows = -(-max(max_batch, prefill_tokens) // ROWS) * ROWS
            shares = tuple(communicator.buffer(rows, sizes.step.hidden) for _ in range(2))
        table = rotary_table(max_length, attention.rotary, THETA, device)
        self.parts = ModelParts(weights, kernels, self.slots.pools, self.cache, table, communicator, shares)
        self.buffers = Buffers(
            tokens=torch.zeros(max_batch, dtype=torch.int64, device=device),
            positions=torch.zeros(max_batch, dtype=torch.int32, device=device),
            indices=torch.full((max_batch,), -1, dtype=torch.int32, device=device),
            page_table=torch.zeros(max_batch, self.max_pages, dtype=torch.int32, device=device),
            next_tokens=torch.zeros(max_batch, dtype=torch.int64, device=device),
            sampling=SamplingRows.empty(max_batch, device) if sampling else None,
        )
        self.drafts: Tensor | None = None
        self._verify: dict[int, tuple] = {}
        self._prompts: dict[int, PromptStep] = {}
        self._warm: set[int] = set()  # sizes of prompt steps that have run
        self._workspace, self.graphs = Workspace(device), StepGraphs(device, eager=is_eager(entry))
        self.batch_sizes = _padded_sizes(max_batch, batch_sizes)
        self._decode = {}
        # The largest of each first, so that the others are views of its memory
        self._prompt_step(prefill_tokens)
        for size in sorted(self.batch_sizes, reverse=True):
            step = DecodeStep(self.parts, self.buffers, size, self._workspace)
            self._decode[size] = step, self.graphs.captured(step)

    @staticmethod
    def refusal(configuration: str | Configuration, weights: ModelWeights, state_dtype=torch.bfloat16) -> str | None:
        """Why a configuration cannot serve these weights on their device: one sentence, or None."""
        entry, device, shape = record_of(configuration), weights.device, weights.sizes.step.shape
        for phase, backend in (("decode", entry.gdn), ("prefill", entry.prefill)):
            dtype = pool_dtype(entry, state_dtype)
            options = {"layout": entry.layout, "dtype": dtype, "device": device, "phase": phase}
            if reason := refusal(backend, shape, **options):
                return f"cannot {phase} with {backend}: it {reason}" if phase != "decode" else reason
        return None if is_eager(entry) else needs_capability(device, 9)

    @property
    def pools(self):
        """The state pool of each GDN layer."""
        return self.slots.pools

    def decode(self, batch: int) -> Tensor:
        """Take one token for each of the first `batch` rows of the buffers; return next_tokens[:batch].

        Rows from `batch` to the padded size must have index -1. Replays a CUDA graph (eager on a CPU), which also
        writes tokens and positions for the next step. Never synchronises.
        """
        step, run = self._decode[self._padded(batch)]
        run()
        return self.buffers.next_tokens[:batch]

    def prefill(
        self,
        tokens: Tensor,
        cu_seqlens: list[int],
        starts: list[int],
        indices: list[int],
        page_table: list[list[int]],
        finished_rows: list[int] | None = None,
        sampling: list[Sampling] | None = None,
        decoding: int = 0,
    ) -> Tensor:
        """Take packed pieces of prompts; return the next tokens [len(finished_rows)] int64, on the device.

        tokens [N] int64 on any device, N up to prefill_tokens; cu_seqlens [n + 1]: where each piece begins and ends;
        starts [n]: the position of its first token, above 0 for a later piece of a prompt; indices [n]: slots;
        page_table: each request's pages, enough for all its tokens so far; finished_rows: the pieces that end their
        prompt, by default all; sampling: of each piece, by default greedy. Host values are plain lists, so nothing is
        read from the device. decoding: as many rows of the buffers take a token in the same step, as in decode(),
        with index -1 from there to the padded size; they count as tokens, and their next tokens come last.
        """
        count, n = len(tokens), len(indices)
        if not 1 <= count <= self.prefill_tokens - decoding:
            most = self.prefill_tokens - decoding
            raise ValueError(f"tokens: expected 1 to {most} (prefill_tokens, less rows that decode), got {count}")
        if cu_seqlens[0] != 0 or cu_seqlens[-1] != count or len(cu_seqlens) != n + 1:
            raise ValueError(f"cu_seqlens: expected 0 to {count} in {n} pieces, got {cu_seqlens}")
        finished = list(range(n)) if finished_rows is None else finished_rows
        padded = self._padded(decoding) if decoding else 0
        step = self._prompt_step(rounded(count + padded, self.prefill_tokens))
        sampling = None if self.buffers.sampling is None else sampling
        return step(tokens, cu_seqlens, starts, indices, page_table, finished, sampling, decoding, padded)

    def warm_prompts(self) -> None:
        """Run a prefill call of each size once, of padding alone, so that no later one compiles or builds its step.

        Changes nothing that a request reads. A second call does nothing.
        """
        for size in sorted({rounded(count, self.prefill_tokens) for count in range(1, self.prefill_tokens + 1)}):
            if size not in self._warm:
                self._warm.add(size)
                self.prefill(torch.zeros(size, dtype=torch.int64), [0, size], [0], [-1], [[0]])

    def reserve_drafts(self, batch: int, tokens: int) -> None:
        """Allocate what verify(batch, tokens) needs until commit(), and make its graphs; 0 frees it."""
        self._verify, self.drafts = {}, None
        if batch and not 2 <= tokens <= MOST_DRAFT_TOKENS:
            raise ValueError(f"tokens: expected 2 to {MOST_DRAFT_TOKENS} draft tokens, got {tokens!r}")
        rows = self._padded(batch) if batch else 0
        for pool in self.pools:
            pool.reserve_drafts(rows, tokens)
        if not rows:
            return
        entry, shape = self.configuration, self.weights.sizes.step.shape
        options = {"layout": entry.layout, "dtype": self.pools[0].dtype, "device": self.weights.device}
        if reason := refusal(entry.verify, shape, phase="verify", mode="intermediate", **options):
            raise ValueError(f"configuration {entry.name!r} cannot verify with {entry.verify}: it {reason}")
        device = self.weights.device
        self.drafts = torch.zeros(rows, tokens, dtype=torch.int64, device=device)
        workspace, graphs = Workspace(device), StepGraphs(device, eager=is_eager(entry))
        held = self.buffers.indices.clone()
        self.buffers.indices.fill_(-1)  # the runs before a capture change nothing
        for size in sorted((size for size in self.batch_sizes if size <= rows), reverse=True):
            step = VerifyStep(self.parts, self.buffers, self.drafts, size, entry.verify, workspace)
            self._verify[size] = step, graphs.captured(step), graphs.captured(step.commit)
        self.buffers.indices.copy_(held)

    def verify(self, batch: int, tokens: int) -> Tensor:
        """Take `tokens` (2 to 8) tokens for each row: drafts[:batch, :tokens]; return the next token after each.

        drafts [rows, tokens] int64, an attribute made by reserve_drafts(): the token that decode() would take, then
        the proposals. Returns [batch, tokens] int64. States and positions stay as they are until commit().
        """
        step, run, _ = self._verify_step(batch)
        if tokens != step.tokens:
            raise ValueError(f"tokens: expected {step.tokens}, as reserve_drafts() made room for, got {tokens}")
        run()
        return step.chosen[:batch]

    def commit(self, batch: int, accepted: Tensor) -> None:
        """Keep the first `accepted` [batch] int32 (1 to tokens) tokens of each row of the last verify().

        Afterwards the buffers are as if decode() had taken these tokens one by one.
        """
        step, _, commit = self._verify_step(batch)
        step.accepted[:batch].copy_(accepted)
        commit()

    def _verify_step(self, batch: int) -> tuple:
        size = self._padded(batch)
        if size not in self._verify:
            raise ValueError(f"batch: expected at most {max(self._verify, default=0)} rows, as reserved, got {batch}")
        return self._verify[size]

    def _padded(self, batch: int) -> int:
        """The smallest size with a graph that holds `batch` rows."""
        if type(batch) is not int or not 1 <= batch <= self.max_batch:
            raise ValueError(f"batch: expected 1 to {self.max_batch} (max_batch), got {batch!r}")
        return next(size for size in self.batch_sizes if size >= batch)

    def _prompt_step(self, size: int) -> PromptStep:
        if size not in self._prompts:
            self._prompts[size] = PromptStep(
                self.parts,
                self.buffers,
                size,
                self.max_pages,
                self.configuration.prefill,
                self._workspace,
                self.graphs,
            )
        return self._prompts[size]

    def time_parts(self, batch: int, length: int) -> list[dict]:
        """Rows {part, us, count} of one decode step at this batch, every request `length` tokens long.

        Parts: "embedding", "GDN layer", "attention layer", "head and sampler", "all-reduces"; us is of one, of which a
        step has count. "GDN kernel" is a part of the GDN layers. Timed by replays of CUDA graphs of each, while no
        request is in flight.
        """
        return part_times(self, self._decode[self._padded(batch)][0], length)

    def memory(self) -> dict[str, int]:
        """Bytes on this rank: weights by part, of a slot, a token in the KV cache, a draft token, and activations."""
        found = {f"weights: {part}": nbytes for part, nbytes in self.weights.nbytes.items()}
        drafts = self.pools[0].draft_nbytes(self.weights.sizes.step.shape, 1, self.pools[0].dtype)
        return found | {
            "state of a slot": self.slots.slot_nbytes,
            "KV of a token": self.cache.token_nbytes if self.weights.sizes.attention_layers else 0,
            "a draft token of a request": len(self.pools) * sum(drafts.values()),
            "activations": self._workspace.nbytes,
        }


def _padded_sizes(max_batch: int, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """The batch sizes that have graphs, ascending, max_batch the last."""
    if given is None:
        given = (1, 2, 4, 8, 16, 32, 48, 64, *range(96, 257, 32), *range(320, max_batch, 64))
    if any(type(size) is not int or size < 1 for size in given):
        raise ValueError(f"batch_sizes: expected positive ints, got {given!r}")
    return (*sorted({size for size in given if size < max_batch}), max_batch)
