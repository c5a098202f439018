"""The paged KV cache of a model's full-attention layers.

A page holds `page_size` consecutive tokens of one request, in all layers at once: page p of a request's table is page p
in each layer. A request's page table lists its pages in order: token t is in pages[t // page_size].
"""

import torch


class OutOfPages(RuntimeError):
    """More pages were asked for than are free."""


class PagedCache:
    """Keys and values: `k` and `v` [layers, pages, page_size, kv_heads, head_dim].

    ValueError for a size that is not a positive int. Bytes of one token in all layers: token_nbytes.
    """

    def __init__(
        self,
        layers: int,
        pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int = 256,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device=None,
    ):
        sizes = {
            "layers": layers,
            "pages": pages,
            "page_size": page_size,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
        }
        for name, value in sizes.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: expected a positive int, got {value!r}")
        self.layers, self.pages, self.page_size = layers, pages, page_size
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.k, self.v = (torch.zeros(*sizes.values(), dtype=dtype, device=device) for _ in range(2))
        self._free = list(range(pages - 1, -1, -1))  # handed out from the end: lowest page first
        self._held: set[int] = set()

    @property
    def free(self) -> int:
        """Pages that acquire() can still hand out."""
        return len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return self.k.nbytes + self.v.nbytes

    @property
    def token_nbytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return self.nbytes // (self.pages * self.page_size)

    def pages_for(self, tokens: int) -> int:
        """Pages that `tokens` tokens of one request fill; the last may be partial."""
        return -(-tokens // self.page_size)

    def acquire(self, n: int) -> list[int]:
        """Hand out n pages, whose contents are undefined. OutOfPages if fewer are free, with none handed out."""
        if type(n) is not int or n < 0:
            raise ValueError(f"n: expected an int of at least 0, got {n!r}")
        if n > self.free:
            raise OutOfPages(
                f"the KV cache is full: acquire({n}) with {self.free} of {self.pages} pages free; "
                "release pages first or build the cache with more"
            )
        pages = [self._free.pop() for _ in range(n)]
        self._held.update(pages)
        return pages

    def release(self, pages: list[int]) -> None:
        """Take pages back. ValueError, with nothing released, for one that was not handed out or comes twice."""
        if len(set(pages)) < len(pages):
            raise ValueError(f"pages: expected each page once, got {pages}")
        wrong = sorted(set(pages) - self._held)
        if wrong:
            raise ValueError(f"pages: expected pages that were handed out, got {wrong}")
        self._held.difference_update(pages)
        self._free.extend(reversed(pages))
