"""A full-attention layer with random weights at a model's sizes, from norm to output projection.

input norm     residual += x; RMSNorm
in_proj qkv    [q, gate, k, v] = y Wᵀ, FP8 or bf16
rotary         RMSNorm and rotary embedding of each head of q and k; k and v go to the paged cache
attention      softmax(q kᵀ / √D) v · sigmoid(gate), over the cache
out_proj       o Wᵀ: this rank's share, which an all-reduce sums over the ranks
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..layer import layer_reference
from ..layer.fp8 import Linear, random_weight
from ..layer.gdn_layer import Activation, Kernels, Projection, Stage
from ..layer.workspace import Workspace
from . import attention_reference
from .model_sizes import AttentionSizes
from .token_rows import TokenRows

ATTENTION_PARTS = ("input norm", "in_proj qkv", "rotary", "attention", "out_proj")


class AttentionWeights(NamedTuple):
    """Weights on one rank, bf16 unless said otherwise: HQ query heads, HKV key heads, D channels.

    norm [hidden]; qkv [(2·HQ + 2·HKV)·D, hidden]: q, gate, k, v, FP8 or bf16; q_norm, k_norm [D]; out [hidden, HQ·D].
    """

    norm: Tensor
    qkv: Linear
    q_norm: Tensor
    k_norm: Tensor
    out: Linear

    @classmethod
    def random(cls, sizes: AttentionSizes, hidden: int, *, precision: str, device=None, generator=None):
        """Draw random weights. precision: of qkv and out."""
        options = {"precision": precision, "device": device, "generator": generator}

        def norm(size):
            return torch.empty(size, device=device).uniform_(-0.5, 0.5, generator=generator).bfloat16()

        return cls(
            norm=norm(hidden),
            qkv=random_weight(sizes.qkv_rows, hidden, **options),
            q_norm=norm(sizes.head_dim),
            k_norm=norm(sizes.head_dim),
            out=random_weight(hidden, sizes.q_heads * sizes.head_dim, **options),
        )

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self)


class AttentionLayer:
    """The layer for the tokens of `rows`. Running `stages` in order runs it, like a GDNLayer.

    pages: (k, v) of this layer in the cache. table: cos and sin of the rotary embedding for max_length positions.
    x, residual, workspace, memory, add_norm, residual_out, result: as of a GDNLayer.
    """

    def __init__(
        self,
        weights: AttentionWeights,
        sizes: AttentionSizes,
        kernels: Kernels,
        rows: TokenRows,
        pages: tuple[Tensor, Tensor],
        table: tuple[Tensor, Tensor],
        x: Tensor,
        residual: Tensor,
        *,
        workspace: Workspace,
        memory: Tensor | None = None,
        add_norm: Callable | None = None,
    ):
        batch, hidden = x.shape
        fp8, width = weights.qkv.scale is not None, sizes.q_heads * sizes.head_dim
        self.weights, self.kernels, self.rows, self.pages, self.table = weights, kernels, rows, pages, table
        self.x, self.residual, self.batch, self.memory = x, residual, batch, memory
        self.add_norm = add_norm or kernels.elementwise.add_norm
        self.residual_out = workspace.take("residual", batch, hidden)
        self.normed = Activation(batch, hidden, fp8, workspace=workspace, name="normed")
        self.gated = Activation(batch, width, fp8, workspace=workspace, name="attended")
        self.q = workspace.take("q", batch, sizes.q_heads, sizes.head_dim)
        self.in_qkv, self.out = (
            Projection(weight, kernels, len(self.normed.y), workspace) for weight in (weights.qkv, weights.out)
        )
        self.attend = partial(_attention(kernels).attend, take=workspace.take, max_length=len(table[0]))
        self.forget()
        self.stages = self._stages()

    def forget(self) -> None:
        """Drop the results that products allocate in each run, for the next layer to use their memory."""
        self.qkv = self.projected = self.result = None

    def _stages(self) -> tuple[Stage, ...]:
        w, elementwise, fused = self.weights, self.kernels.elementwise, self.kernels.fused
        fp8 = w.qkv.scale is not None

        def input_norm():
            self.add_norm(
                self.x,
                self.residual,
                w.norm,
                self.residual_out,
                self.normed.live,
                **(self.normed.quantized() if fused else {}),
                overlap=self.kernels.overlap,
            )

        def in_qkv():
            if fp8 and not fused:
                elementwise.quantize(self.normed.live, self.normed.y8, self.normed.scale)
            self.qkv = self.in_qkv(*self.normed.padded)

        def rotary():
            store = _attention(self.kernels).store_qkv
            store(self.qkv, w.q_norm, w.k_norm, self.table, self.rows, self.q, *self.pages)

        def attention():
            outputs = self.gated.quantized() if fused else {}
            self.attend(self.q, self.qkv, *self.pages, self.rows, self.gated.live, **outputs)

        def out_proj():
            if fp8 and not fused:
                elementwise.quantize(self.gated.live, self.gated.y8, self.gated.scale)
            self.projected = self.out(*self.gated.padded, out=self.memory)
            self.result = self.projected[: self.batch]

        return tuple(zip(ATTENTION_PARTS, (input_norm, in_qkv, rotary, attention, out_proj), strict=True))


def _attention(kernels: Kernels):
    """The module with store_qkv() and attend()."""
    if kernels.elementwise is layer_reference:
        return attention_reference
    from . import attention_kernels

    return attention_kernels
