"""All layers of a model for the tokens of one call, from embedding to final norm, and the head that chooses tokens."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..layer import layer_reference
from ..layer.feed_forward import FeedForward
from ..layer.gdn_layer import Activation, GDNLayer, Kernels, Projection
from ..layer.workspace import Workspace
from ..pool import StatePool
from ..trace.ranges import nvtx_range
from .attention_layer import AttentionLayer
from .communicator import Communicator
from .kv_cache import PagedCache
from .model_weights import ModelWeights
from .sampling import SamplingRows, sampler_of
from .token_rows import TokenRows

GDN_LAYER, ATTENTION_LAYER = "GDN layer", "attention layer"
EMBEDDING, HEAD = "embedding", "head and sampler"
ROWS = 16  # of an activation are a multiple of it


class ModelParts(NamedTuple):
    """What all calls of a model share. shares: memory for a layer's two results, which are summed over ranks."""

    weights: ModelWeights
    kernels: Kernels
    pools: tuple[StatePool, ...]
    cache: PagedCache
    table: tuple[Tensor, Tensor]
    communicator: Communicator
    shares: tuple[Tensor, Tensor] | None


class SummedNorm:
    """add_norm() of an x that is a rank's share: summed over ranks first, unless `alone`, as where a layer is timed."""

    def __init__(self, communicator: Communicator, add_norm):
        self.communicator, self.add_norm, self.alone = communicator, add_norm, False

    def __call__(self, x, residual, weight, residual_out, y, y8=None, y_scale=None, *, overlap=False):
        add_norm = partial(self.add_norm, overlap=overlap)
        if self.alone or self.communicator.size == 1:
            return add_norm(x, residual, weight, residual_out, y, y8, y_scale)
        self.communicator.all_reduce_add_norm(x, residual, weight, residual_out, y, y8, y_scale, add_norm=add_norm)


class DecoderLayer:
    """A GDN or attention layer with its feed-forward. kind: GDN_LAYER or ATTENTION_LAYER."""

    def __init__(self, kind: str, mixer, feed_forward: FeedForward):
        self.kind, self.mixer, self.feed_forward = kind, mixer, feed_forward

    def __call__(self, ahead: "DecoderLayer | None") -> None:
        """Run the layer on the result of the one before; None: on the x and residual that it has."""
        if ahead is not None:
            self.mixer.x, self.mixer.residual = ahead.feed_forward.out, ahead.feed_forward.residual_out
        with nvtx_range(self.kind):
            for part, run in self.mixer.stages:
                with nvtx_range(part):
                    run()
            if ahead is not None:
                self.mixer.x = ahead.feed_forward.out = None  # the feed-forward may take its memory
            for part, run in self.feed_forward.stages:
                with nvtx_range(part):
                    run()
        self.mixer.forget()
        self.feed_forward.forget()


