"""Prefill: packed pieces of prompts, launched kernel by kernel, for a number of tokens rounded up.

A mixed step also takes the next token of requests that decode: their rows come after those of the prompts. Projections
and experts take all rows in one product, GDN prefills the one and decodes the other, attention takes both.
"""

import torch
from torch import Tensor

from ..layer.sequences import Mixed
from ..layer.workspace import Workspace
from .decoder import ROWS, Decoder, ModelParts, TokenHead
from .sampling import Sampling, SamplingRows, sampling_rows
from .token_rows import TokenRows

ALIGNED = 4  # int32 elements: pieces of an upload begin at multiples of 16 bytes, so that kernels compile once


def rounded(tokens: int, most: int) -> int:
    """Rows of the step that takes `tokens` tokens: a multiple of 16, of 64 or of 256, at most `most`."""
    unit = 16 if tokens <= 64 else 64 if tokens <= 512 else 256
    return min(-(-tokens // unit) * unit, most)


class PromptStep:
    """The layers for up to `size` tokens."""

    def __init__(self, parts: ModelParts, buffers, size: int, max_pages: int, backend: str, workspace: Workspace):
        self.parts, self.buffers, self.size, self.max_pages, self.workspace = parts, buffers, size, max_pages, workspace
        device = parts.weights.device
        self.tokens = torch.zeros(size, dtype=torch.int64, device=device)
        none = torch.zeros(1, dtype=torch.int32, device=device)
        rows = TokenRows(none.expand(size), none.expand(size), none, none, none[None], 1)
        self.packed = Mixed(0, backend, rows.sequence, rows.starts)
        self.decoder = Decoder(parts, rows, self.tokens, workspace, self.packed)
        self.heads: dict[int, TokenHead] = {}

    def __call__(
        self, tokens: Tensor, bounds, starts, indices, page_table, finished, sampling=None, decoding=0
    ) -> Tensor:
        """The next tokens of the pieces in `finished`, then of the rows that decode; as ServedModel.prefill()."""
        count = len(tokens)
        self.tokens[:count].copy_(self._staged(tokens), non_blocking=True)
        rows, last = self._uploaded(count, bounds, starts, indices, page_table, finished)
        self.packed.tokens, self.packed.indices, self.packed.bounds = count, rows.indices, rows.starts
        self.packed.decoding = self.buffers.indices[:decoding] if decoding else None
        if decoding:
            rows, last = self._with_decoding(rows, last, count, decoding)
        self.decoder.set_rows(rows)
        self.packed.sequence, self.packed.starts = rows.sequence, rows.starts
        self.decoder()
        chosen = self._chosen(rows, last, None if sampling is None else [sampling[number] for number in finished])
        if decoding:
            self._move_on(chosen[len(finished) :])
        return chosen

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

    def _with_decoding(self, rows: TokenRows, last: Tensor, count: int, decoding: int) -> tuple[TokenRows, Tensor]:
        """The rows with those of the first `decoding` rows of the buffers, all on the device; and all last rows."""
        buffers, n, own = self.buffers, len(rows.indices), slice(count, count + decoding)
        place = torch.arange(decoding, dtype=torch.int32, device=self.tokens.device)
        self.tokens[own] = buffers.tokens[:decoding]
        rows.positions[own], rows.sequence[own] = buffers.positions[:decoding], place + n
        rows = rows._replace(
            starts=torch.cat((rows.starts, place + count + 1)),
            indices=torch.cat((rows.indices, buffers.indices[:decoding])),
            page_table=torch.cat((rows.page_table, buffers.page_table[:decoding])),
        )
        return rows, torch.cat((last, place + count))

    def _move_on(self, tokens: Tensor) -> None:
        """Leave the buffers as decode() does."""
        count = len(tokens)
        self.buffers.tokens[:count] = self.buffers.next_tokens[:count] = tokens
        self.buffers.positions[:count] += 1

    def _sampling_rows(self, each: list[Sampling]) -> SamplingRows:
        """The rows of `each`, on the device."""
        numbers, whole = (self._staged(part).to(self.tokens.device, non_blocking=True) for part in sampling_rows(each))
        return SamplingRows(numbers, whole)

    def _uploaded(self, count, bounds, starts, indices, page_table, finished) -> tuple[TokenRows, Tensor]:
        """The rows on the device, in one copy, and the last row of each piece in `finished`."""
        n, lengths = len(indices), [end - begin for begin, end in zip(bounds, bounds[1:], strict=False)]
        padding = self.size - count
        positions, sequence = [], []
        for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            positions += range(start, start + length)
            sequence += [number] * length
        pages = [[*own, *[0] * (self.max_pages - len(own))] for own in page_table]
        pieces = (
            positions + [0] * padding,
            sequence + [-1] * padding,
            bounds,
            indices,
            [page for own in pages for page in own],
            [bounds[number + 1] - 1 for number in finished],
        )
        packed, spans = [], []
        for piece in pieces:
            spans.append((len(packed), len(packed) + len(piece)))
            packed += [*piece, *[0] * (-len(piece) % ALIGNED)]
        uploaded = self._staged(torch.tensor(packed, dtype=torch.int32)).to(self.tokens.device, non_blocking=True)
        *pieces, last = (uploaded[begin:end] for begin, end in spans)
        positions, sequence, bounds, indices, pages = pieces
        rows = TokenRows(positions, sequence, bounds, indices, pages.view(n, self.max_pages), max(lengths))
        return rows, last

    def _staged(self, host: Tensor) -> Tensor:
        """In pinned memory, from where a copy to a GPU does not wait."""
        return host.pin_memory() if self.tokens.is_cuda and not host.is_cuda else host
