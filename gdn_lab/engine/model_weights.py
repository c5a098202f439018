"""Random weights of a whole model on one tensor-parallel rank, at real sizes or as a toy."""

from dataclasses import dataclass
from functools import partial

import torch

from ..layer.fp8 import Linear, random_weight
from ..layer.weights import StepWeights
from .attention_layer import AttentionWeights
from .model_sizes import ModelSizes
from .weight_shares import share


@dataclass(frozen=True)
class ModelWeights:
    """All layers' weights, embedding, final norm and this rank's share of the head. Made by random().

    layers: in order; of full attention where sizes.is_attention says so. embedding [vocab, hidden], final_norm [hidden]
    and head [vocab_rank, hidden] are bf16.
    """

    sizes: ModelSizes
    rank: int
    precision: str
    device: torch.device
    layers: tuple[StepWeights, ...]
    embedding: torch.Tensor
    final_norm: torch.Tensor
    head: Linear

    @classmethod
    def random(
        cls,
        name: str,
        *,
        rank: int = 0,
        tp: int = 1,
        precision: str = "fp8",
        device=None,
        seed: int = 0,
        toy: bool = False,
        layers: int | None = None,
    ) -> "ModelWeights":
        """Draw random weights; each layer has memory of its own.

        name: in the model table. precision: of projections and experts, "fp8" or "bf16"; embedding, norms, router and
        head are bf16. toy: a small model of the same structure, of which the ranks hold slices of the same weights, so
        that tp = 2 computes what tp = 1 does. Otherwise ranks draw the same numbers for their layers, router and
        embedding included, and other numbers for the head. layers: only the first so many.
        """
        if type(rank) is not int or not 0 <= rank < tp:
            raise ValueError(f"rank: expected 0 to {tp - 1}, got {rank!r}")
        sizes = ModelSizes.of(name, tp, toy=toy, layers=layers)
        if toy and tp > 1:
            return share(_drawn(cls, sizes.whole_toy(), 0, precision, device, seed), sizes, rank)
        return _drawn(cls, sizes, rank, precision, device, seed)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes by part: GDN layers and attention layers without their feed-forwards, feed-forward, embedding, head."""
        parts = dict.fromkeys(("GDN layers", "attention layers", "feed-forward"), 0)
        for layer, is_attention in zip(self.layers, self.sizes.is_attention, strict=True):
            parts["attention layers" if is_attention else "GDN layers"] += layer.layer.nbytes
            parts["feed-forward"] += layer.nbytes - layer.layer.nbytes
        head = self.head.nbytes + self.final_norm.nbytes
        return parts | {"embedding": self.embedding.nbytes, "head": head}


def _drawn(cls, sizes: ModelSizes, rank: int, precision: str, device, seed: int) -> ModelWeights:
    device = torch.device(device or "cpu")
    hidden, layers = sizes.step.hidden, []
    for number, is_attention in enumerate(sizes.is_attention):
        attention = partial(AttentionWeights.random, sizes.attention, hidden) if is_attention else None
        layers.append(
            StepWeights.random(
                sizes.name,
                sizes.tp,
                precision=precision,
                device=device,
                seed=seed + 1 + number,
                sizes=sizes.step,
                draw_layer=attention,
            )
        )
    generator = torch.Generator(device).manual_seed(seed)
    options = {"device": device, "generator": generator}
    embedding = random_weight(sizes.vocab, hidden, precision="bf16", **options).data.mul_(hidden**0.5)
    final_norm = torch.empty(hidden, device=device).uniform_(-0.5, 0.5, generator=generator).bfloat16()
    generator.manual_seed(seed + 1_000_003 * (rank + 1))
    head = random_weight(sizes.vocab_rank, hidden, precision="bf16", **options)
    return cls(sizes, rank, precision, device, tuple(layers), embedding, final_norm, head)
