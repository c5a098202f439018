"""Speculative decoding at a given acceptance rate: which proposals a request gets, and how many of them are accepted.

There is no draft model: proposals are random tokens, and seeded draws say how many hold, in place of comparing tokens.
What the server pays is real (verify, commit, memory of drafts) but for the draft model, whose cost is left out.
"""

from typing import NamedTuple

import numpy as np

from .requests import Request

MOST_TOKENS = 8


class Speculation(NamedTuple):
    """tokens: that a verify step takes for each request, 1 to 8: the one that is known and tokens - 1 proposals.

    acceptance: the probability that a proposal holds, given that those before it did. vocab: of proposals.
    """

    tokens: int
    acceptance: float
    vocab: int
    seed: int = 0

    def check(self) -> None:
        """ValueError for a value out of range."""
        if type(self.tokens) is not int or not 1 <= self.tokens <= MOST_TOKENS:
            raise ValueError(f"tokens: expected 1 to {MOST_TOKENS} in a verify step, got {self.tokens!r}")
        if not 0 <= self.acceptance <= 1:
            raise ValueError(f"acceptance: expected a rate from 0 to 1, got {self.acceptance}")

    @property
    def expected(self) -> float:
        """Tokens that a step yields on average: 1 + p + p² … p^(tokens - 1), p the acceptance rate."""
        return sum(self.acceptance**n for n in range(self.tokens))

    def of(self, request: Request) -> "Drafts":
        """The drafts of one request, the same whatever else is served."""
        random = np.random.default_rng([self.seed, request.id])
        most = request.output_length
        held = random.random((most, self.tokens - 1)) < self.acceptance
        accepted = 1 + np.cumprod(held, axis=1).sum(axis=1)
        return Drafts(random.integers(0, self.vocab, most + self.tokens), accepted)


class Drafts(NamedTuple):
    """proposals [output_length + tokens] int64: the proposed token at each place of the answer. accepted
    [output_length]: tokens that the n-th verify step of this request keeps, from 1."""

    proposals: np.ndarray
    accepted: np.ndarray
