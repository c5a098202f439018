"""Which tokens of which prompts the next prefill call takes."""

from collections import deque
from typing import NamedTuple

import numpy as np
import torch

from .in_flight import InFlight


class Pieces(NamedTuple):
    """own: the request of each piece. done: those whose prompt ends here. tokens: of all pieces. arguments: of
    ServedModel.prefill()."""

    own: list[InFlight]
    done: list[InFlight]
    tokens: int
    arguments: dict


def taken(prompts: deque[InFlight], most: int, extend) -> Pieces:
    """Take up to `most` tokens of the prompts in order; those taken whole leave the queue.

    extend(request, tokens): gives a request pages for its first `tokens` tokens.
    """
    pieces, starts, left = [], [], most
    while prompts and left:
        one = prompts[0]
        take = min(left, len(one.request.prompt) - one.taken)
        pieces.append((one, one.request.prompt[one.taken : one.taken + take]))
        starts.append(one.taken)
        one.taken, left = one.taken + take, left - take
        extend(one, one.taken)
        if one.taken == len(one.request.prompt):
            prompts.popleft()
    own = [one for one, _ in pieces]
    ends = [row for row, one in enumerate(own) if one.taken == len(one.request.prompt)]
    arguments = {
        "tokens": torch.from_numpy(np.concatenate([piece for _, piece in pieces])),
        "cu_seqlens": [0, *np.cumsum([len(piece) for _, piece in pieces]).tolist()],
        "starts": starts,
        "indices": [one.slot for one in own],
        "page_table": [one.pages for one in own],
        "finished_rows": ends,
        "sampling": [one.request.sampling for one in own],
    }
    return Pieces(own, [own[row] for row in ends], most - left, arguments)


def check_mixed(mixed: bool, drafting, model, concurrency: int) -> None:
    """ValueError where the model cannot take prompts and the next tokens of `concurrency` requests in one step."""
    if mixed and drafting:
        raise ValueError("prefill: expected steps or chunked with draft tokens; a mixed step decodes, got 'mixed'")
    if mixed and concurrency >= model.prefill_tokens:
        raise ValueError(
            f"concurrency: expected below {model.prefill_tokens} (prefill_tokens), which prompts and rows of a mixed "
            f"step share, got {concurrency}"
        )
