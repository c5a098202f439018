"""The model of fake_served_model.py in tensors: on a GPU it runs behind the host, and slowly, as a real one does."""

import torch
from fake_served_model import PRIME, VOCAB, FakeSlots

from gdn_lab.engine.kv_cache import PagedCache
from gdn_lab.engine.served_model import Buffers

__all__ = ["DeviceModel"]

WAIT_CYCLES = 400_000  # of a GPU before each step: about 0.2 ms


class DeviceSlots(FakeSlots):
    def __init__(self, slots, device):
        super().__init__(slots)
        self.state = torch.zeros(slots, dtype=torch.int64, device=device)


class DeviceModel:
    """A slot's state is a hash of what was fed. Pages hold it after each token; a step reads the one before its own."""

    def __init__(self, device, *, max_batch, pages, page_size=4, max_length=64, prefill_tokens=64):
        self.device, self.max_batch, self.max_length = torch.device(device), max_batch, max_length
        self.prefill_tokens, self.batch_sizes = prefill_tokens, (1, 4, max_batch)
        self.slots = DeviceSlots(max_batch + 1, device)
        self.cache = PagedCache(1, pages, page_size, 1, 1, device=device)
        self.history = torch.zeros(pages * page_size + 1, dtype=torch.int64, device=device)  # the last is for padding
        tokens = torch.zeros(max_batch, dtype=torch.int64, device=device)
        int32 = torch.zeros(max_batch, dtype=torch.int32, device=device)
        page_table = torch.zeros(max_batch, -(-max_length // page_size), dtype=torch.int32, device=device)
        self.buffers = Buffers(tokens, int32.clone(), int32 - 1, page_table, tokens.clone())
        self.drafts = None

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda._sleep(WAIT_CYCLES)

    def _place(self, page_table, positions):
        pages = page_table.gather(1, (positions // self.cache.page_size)[:, None]).long()[:, 0]
        return pages * self.cache.page_size + positions % self.cache.page_size

    def _feed(self, slots, page_table, positions, tokens, live):
        """One token of each live row; the next tokens. Rows that are not live write to slot 0 and to no page."""
        slots = torch.where(live, slots, 0)
        before = self.history[self._place(page_table, (positions - 1).clamp(min=0))]
        state = self.slots.state[slots]
        state = torch.where(positions > 0, state + 977 * (before - state), 0)
        state = (state * 31 + tokens + 7) % PRIME
        self.slots.state[slots] = state
        self.history[torch.where(live, self._place(page_table, positions), len(self.history) - 1)] = state
        return state % VOCAB

    def prefill(self, tokens, cu_seqlens, starts, indices, page_table, finished_rows=None, sampling=None):
        self._wait()
        width = self.buffers.page_table.shape[1]
        table = torch.tensor([pages + [0] * (width - len(pages)) for pages in page_table]).to(self.device)
        tokens, slots = tokens.to(self.device), torch.tensor(indices).to(self.device)
        lengths = [end - begin for begin, end in zip(cu_seqlens, cu_seqlens[1:], strict=False)]
        following = torch.zeros(len(starts), dtype=torch.int64, device=self.device)
        for row, (begin, start, length) in enumerate(zip(cu_seqlens, starts, lengths, strict=False)):
            own, yes = slice(row, row + 1), torch.ones(1, dtype=torch.bool, device=self.device)
            for offset in range(length):
                position = torch.full((1,), start + offset, device=self.device)
                token = tokens[begin + offset : begin + offset + 1]
                following[own] = self._feed(slots[own], table[own], position, token, yes)
        return following[torch.tensor(finished_rows, dtype=torch.int64).to(self.device)]

    def _step(self, batch, tokens, live):
        padded = slice(0, min(size for size in self.batch_sizes if size >= batch))
        buffers, slots = self.buffers, self.buffers.indices[padded].long()
        live = live & (slots >= 0)
        following = self._feed(slots, buffers.page_table[padded], buffers.positions[padded].long(), tokens, live)
        buffers.tokens[padded] = torch.where(live, following, buffers.tokens[padded])
        buffers.positions[padded] += live.to(torch.int32)

    def decode(self, batch):
        self._wait()
        padded = min(size for size in self.batch_sizes if size >= batch)
        self._step(batch, self.buffers.tokens[:padded], torch.ones(padded, dtype=torch.bool, device=self.device))
        self.buffers.next_tokens.copy_(self.buffers.tokens)
        return self.buffers.next_tokens[:batch]

    def reserve_drafts(self, batch, tokens):
        self.drafts = torch.zeros(self.max_batch, tokens, dtype=torch.int64, device=self.device) if batch else None

    def verify(self, batch, tokens):
        self._wait()

    def commit(self, batch, accepted):
        padded = min(size for size in self.batch_sizes if size >= batch)
        counts = torch.zeros(padded, dtype=torch.int32, device=self.device)
        counts[:batch] = accepted
        for offset in range(self.drafts.shape[1]):
            self._step(batch, self.drafts[:padded, offset], counts > offset)
