"""A request from its arrival to its last token, and a step from its launch until it is read."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from .metrics import FINISHED
from .requests import Request
from .speculation import Drafts

INTERRUPTED, REFUSED = "interrupted", "refused"


@dataclass(slots=True, eq=False)
class InFlight:
    """A request from its arrival on. made: tokens launched so far; tokens: those the client has received."""

    request: Request
    arrival_s: float
    drafts: Drafts | None = None
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    promised: int = 0  # pages that its whole length needs, of which `pages` are those it has
    taken: int = 0  # tokens of the prompt
    made: int = 0
    verified: int = 0  # steps with drafts
    admitted_s: float | None = None
    tokens: list[int] = field(default_factory=list)
    chunk_s: list[float] = field(default_factory=list)
    chunk_tokens: list[int] = field(default_factory=list)

    @property
    def all_made(self) -> bool:
        return self.made == self.request.output_length

    def row(self, outcome: str, **more) -> dict:
        """The row of this request."""
        return {
            "type": "request",
            "id": self.request.id,
            "input_tokens": len(self.request.prompt),
            "output_tokens": len(self.tokens),
            "arrival_s": self.arrival_s,
            "admitted_s": self.admitted_s,
            "first_token_s": self.chunk_s[0] if self.chunk_s else None,
            "finished_s": self.chunk_s[-1] if outcome == FINISHED else None,
            "chunk_s": self.chunk_s,
            "chunk_tokens": self.chunk_tokens,
            "outcome": outcome,
        } | more


def never_fits(one: InFlight, cached: int, model) -> str | None:
    """One sentence why the model can never serve a request of `cached` tokens in its pages; None if it can."""
    number, most, pages = one.request.id, model.max_length, model.cache.pages
    if cached > most:
        return f"request {number} needs {cached} tokens of KV cache, and max_length is {most}; raise it"
    if one.promised > pages:
        return f"request {number} needs {one.promised} pages of KV cache, and there are {pages}; make more"
    if one.request.sampling.temperature and model.buffers.sampling is None:
        return (
            f"request {number} draws its tokens, and the model takes the most likely ones; make it with sampling=True"
        )
    if one.request.sampling.temperature and one.drafts:
        return f"request {number} draws its tokens, and drafts are verified against the most likely ones; use no drafts"
    return None


class Launched(NamedTuple):
    """A step on its way: its row, and the requests that get tokens.

    chunks: for each of them the tokens that are known already, accepted proposals. tokens: of each the last one, on the
    host once the mark `copied` has passed. began, ended: marks around the model's work.
    """

    row: dict
    requests: list[InFlight]
    chunks: list[list[int]]
    tokens: Tensor
    began: Any
    ended: Any
    copied: Any
