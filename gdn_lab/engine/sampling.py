"""How a request's tokens are chosen, and the static buffers of it that a step's CUDA graph reads.

Greedy by default. Otherwise a token is drawn from softmax(logits / temperature) of those that top-k and top-p leave:

    top_k   the k most likely tokens, and any as likely as the last of them; 0: all
    top_p   of what top_k leaves, the fewest most likely tokens whose probabilities add up to at least p, and any as
            likely as the last of them; 1: all

A draw is a race: token i finishes after E_i / p_i, E_i exponential, and the first one wins, which is token i with
probability p_i. E_i is a hash of seed, position and token: the same request gets the same tokens in any batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MOST_SEED = 2**31 - 1


class Sampling(NamedTuple):
    """temperature 0: the most likely token, whatever the other fields are. seed: of the draws."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """ValueError naming the field that is out of range."""
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: expected 0 (the most likely token) or more, got {self.temperature!r}")
        if type(self.top_k) is not int or self.top_k < 0:
            raise ValueError(f"top_k: expected an int, 0 for all tokens, got {self.top_k!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a probability above 0, 1 for all tokens, got {self.top_p!r}")
        if type(self.seed) is not int or not 0 <= self.seed <= MOST_SEED:
            raise ValueError(f"seed: expected an int from 0 to {MOST_SEED}, got {self.seed!r}")


GREEDY = Sampling()


class SamplingRows(NamedTuple):
    """A row for each token to choose: numbers [rows, 2] float32, temperature and top_p; whole [rows, 2] int32, top_k
    and seed."""

    numbers: Tensor
    whole: Tensor

    @classmethod
    def empty(cls, rows: int, device) -> "SamplingRows":
        """Rows that are all greedy."""
        return cls(*(part.to(device) for part in sampling_rows([GREEDY] * rows)))

    def first(self, rows: int) -> "SamplingRows":
        """The first `rows` rows."""
        return SamplingRows(self.numbers[:rows], self.whole[:rows])


def sampling_rows(each: list[Sampling]) -> SamplingRows:
    """The rows of `each`, on the host."""
    return SamplingRows(
        torch.tensor([[one.temperature, one.top_p] for one in each], dtype=torch.float32).view(-1, 2),
        torch.tensor([[one.top_k, one.seed] for one in each], dtype=torch.int32).view(-1, 2),
    )


def sampler_of(reference: bool):
    """sample(logits, tokens, rows, positions): in Triton, or in PyTorch where `reference`."""
    if reference:
        from .sampling_reference import sample
    else:
        from .sampling_kernels import sample
    return sample
