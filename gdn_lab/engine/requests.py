"""What clients ask of a server: prompts of random tokens, and how many tokens they want back."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .sampling import GREEDY, MOST_SEED, Sampling

TRACE_FIELDS = ("input_length", "output_length")


class Request(NamedTuple):
    """id: unique in a run. prompt [input tokens] int64. output_length: tokens to make, whatever they are.

    sampling: how they are chosen.
    """

    id: int
    prompt: np.ndarray
    output_length: int
    sampling: Sampling = GREEDY

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + self.output_length


def drawn(
    count: int, input_length: int, output_length: int, *, vocab: int, seed: int = 0, spread: float = 0.0
) -> list[Request]:
    """Draw `count` requests: lengths uniform from (1 - spread) to (1 + spread) x length, tokens uniform over `vocab`.

    spread 0: every request has exactly these lengths; it is the random range ratio of vLLM's benchmark. The same
    arguments draw the same requests. ValueError for a value out of range.
    """
    for name, value in (
        ("count", count),
        ("input_length", input_length),
        ("output_length", output_length),
        ("vocab", vocab),
    ):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: expected a positive int, got {value!r}")
    if not 0 <= spread < 1:
        raise ValueError(f"spread: expected a share from 0 (equal lengths) to below 1, got {spread}")
    random = np.random.default_rng(seed)
    inputs, outputs = (
        random.integers(max(1, round((1 - spread) * length)), round((1 + spread) * length), count, endpoint=True)
        for length in (input_length, output_length)
    )
    return [
        Request(id=number, prompt=random.integers(0, vocab, inputs[number]), output_length=int(outputs[number]))
        for number in range(count)
    ]


def sampled(requests: list[Request], sampling: Sampling) -> list[Request]:
    """The requests with this sampling, each with a seed of its own, `sampling.seed` + its number."""
    sampling.check()
    seeds = [(sampling.seed + number) % (MOST_SEED + 1) for number in range(len(requests))]
    return [one._replace(sampling=sampling._replace(seed=seed)) for one, seed in zip(requests, seeds, strict=True)]


def from_trace(path, *, vocab: int, seed: int = 0) -> list[Request]:
    """Read requests from a JSONL file with input_length and output_length on each line; tokens are drawn from `seed`.

    FileNotFoundError if there is no such file, ValueError naming the line that is not a request.
    """
    path, requests = Path(path), []
    random = np.random.default_rng(seed)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            lengths = _lengths(line, f"{path}: line {number}")
            requests.append(Request(len(requests), random.integers(0, vocab, lengths[0]), lengths[1]))
    if not requests:
        raise ValueError(f"{path}: expected a line for each request, got an empty file")
    return requests


def _lengths(line: str, where: str) -> list[int]:
    """input_length and output_length of one line of a trace."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error})") from None
    lengths = [row.get(name) if isinstance(row, dict) else None for name in TRACE_FIELDS]
    if not all(type(length) is int and length > 0 for length in lengths):
        raise ValueError(f"{where}: expected positive ints {' and '.join(TRACE_FIELDS)}, got {line.strip()[:80]}")
    return lengths
