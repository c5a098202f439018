"""The rows of a decode step on the host, and how they come into the model's static buffers.

Row i of the buffers is the i-th request in flight. Tokens stay on the device: a step writes those of the next one. All
else the host knows (positions are counts), and copies it from pinned memory, in stream order, only when it has changed.
"""

import numpy as np
import torch
from torch import Tensor

from .sampling import GREEDY, SamplingRows, sampling_rows


class StepInputs:
    """Slots, positions and pages of the requests in flight. rows: how many there are."""

    def __init__(self, buffers, page_size: int):
        self._buffers, self._pinned, self._page_size = buffers, buffers.tokens.is_cuda, page_size
        most, max_pages = buffers.page_table.shape
        self.rows, self.positions = 0, np.zeros(most, np.int32)
        self._indices, self._page_table = np.full(most, -1, np.int32), np.zeros((most, max_pages), np.int32)
        self._numbers, self._whole = (part.numpy() for part in SamplingRows.empty(most, "cpu"))
        self._room = np.zeros(most, np.int32)  # tokens that a row's pages hold
        self._changed = True

    def add(
        self, slots: list[int], positions: list[int], pages: list[list[int]], tokens: Tensor, sampling=None
    ) -> None:
        """Append a row for each slot. tokens [n] on the device: what each row feeds next, at its position.

        sampling: a Sampling for each row; by default all are greedy.
        """
        new = slice(self.rows, self.rows + len(slots))
        self._indices[new], self.positions[new] = slots, positions
        self._numbers[new], self._whole[new] = (
            part.numpy() for part in sampling_rows(sampling or [GREEDY] * len(slots))
        )
        for row, own in enumerate(pages, self.rows):
            self.set_pages(row, own)
        self._buffers.tokens[new].copy_(tokens)
        self.rows, self._changed = new.stop, True

    def set_pages(self, row: int, pages: list[int]) -> None:
        """Make `pages` the row's, in order."""
        self._page_table[row, : len(pages)] = pages
        self._room[row], self._changed = len(pages) * self._page_size, True

    def short_of_pages(self, tokens: int) -> list[int]:
        """Rows whose pages do not hold `tokens` more tokens."""
        return np.flatnonzero(self.positions[: self.rows] + tokens > self._room[: self.rows]).tolist()

    def remove(self, gone: list[int]) -> list[int]:
        """Remove rows; the last ones take their places. Returns the old row of each row that is left."""
        order = list(range(self.rows))
        for row in sorted(gone, reverse=True):
            order[row] = order[-1]
            order.pop()
        left = len(order)
        for array in (self._indices, self.positions, self._page_table, self._room, self._numbers, self._whole):
            array[:left] = array[order]
        self._indices[left:] = -1
        if order != list(range(left)):
            tokens = self._buffers.tokens
            tokens[:left] = tokens[self.on_device(np.array(order, np.int64))]
        self.rows, self._changed = left, True
        return order

    def upload(self) -> None:
        """Bring what has changed into the model's buffers; rows from `rows` on are padding."""
        if not self._changed:
            return
        sampling = self._buffers.sampling
        for target, array in (
            *(() if sampling is None else zip(sampling, (self._numbers, self._whole), strict=True)),
            (self._buffers.indices, self._indices),
            (self._buffers.positions[: self.rows], self.positions[: self.rows]),
            (self._buffers.page_table[: self.rows], self._page_table[: self.rows]),
        ):
            target.copy_(self._staged(array), non_blocking=True)
        self._changed = False

    def on_device(self, array: np.ndarray) -> Tensor:
        """The array on the device, copied without waiting for the device."""
        return self._staged(array).to(self._buffers.tokens.device, non_blocking=True)

    def to_host(self, tokens: Tensor) -> Tensor:
        """Begin to copy tokens to the host; they are there once the device comes to a later mark."""
        host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=self._pinned)
        return host.copy_(tokens, non_blocking=True)

    def _staged(self, array: np.ndarray) -> Tensor:
        """A copy that the device may still read later; pinned memory is not used again before it has."""
        host = torch.from_numpy(np.ascontiguousarray(array))
        return host.pin_memory() if self._pinned else host.clone()
