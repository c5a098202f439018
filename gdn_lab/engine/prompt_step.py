"""Prefill: packed pieces of prompts, for a number of tokens rounded up.

A mixed step also takes the next token of requests that decode: their rows come after those of the prompts. Projections
and experts take all rows in one product, GDN prefills the one and decodes the other, attention takes both.

A step of up to MOST_PIECES pieces replays a CUDA graph, captured when its size is first used: launched one by one, its
kernels take the host longer than the GPU. The graph has room for pieces of any length; a padding sequence takes the
rows that are left, and rows that decode are padded as in decode().
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..layer.sequences import Mixed
from ..layer.workspace import Workspace
from .decoder import ROWS, Decoder, ModelParts, TokenHead
from .sampling import Sampling, SamplingRows, sampling_rows
from .step_graphs import StepGraphs
from .token_rows import TokenRows

MOST_PIECES = 32  # of a step in a CUDA graph
ALIGNED = 4  # int32 elements: pieces of an upload begin at multiples of 16 bytes, so that kernels compile once


def rounded(tokens: int, most: int) -> int:
    """Rows of the step that takes `tokens` tokens: a multiple of 16, of 64 or of 256, at most `most`."""
    unit = 16 if tokens <= 64 else 64 if tokens <= 512 else 256
    return min(-(-tokens // unit) * unit, most)


class PromptStep:
    """The layers for up to `size` tokens. graphs: captures them."""

    def __init__(
        self,
        parts: ModelParts,
        buffers,
        size: int,
        max_pages: int,
        backend: str,
        workspace: Workspace,
        graphs: StepGraphs,
    ):
        self.parts, self.buffers, self.size, self.max_pages, self.workspace = parts, buffers, size, max_pages, workspace
        self.graphs = graphs
        device = parts.weights.device
        self.tokens = torch.zeros(size, dtype=torch.int64, device=device)
        none = torch.zeros(1, dtype=torch.int32, device=device)
        rows = TokenRows(none.expand(size), none.expand(size), none, none, none[None], 1)
        self.packed = Mixed(0, backend, rows.sequence, rows.starts)
        self.decoder = Decoder(parts, rows, self.tokens, workspace, self.packed)
        self.heads: dict[int, TokenHead] = {}
        self.static: Tensor | None = None  # what graphs read their rows from
        self.replays: dict[int, Callable] = {}  # by the rows that decode

    def __call__(
        self, tokens: Tensor, bounds, starts, indices, page_table, finished, sampling=None, decoding=0, padded=0
    ) -> Tensor:
        """The next tokens of the pieces in `finished`, then of the rows that decode; as ServedModel.prefill().

        padded: as many rows of the buffers decode in a graph; those from `decoding` on have index -1.
        """
        count = len(tokens)
        self.tokens[:count].copy_(self._staged(tokens), non_blocking=True)
        pieces = (count, bounds, starts, indices, page_table, finished)
        if self.graphs.eager or len(indices) > MOST_PIECES or count + padded > self.size:
            rows, last, begin = self._launched(pieces, decoding)
        else:
            rows, last, begin = self._replayed(pieces, padded)
        if decoding:
            last = torch.cat((last, torch.arange(begin, begin + decoding, dtype=torch.int32, device=last.device)))
        chosen = self._chosen(rows, last, None if sampling is None else [sampling[number] for number in finished])
        if decoding:
            self._move_on(chosen[len(finished) :])
        return chosen

    def _launched(self, pieces: tuple, decoding: int) -> tuple[TokenRows, Tensor, int]:
        """Launch the layers kernel by kernel.

        Returns the rows, the last one of each piece that ends its prompt, and the first one that decodes.
        """
        count, bounds = pieces[:2]
        host, spans = self._packed(*pieces)
        longest = max(end - begin for begin, end in zip(bounds, bounds[1:], strict=False))
        rows, last = self._rows(host.to(self.tokens.device, non_blocking=True), spans, longest)
        self._run(rows, count, decoding)
        return rows, last, count

    def _replayed(self, pieces: tuple, decoding: int) -> tuple[TokenRows, Tensor, int]:
        """As _launched(), by a graph."""
        begin = self.size - decoding
        host, spans = self._packed(*pieces, room=MOST_PIECES + 1, end=begin)
        if self.static is None:
            self.static = torch.zeros(len(host), dtype=torch.int32, device=self.tokens.device)
        self.static.copy_(host, non_blocking=True)
        rows, last = self._rows(self.static, spans, self.size)
        if decoding not in self.replays:
            slots, held = self.buffers.indices[:decoding], self.buffers.indices[:decoding].clone()
            for unused in (rows.indices, rows.sequence, slots):
                unused.fill_(-1)  # the run before the capture changes nothing
            self.replays[decoding] = self.graphs.captured(lambda: self._run(rows, begin, decoding))
            slots.copy_(held)
            self.static.copy_(host, non_blocking=True)
        self.replays[decoding]()
        return rows, last[: len(pieces[-1])], begin

    def _run(self, rows: TokenRows, begin: int, decoding: int) -> None:
        """Run the layers: `begin` rows of prompts, then the first `decoding` rows of the buffers."""
        packed = self.packed
        packed.tokens, packed.indices, packed.bounds, packed.decoding = begin, rows.indices, rows.starts, None
        if decoding:
            packed.decoding = self.buffers.indices[:decoding]
            rows = self._with_decoding(rows, begin, decoding)
        self.decoder.set_rows(rows)
        packed.sequence, packed.starts = rows.sequence, rows.starts
        self.decoder()

    def _chosen(self, rows: TokenRows, last: Tensor, drawing: list[Sampling] | None) -> Tensor:
        """The next token after each row of `last`. drawing: of the first of them; the others' is in the buffers."""
        count = len(last)
        if not count:
            return self.tokens.new_empty(0)
        size = -(-count // ROWS) * ROWS
        if size not in self.heads:
            self.heads[size] = TokenHead(self.parts, size, self.workspace)
        hidden = self.workspace.take("last tokens", size, self.decoder.hidden.y.shape[1])
        torch.index_select(self.decoder.hidden.y, 0, last, out=hidden[:count])
        if drawing is None:
            return self.heads[size](hidden, count)
        sampling, decoding = self._sampling_rows(drawing), self.buffers.sampling.first(count - len(drawing))
        sampling = SamplingRows(*(torch.cat(pair) for pair in zip(sampling, decoding, strict=True)))
        return self.heads[size](hidden, count, sampling, rows.positions[last])

    def _with_decoding(self, rows: TokenRows, begin: int, decoding: int) -> TokenRows:
        """The rows with those of the first `decoding` rows of the buffers from `begin` on, all on the device."""
        buffers, n, own = self.buffers, len(rows.indices), slice(begin, begin + decoding)
        place = torch.arange(decoding, dtype=torch.int32, device=self.tokens.device)
        self.tokens[own] = buffers.tokens[:decoding]
        rows.positions[own], rows.sequence[own] = buffers.positions[:decoding], place + n
        return rows._replace(
            starts=torch.cat((rows.starts, place + begin + 1)),
            indices=torch.cat((rows.indices, buffers.indices[:decoding])),
            page_table=torch.cat((rows.page_table, buffers.page_table[:decoding])),
        )

    def _move_on(self, tokens: Tensor) -> None:
        """Leave the buffers as decode() does."""
        count = len(tokens)
        self.buffers.tokens[:count] = self.buffers.next_tokens[:count] = tokens
        self.buffers.positions[:count] += 1

    def _sampling_rows(self, each: list[Sampling]) -> SamplingRows:
        """The rows of `each`, on the device."""
        numbers, whole = (self._staged(part).to(self.tokens.device, non_blocking=True) for part in sampling_rows(each))
        return SamplingRows(numbers, whole)

    def _packed(self, count, bounds, starts, indices, page_table, finished, room: int = 0, end: int = 0) -> tuple:
        """(All of the rows on the host in one tensor, the span of each field).

        room: as many sequences, of which the first after the pieces takes the rows up to `end`; 0: only the pieces.
        """
        lengths, padding = [end - begin for begin, end in zip(bounds, bounds[1:], strict=False)], self.size - count
        more = room - len(indices) if room else 0
        positions, sequence = [], []
        for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            positions += range(start, start + length)
            sequence += [number] * length
        pages = [[*own, *[0] * (self.max_pages - len(own))] for own in page_table]
        last = [bounds[number + 1] - 1 for number in finished]
        fields = (
            positions + [0] * padding,
            sequence + [-1] * padding,
            [*bounds, *[end] * more],
            [*indices, *[-1] * more],
            [*(page for own in pages for page in own), *[0] * (more * self.max_pages)],
            [*last, *[0] * (room - len(last) if room else 0)],
        )
        packed, spans = [], []
        for field in fields:
            spans.append((len(packed), len(packed) + len(field)))
            packed += [*field, *[0] * (-len(field) % ALIGNED)]
        return self._staged(torch.tensor(packed, dtype=torch.int32)), spans

    def _rows(self, packed: Tensor, spans: list, longest: int) -> tuple[TokenRows, Tensor]:
        """The rows and the last row of each piece that ends its prompt, as views of what _packed() made."""
        positions, sequence, bounds, indices, pages, last = (packed[begin:end] for begin, end in spans)
        rows = TokenRows(positions, sequence, bounds, indices, pages.view(len(indices), self.max_pages), longest)
        return rows, last

    def _staged(self, host: Tensor) -> Tensor:
        """In pinned memory, from where a copy to a GPU does not wait."""
        return host.pin_memory() if self.tokens.is_cuda and not host.is_cuda else host
