"""The sampler in plain PyTorch: what sampling_kernels.py computes."""

import torch
from torch import Tensor

from ..rounding import MASK, hashed, mixed
from .sampling import SamplingRows

SMALL = 1e-3  # u below it: -log(1 - u) from two terms of its series


def exponentials(seeds: Tensor, positions: Tensor, tokens: int) -> Tensor:
    """E [rows, tokens] float32, exponentially distributed: a hash of seed [rows], position [rows] and token."""
    keys = mixed(mixed(seeds.long() & MASK) ^ (positions.long() & MASK))
    u = ((hashed(keys, 0, tokens).float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    return torch.where(u < SMALL, u + 0.5 * u * u, -torch.log(1 - u))


def kept(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Which tokens top-k and top-p leave: [rows, vocab] bool, of logits [rows, vocab] float32."""
    temperature, top_p = rows.numbers[:, :1], rows.numbers[:, 1:]
    top_k = rows.whole[:, :1].long().clamp(max=logits.shape[1])
    ordered = logits.sort(dim=1, descending=True).values
    last = torch.where(top_k > 0, top_k, logits.shape[1]) - 1
    of_k = ordered >= ordered.gather(1, last)
    p = torch.where(of_k, (ordered / _divisor(temperature)), -torch.inf).softmax(1)
    enough = (p.cumsum(1) < top_p).sum(1, keepdim=True).clamp(max=logits.shape[1] - 1)
    enough = torch.where(top_p < 1, torch.minimum(enough, last), last)
    return logits >= torch.maximum(ordered.gather(1, enough), ordered.gather(1, last))


def sample(logits: Tensor, tokens: Tensor, rows: SamplingRows, positions: Tensor) -> None:
    """Write a drawn token over tokens [rows] int64 in each row whose temperature is above 0.

    tokens: the most likely ones. logits [rows, vocab]; positions [rows] int32: of the token that was fed, which makes
    the draws of a request differ.
    """
    logits, temperature = logits.float(), rows.numbers[:, :1]
    race = exponentials(rows.whole[:, 1], positions, logits.shape[1]).log() - logits / _divisor(temperature)
    drawn = torch.where(kept(logits, rows), race, torch.inf).argmin(1)
    tokens.copy_(torch.where(temperature[:, 0] > 0, drawn, tokens))


def _divisor(temperature: Tensor) -> Tensor:
    """The temperature, 1 in greedy rows."""
    return torch.where(temperature > 0, temperature, 1.0)
