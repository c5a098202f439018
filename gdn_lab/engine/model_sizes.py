"""Sizes of a whole model on one tensor-parallel rank.

Every fourth layer is full attention, the others are GDN. Sizes of attention heads that the model table lacks are the
same for all its models (Qwen3-Next's and Qwen3.5's configuration files).
"""

from typing import NamedTuple

from ..layer.weights import StepSizes
from ..models import GDNShape, model

HEAD_DIM = 256  # of full attention
ROTARY = 64  # channels of a head that the rotary embedding turns: a quarter
THETA = 1e7  # its base
ATTENTION_EVERY = 4
TOY_VOCAB, TOY_HEAD_DIM, TOY_ROTARY, TOY_LAYERS = 512, 128, 32, 4


class AttentionSizes(NamedTuple):
    """Full attention on one rank. Key and value heads are replicated where there are fewer than ranks."""

    q_heads: int
    kv_heads: int
    head_dim: int
    rotary: int

    @property
    def qkv_rows(self) -> int:
        """Rows of the projection: queries, their gates, keys, values."""
        return 2 * (self.q_heads + self.kv_heads) * self.head_dim


class ModelSizes(NamedTuple):
    """step: of a layer on this rank. vocab, kv_heads: of the whole model; vocab_rank: rows of this rank's head."""

    name: str
    tp: int
    step: StepSizes
    attention: AttentionSizes
    layers: int
    vocab: int
    vocab_rank: int
    kv_heads: int

    @classmethod
    def of(cls, name: str, tp: int, *, toy: bool = False, layers: int | None = None) -> "ModelSizes":
        """Sizes of a model in the table. ValueError if `tp` ranks cannot share it evenly, or it has fewer layers."""
        entry = model(name)
        most = TOY_LAYERS if toy else entry.layers
        if layers is not None and (type(layers) is not int or not 1 <= layers <= most):
            raise ValueError(f"layers: expected 1 to {most}, or None for all, got {layers!r}")
        dense, ranks = entry.experts is None, max(2, tp)
        step = _toy_step(dense, ranks, tp) if toy else StepSizes.of(name, tp)
        q, kv = (2 * ranks, 2 if dense else 1) if toy else (entry.attn_q_heads, entry.attn_kv_heads)
        vocab = TOY_VOCAB if toy else entry.vocab
        if kv % tp and tp % kv:
            raise ValueError(f"tp: {name} has {kv} key heads in full attention, which {tp} GPUs cannot share evenly")
        for what, size in (("query heads in full attention", q), ("tokens in its vocabulary", vocab)):
            if size % tp:
                raise ValueError(f"tp: {name} has {size} {what}, which {tp} GPUs cannot share evenly")
        head_dim, rotary = (TOY_HEAD_DIM, TOY_ROTARY) if toy else (HEAD_DIM, ROTARY)
        attention = AttentionSizes(q // tp, max(1, kv // tp), head_dim, rotary)
        return cls(name, tp, step, attention, layers or most, vocab, vocab // tp, kv)

    def whole_toy(self) -> "ModelSizes":
        """The sizes of a toy before its ranks share it."""
        dense, ranks = self.step.experts is None, max(2, self.tp)
        attention = self.attention._replace(q_heads=2 * ranks, kv_heads=self.kv_heads)
        step = _toy_step(dense, ranks, 1)
        return self._replace(tp=1, step=step, attention=attention, vocab_rank=self.vocab)

    @property
    def is_attention(self) -> tuple[bool, ...]:
        """Whether each layer is full attention: every fourth."""
        return tuple((number + 1) % ATTENTION_EVERY == 0 for number in range(self.layers))

    @property
    def gdn_layers(self) -> int:
        """Number of GDN layers."""
        return self.layers - self.attention_layers

    @property
    def attention_layers(self) -> int:
        """Number of full-attention layers."""
        return sum(self.is_attention)


def _toy_step(dense: bool, ranks: int, tp: int) -> StepSizes:
    """A share of a small layer made for `ranks` ranks; each rank's is whole heads and FP8 blocks."""
    if ranks % tp or ranks & (ranks - 1):
        raise ValueError(f"tp: a toy model runs on a power of 2 ranks, got {tp}")
    shape, width = GDNShape(ranks // tp, 2 * ranks // tp), 128 * ranks // tp
    if dense:
        return StepSizes(shape, hidden=256, experts=None, top_k=None, routed=None, shared=width)
    return StepSizes(shape, hidden=256, experts=8, top_k=2, routed=width, shared=width)