class Decoder:
    """The layers for the tokens of `rows`; running it embeds `tokens` [N] int64 and leaves `hidden`.

    sequences: as of a GDNLayer. hidden: an Activation, bf16, the final norm's output.
    """

    def __init__(self, parts: ModelParts, rows: TokenRows, tokens: Tensor, workspace: Workspace, sequences=None):
        weights, kernels = parts.weights, parts.kernels
        self.parts, self.rows, self.tokens, self.workspace, self.sequences = parts, rows, tokens, workspace, sequences
        N, hidden = len(tokens), weights.sizes.step.hidden
        self.x = workspace.take("embedded", N, hidden)
        self.nothing = workspace.take("no residual", N, hidden)  # zeros, never written
        self.summed = SummedNorm(parts.communicator, kernels.elementwise.add_norm)
        self.layers = self._layers()
        self.hidden = Activation(N, hidden, False, workspace=workspace, name="final")
        self.residual_out = workspace.take("residual", N, hidden)

    def _layers(self) -> tuple[DecoderLayer, ...]:
        parts, N, made, counts = self.parts, len(self.tokens), [], {GDN_LAYER: 0, ATTENTION_LAYER: 0}
        padded = -(-N // ROWS) * ROWS
        shares = (None, None) if parts.shares is None else tuple(share[:padded] for share in parts.shares)
        for weights, is_attention in zip(parts.weights.layers, parts.weights.sizes.is_attention, strict=True):
            kind = ATTENTION_LAYER if is_attention else GDN_LAYER
            options = {
                "workspace": self.workspace,
                "memory": shares[0],
                "add_norm": self.summed if made else None,  # the embedding is whole on every rank
            }
            build = self._attention if is_attention else self._gdn
            mixer = build(weights.layer, counts[kind], options)
            forward = FeedForward(
                weights,
                parts.kernels,
                mixer,
                N,
                workspace=self.workspace,
                result=shares[1],
                add_norm=self.summed,
            )
            made.append(DecoderLayer(kind, mixer, forward))
            counts[kind] += 1
        return tuple(made)

    def _gdn(self, weights, number: int, options: dict) -> GDNLayer:
        pool, indices = self.parts.pools[number], self.rows.indices
        return GDNLayer(
            weights, self.parts.kernels, pool, indices, self.x, self.nothing, sequences=self.sequences, **options
        )

    def _attention(self, weights, number: int, options: dict) -> AttentionLayer:
        parts = self.parts
        return AttentionLayer(
            weights,
            parts.weights.sizes.attention,
            parts.kernels,
            self.rows,
            (parts.cache.k[number], parts.cache.v[number]),
            parts.table,
            self.x,
            self.nothing,
            **options,
        )

    def set_rows(self, rows: TokenRows) -> None:
        """Take other sequences in the next run, as many tokens."""
        self.rows = rows
        for layer in self.layers:
            if layer.kind == GDN_LAYER:
                layer.mixer.indices = rows.indices
            else:
                layer.mixer.rows = rows

    def __call__(self) -> None:
        self.embed()
        self.run_layers(self.layers)
        self.norm()

    def embed(self) -> None:
        """Look up the tokens."""
        with nvtx_range(EMBEDDING):
            torch.index_select(self.parts.weights.embedding, 0, self.tokens, out=self.x)

    def run_layers(self, layers) -> None:
        """Run layers one after the other, the first one on the embedded tokens."""
        layers[0].mixer.x, layers[0].mixer.residual = self.x, self.nothing
        for ahead, layer in zip((None, *layers), layers, strict=False):
            layer(ahead)

    def norm(self) -> None:
        """The final norm of the last layer's result."""
        last = self.layers[-1].feed_forward
        with nvtx_range(HEAD):
            self.summed(last.out, last.residual_out, self.parts.weights.final_norm, self.residual_out, self.hidden.live)


class TokenHead:
    """Chooses the next token of up to `rows` hidden rows: the largest logit over all ranks, of equals the first.

    Where the call names SamplingRows (sampling.py), rows whose temperature is above 0 draw theirs instead.
    """

    def __init__(self, parts: ModelParts, rows: int, workspace: Workspace):
        self.parts, padded = parts, -(-rows // ROWS) * ROWS
        self.project = Projection(parts.weights.head, parts.kernels, padded, workspace)
        self.logits = workspace.take("logits", padded, parts.weights.sizes.vocab_rank)

    def __call__(
        self, hidden: Tensor, rows: int, sampling: SamplingRows | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """hidden [rows padded to 16, hidden] bf16 -> tokens [rows] int64. positions [rows] int32: of the tokens fed."""
        with nvtx_range(HEAD):
            logits = self.project(hidden, out=self.logits)[:rows]
            token = self._most_likely(logits)
            if sampling is not None:
                whole = logits if self.parts.communicator.size == 1 else self.parts.communicator.all_gather(logits)
                sampler_of(self.parts.kernels.elementwise is layer_reference)(whole, token, sampling, positions)
            return token

    def _most_likely(self, logits: Tensor) -> Tensor:
        """The token with the largest logit over all ranks."""
        largest, token = logits.max(-1)
        communicator, vocab = self.parts.communicator, self.parts.weights.sizes.vocab_rank
        if communicator.size == 1:
            return token
        # float32 holds every token's number exactly
        pair = torch.stack((largest.float(), (token + communicator.rank * vocab).float()), -1)
        found = communicator.all_gather(pair).view(len(logits), communicator.size, 2)
        best = found[:, :, 0].argmax(1, keepdim=True)
        return found[:, :, 1].gather(1, best)[:, 0].long()
