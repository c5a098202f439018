"""Sizes and random weights of one decoder layer on one tensor-parallel rank.

weights = StepWeights.random("qwen3.5-397b-a17b", tp=8)
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from ..models import GDNShape, model
from .experts import ExpertWeights
from .fp8 import PRECISIONS, Linear, random_weight
from .gdn_layer import LayerWeights


class StepSizes(NamedTuple):
    """Sizes of one rank's share of a layer. experts is None for a dense feed-forward."""

    shape: GDNShape
    hidden: int
    experts: int | None
    top_k: int | None
    routed: int | None  # intermediate size of a routed expert
    shared: int  # intermediate size of the shared expert, or of the dense feed-forward

    @classmethod
    def of(cls, name: str, tp: int, toy: bool = False) -> "StepSizes":
        """Sizes of a model in the table on one of `tp` ranks; with `toy`, of a small layer of the same structure.

        ValueError if `tp` ranks cannot split a size evenly.
        """
        entry = model(name)
        shape = GDNShape.from_model(name, tp)
        if toy:
            return _toy_sizes(dense=entry.experts is None)
        for what, size in (
            ("experts' width", entry.moe_intermediate),
            ("feed-forward's width", entry.ffn_intermediate),
        ):
            if size and size % tp:
                raise ValueError(f"tp: {name} has a {what} of {size}, which {tp} GPUs cannot share evenly")
        return cls(
            shape=shape,
            hidden=entry.hidden,
            experts=entry.experts,
            top_k=entry.top_k,
            routed=entry.moe_intermediate and entry.moe_intermediate // tp,
            shared=entry.ffn_intermediate // tp,
        )


def _toy_sizes(dense: bool) -> StepSizes:
    shape = GDNShape(num_k_heads=2, num_v_heads=4)
    if dense:
        return StepSizes(shape, hidden=256, experts=None, top_k=None, routed=None, shared=256)
    return StepSizes(shape, hidden=256, experts=8, top_k=2, routed=128, shared=128)


class DenseWeights(NamedTuple):
    """Weights of a dense feed-forward: gate_up [2·width, hidden], the gate first; down [hidden, width]."""

    gate_up: Linear
    down: Linear

    @property
    def nbytes(self) -> int:
        return self.gate_up.nbytes + self.down.nbytes


@dataclass(frozen=True)
class StepWeights:
    """One decoder layer's weights on one rank, shared by the steps of all configurations. Made by random().

    model: a name in the model table. tp: tensor-parallel GPUs. precision: "fp8" or "bf16". Either experts or dense is
    None. popularity [experts] bf16 is added to the router's logits; None: routing is uniform.
    """

    model: str
    tp: int
    precision: str
    sizes: StepSizes
    device: torch.device
    layer: LayerWeights
    post_norm: torch.Tensor  # [hidden] bf16
    experts: ExpertWeights | None
    dense: DenseWeights | None
    popularity: torch.Tensor | None

    @classmethod
    def random(
        cls,
        model: str,
        tp: int,
        *,
        precision: str = "fp8",
        device=None,
        seed: int = 0,
        toy: bool = False,
        skew: float = 0.0,
        sizes: StepSizes | None = None,
        draw_layer=None,
    ) -> "StepWeights":
        """Draw random weights; the same seed gives the same weights on one kind of device.

        precision: of projections and experts, "fp8" (e4m3, 128 × 128 block scales) or "bf16"; router, in_proj ba and
        norms are always bf16. toy: small sizes, for a CPU. skew: 0 routes uniformly; s > 0 makes the n-th most popular
        expert n^-s times as likely as the first, in random order. sizes: by default the model's. draw_layer: draws the
        weights before the feed-forward, by default a GDN layer's. ValueError for a value that is out of range.
        """
        if not skew >= 0:
            raise ValueError(f"skew: expected 0 (uniform) or more, got {skew}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        sizes, device = sizes or StepSizes.of(model, tp, toy), torch.device(device or "cpu")
        generator = torch.Generator(device).manual_seed(seed)
        options = {"precision": precision, "device": device, "generator": generator}
        layer = (draw_layer or partial(LayerWeights.random, sizes.shape, sizes.hidden))(**options)
        post_norm = torch.empty(sizes.hidden, device=device).uniform_(-0.5, 0.5, generator=generator).bfloat16()
        experts = dense = popularity = None
        if sizes.experts is None:
            dense = DenseWeights(
                gate_up=random_weight(2 * sizes.shared, sizes.hidden, **options),
                down=random_weight(sizes.hidden, sizes.shared, **options),
            )
        else:
            experts = ExpertWeights.random(sizes.hidden, sizes.experts, sizes.routed, sizes.shared, **options)
            if skew:
                popularity = _popularity(sizes.experts, skew, seed).to(device, torch.bfloat16)
        return cls(
            model=model,
            tp=tp,
            precision=precision,
            sizes=sizes,
            device=device,
            layer=layer,
            post_norm=post_norm,
            experts=experts,
            dense=dense,
            popularity=popularity,
        )

    @property
    def shape(self) -> GDNShape:
        return self.sizes.shape

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.layer.nbytes + self.post_norm.nbytes + (self.experts or self.dense).nbytes


def _popularity(experts: int, skew: float, seed: int) -> torch.Tensor:
    """Logits [experts] that make the n-th most popular expert n^-skew times as likely as the first."""
    rank = torch.randperm(experts, generator=torch.Generator().manual_seed(seed)) + 1
    return -skew * rank.double().log()
