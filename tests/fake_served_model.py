"""A model whose next token is a hash of all tokens before it, kept in slots and pages as a real one keeps them.

Whatever the loop loses or mixes up changes tokens: the state of a slot hashes what was fed into it, the pages hold the
tokens themselves, and a step reads both.
"""

import torch

from gdn_lab.engine.kv_cache import PagedCache
from gdn_lab.engine.served_model import Buffers

__all__ = ["FakeModel", "answer"]

VOCAB = 9973
PRIME = 1_000_003


def mixed(state: int, token: int) -> int:
    return (state * 31 + token + 7) % PRIME


def answer(prompt, length, proposals=None) -> list[int]:
    """The tokens that follow a prompt: those of greedy decoding; a proposal that is accepted takes a token's place."""
    state = 0
    for token in prompt.tolist():
        state = mixed(state, token)
    tokens = []
    while len(tokens) < length:
        accepted = proposals.get(len(tokens)) if proposals else None
        tokens.append(state % VOCAB if accepted is None else accepted)
        state = mixed(state, tokens[-1])
    return tokens


class FakeSlots:
    def __init__(self, slots):
        self.state, self._free, self.total = {}, set(range(1, slots)), slots - 1

    @property
    def free(self):
        return len(self._free)

    def acquire(self):
        slot = self._free.pop()
        self.state[slot] = 0
        return slot

    def release(self, slot):
        assert slot not in self._free, "released twice"
        self._free.add(slot)


class FakeModel:
    vocab = VOCAB

    def __init__(
        self, *, max_batch=8, slots=9, pages=64, page_size=4, max_length=64, prefill_tokens=16, sizes=(1, 2, 4)
    ):
        self.max_batch, self.max_length, self.prefill_tokens = max_batch, max_length, prefill_tokens
        self.slots = FakeSlots(slots)
        self.cache = PagedCache(1, pages, page_size, 1, 1, dtype=torch.float64)
        self.max_pages, self.batch_sizes = -(-max_length // page_size), (*sizes, max_batch)
        vector, page_table = torch.zeros(max_batch, dtype=torch.int64), torch.zeros(max_batch, self.max_pages)
        int32 = vector.to(torch.int32)
        self.buffers = Buffers(vector.clone(), int32.clone(), int32.clone() - 1, page_table.to(torch.int32), vector)
        self.drafts, self.calls = None, []

    def _feed(self, slot, pages, position, token):
        """Feed one token; returns the next one."""
        size = self.cache.page_size
        assert slot not in self.slots._free and pages[position // size] not in self.cache._free
        self.cache.k[0, pages[position // size], position % size] = token
        if position:  # the token before it must lie where it was put
            before = self.cache.v[0, pages[(position - 1) // size], (position - 1) % size].item()
            assert before == self.slots.state[slot], "state and pages are of different histories"
        self.slots.state[slot] = mixed(self.slots.state[slot], int(token))
        self.cache.v[0, pages[position // size], position % size] = self.slots.state[slot]
        return self.slots.state[slot] % VOCAB

    def prefill(self, tokens, cu_seqlens, starts, indices, page_table, finished_rows=None, sampling=None, decoding=0):
        assert len(tokens) == cu_seqlens[-1] <= self.prefill_tokens and tokens.dtype == torch.int64
        self.calls.append(("prefill", len(starts), len(tokens)))
        assert len(tokens) + decoding <= self.prefill_tokens
        following = []
        for row, (start, slot, pages) in enumerate(zip(starts, indices, page_table, strict=True)):
            for offset, token in enumerate(tokens[cu_seqlens[row] : cu_seqlens[row + 1]].tolist()):
                token = self._feed(slot, pages, start + offset, token)
            following.append(token)
        chosen = torch.tensor([following[row] for row in finished_rows], dtype=torch.int64)
        return torch.cat((chosen, self.decode(decoding).clone())) if decoding else chosen

    def _rows(self, batch):
        buffers = self.buffers
        padded = min(size for size in self.batch_sizes if size >= batch)
        assert (buffers.indices[batch:padded] == -1).all() and (buffers.indices[:batch] > 0).all()
        columns = (buffers.indices, buffers.page_table, buffers.positions, buffers.tokens)
        return zip(range(batch), *(column[:batch].tolist() for column in columns), strict=True)

    def decode(self, batch):
        self.calls.append(("decode", batch, batch))
        for row, slot, pages, position, token in self._rows(batch):
            self.buffers.next_tokens[row] = self.buffers.tokens[row] = self._feed(slot, pages, position, token)
            self.buffers.positions[row] += 1
        return self.buffers.next_tokens[:batch]

    def reserve_drafts(self, batch, tokens):
        self.drafts = torch.zeros(batch, tokens, dtype=torch.int64) if batch else None

    def verify(self, batch, tokens):
        self.calls.append(("verify", batch, tokens))
        assert (self.drafts[:batch, 0] == self.buffers.tokens[:batch]).all()
        for _, _, pages, position, _ in self._rows(batch):  # room for all drafts, rejected ones too
            assert pages[(position + tokens - 1) // self.cache.page_size] not in self.cache._free

    def commit(self, batch, accepted):
        for row, slot, pages, position, _ in self._rows(batch):
            for offset, token in enumerate(self.drafts[row, : accepted[row]].tolist()):
                self.buffers.tokens[row] = self._feed(slot, pages, position + offset, token)
            self.buffers.positions[row] += int(accepted[row])
