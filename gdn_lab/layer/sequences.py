"""Layers whose rows are several tokens of a slot: draft tokens to verify, or packed pieces of prompts.

Each class runs the two parts of a GDN layer that mix tokens; the other parts take every row alike.
"""

from torch import Tensor

from .. import ops


class Drafts:
    """B · tokens rows: `tokens` draft tokens of each slot, one after the other. Leaves states and windows as they are.

    The state after each token and the convolution's inputs go to what pool.reserve_drafts() made, for commit().
    sequence [B · tokens] int32: the slot's row in indices; starts [B + 1] int32: multiples of tokens.
    """

    def __init__(self, tokens: int, backend: str, sequence: Tensor, starts: Tensor):
        self.tokens, self.backend, self.sequence, self.starts = tokens, backend, sequence, starts

    def conv(self, layer) -> None:
        drafts = layer.pool.draft_inputs[: len(layer.indices), :, : self.tokens]
        _conv(self, layer, drafts)

    def gdn(self, layer) -> None:
        rows = (len(layer.indices), self.tokens)
        q, k, v, a, b, out = (x.unflatten(0, rows) for x in (*layer.qkv(), layer.a, layer.b, layer.o))
        ops.verify(
            q,
            k,
            v,
            a,
            b,
            **_gates(layer),
            backend=self.backend,
            out=out,
            intermediate_states=layer.pool.intermediate_states[: rows[0], : self.tokens],
            update_state=False,
        )


class Packed:
    """Rows 0 to tokens - 1 are packed sequences of any length; rows after them are padding.

    sequence [rows] int32: of each row, -1 for padding; starts [n + 1] int32: where sequences begin and end.
    """

    def __init__(self, tokens: int, backend: str, sequence: Tensor, starts: Tensor):
        self.tokens, self.backend, self.sequence, self.starts = tokens, backend, sequence, starts

    def conv(self, layer) -> None:
        _conv(self, layer)

    def gdn(self, layer) -> None:
        inputs = (x[: self.tokens] for x in (*layer.qkv(), layer.a, layer.b))
        ops.prefill(
            *inputs,
            **_gates(layer),
            cu_seqlens=self.starts,
            backend=self.backend,
            out=layer.o[: self.tokens],
        )


class Mixed(Packed):
    """Packed sequences, then one token for each of the slots in `decoding`, then padding.

    decoding [rows] int32: slots, or None for none. indices, bounds: those of the packed sequences alone; the layer's
    indices, sequence and starts also have the rows that decode, as sequences of one token.
    """

    def __init__(self, tokens: int, backend: str, sequence: Tensor, starts: Tensor):
        super().__init__(tokens, backend, sequence, starts)
        self.indices = self.bounds = self.decoding = None

    def gdn(self, layer) -> None:
        if self.decoding is None:
            return super().gdn(layer)
        inputs = (*layer.qkv(), layer.a, layer.b)
        gates = _gates(layer)
        ops.prefill(
            *(x[: self.tokens] for x in inputs),
            **gates | {"indices": self.indices},
            cu_seqlens=self.bounds,
            backend=self.backend,
            out=layer.o[: self.tokens],
        )
        rows = slice(self.tokens, self.tokens + len(self.decoding))
        ops.decode(
            *(x[rows] for x in inputs),
            **gates | {"indices": self.decoding},
            backend=layer.kernels.gdn,
            out=layer.o[rows],
        )


def _conv(self, layer, drafts: Tensor | None = None) -> None:
    layer.kernels.elementwise.conv_sequences(
        layer.mixed,
        layer.pool.conv,
        layer.weights.conv,
        layer.indices,
        self.sequence,
        self.starts,
        layer.conv_out,
        drafts,
    )


def _gates(layer) -> dict:
    return {
        "A_log": layer.weights.A_log,
        "dt_bias": layer.weights.dt_bias,
        "pool": layer.pool,
        "indices": layer.indices,
    }
