"""One GDN layer at decode, with random weights at a model's sizes, from norm to output projection.

    input norm     residual += x; RMSNorm
    in_proj qkvz   [q, k, v | z] = y Wᵀ, FP8 or bf16
    in_proj ba     [b | a] = y Wᵀ, bf16
    split          copies q, k, v, z, b, a to contiguous tensors; not needed where the next kernels read views
    conv           causal convolution of width 4 and SiLU; updates its window in the pool, in place by index
    gdn            decode() on the pool
    gated norm     RMSNorm(o) · SiLU(z) of each head
    out_proj       o Wᵀ: this rank's share, which an all-reduce sums over the ranks

Where `fused` and can_join(), in_proj ba and conv of one token a row are one launch, conv's.

A product with an FP8 weight takes its activation as e4m3 with a scale for each token and 128 channels. A kernel of its
own quantises it, or, where `fused`, the norm before it does.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..models import GDNShape
from ..pool import StatePool
from . import layer_reference
from .fp8 import BLOCK, E4M3, Linear, blocks, random_weight
from .workspace import Workspace

LAYER_PARTS = ("input norm", "in_proj qkvz", "in_proj ba", "split", "conv", "gdn", "gated norm", "out_proj")
CONV_WIDTH = 4
ROWS = 16  # activations are padded to a multiple of this many rows: torch's scaled products need it

Stage = tuple[str, Callable[[], object]]  # a part's name, and the function that runs it


class Kernels(NamedTuple):
    """What a layer runs.

    gdn: the `backend` of decode(). elementwise: the module with norms, quantisation, split, convolution and SiLU,
    kernels/elementwise.py or layer_reference.py. fused: norms quantise, nothing is split, and products of few rows run
    kernels/projections.py. overlap: launches use programmatic dependent launch (PDL). torch_fp8: torch has a product
    with block scales here; where it has none, FP8 products also run kernels/projections.py.
    """

    gdn: str
    elementwise: object
    fused: bool
    overlap: bool
    torch_fp8: bool


class LayerWeights(NamedTuple):
    """Weights of a GDN layer on one rank, bf16 unless said otherwise.

    norm [hidden]; in_qkvz [conv_dim + HV·V, hidden], FP8 or bf16; in_ba [2·HV, hidden], b first; conv [conv_dim, 4];
    A_log, dt_bias [HV] float32; gated_norm [V]; out [hidden, HV·V], FP8 or bf16.
    """

    norm: Tensor
    in_qkvz: Linear
    in_ba: Tensor
    conv: Tensor
    A_log: Tensor
    dt_bias: Tensor
    gated_norm: Tensor
    out: Linear

    @classmethod
    def random(cls, shape: GDNShape, hidden: int, *, precision: str, device=None, generator=None) -> "LayerWeights":
        """Draw random weights; A is uniform in 1–16, as models are initialised. precision: of in_qkvz and out."""
        HV, V = shape.num_v_heads, shape.head_v_dim
        weight = partial(random_weight, device=device, generator=generator)

        def uniform(*size, low, high):
            return torch.empty(*size, device=device).uniform_(low, high, generator=generator)

        return cls(
            norm=uniform(hidden, low=-0.5, high=0.5).bfloat16(),
            in_qkvz=weight(shape.conv_dim + HV * V, hidden, precision=precision),
            in_ba=weight(2 * HV, hidden, precision="bf16").data,
            conv=uniform(shape.conv_dim, CONV_WIDTH, low=-0.5, high=0.5).bfloat16(),
            A_log=uniform(HV, low=1, high=16).log_(),
            dt_bias=uniform(HV, low=-4, high=1),
            gated_norm=uniform(V, low=0.5, high=1.5).bfloat16(),
            out=weight(hidden, HV * V, precision=precision),
        )

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self)


class Projection:
    """y = x Wᵀ for few rows: bf16 [rows, N], rows a multiple of 16. by: what computes it, "torch" or "triton".

    workspace: for what the product keeps while it runs, under `name`, as Scratch.of(). A call allocates its result
    unless it is given `out`.
    """

    def __init__(self, weight: Linear, kernels: Kernels, rows: int, workspace: Workspace | None = None, name: str = ""):
        self.weight, self.overlap, self.by = weight, kernels.overlap, "torch"
        fp8 = weight.scale is not None
        if kernels.elementwise is layer_reference:
            self.run = partial(layer_reference.project, weight=weight)
            return
        from .kernels.projections import Scratch, linear, worth_it

        if fp8 and not kernels.torch_fp8 or kernels.fused and worth_it(rows, *weight.data.shape):
            self.linear, self.scratch, self.by = linear, Scratch.of(rows, weight, workspace, name), "triton"
            self.run = self._triton
        elif fp8:
            # [N / 128, K / 128] with rows padded to a multiple of 4, given transposed: cuBLAS's form
            padded = torch.nn.functional.pad(weight.scale, (0, -weight.scale.shape[1] % 4))
            self.scale = padded.contiguous().T
            self.run = self._scaled
        else:
            self.run = self._bf16

    def __call__(self, x: Tensor, x8: Tensor | None = None, x_scale: Tensor | None = None, out: Tensor | None = None):
        return self.run(x, x8, x_scale, out=out)

    def _bf16(self, x, x8, x_scale, out=None):
        return torch.mm(x, self.weight.data.T, out=out)

    def _scaled(self, x, x8, x_scale, out=None):
        from torch.nn.functional import ScalingType, scaled_mm

        y = scaled_mm(
            x8,
            self.weight.data.T,
            x_scale,
            ScalingType.BlockWise1x128,
            self.scale,
            ScalingType.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )
        return y if out is None else out.copy_(y)  # scaled_mm has no out

    def _triton(self, x, x8, x_scale, out=None):
        if out is None:
            out = torch.empty(len(x), self.weight.data.shape[0], dtype=torch.bfloat16, device=x.device)
        x = x if self.weight.scale is None else x8
        return self.linear(x, x_scale, self.weight, out, scratch=self.scratch, overlap=self.overlap)


def can_join(rows: int, columns: int) -> bool:
    """Whether in_proj ba, [rows, columns], is small enough that its programs leave the convolution's room on an SM."""
    return rows <= 16 or columns <= 64


class Activation:
    """Buffers for an activation of `rows` tokens, padded to a multiple of 16 rows, whose contents never matter.

    y [padded, N] bf16; with FP8 also y8 [padded, N] e4m3 and scale [padded, N / 128] float32, the token fastest in
    memory.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        fp8: bool,
        device=None,
        *,
        workspace: Workspace | None = None,
        name: str = "activation",
    ):
        padded = -(-rows // ROWS) * ROWS
        take = (workspace or Workspace(device)).take
        self.rows = rows
        self.y = take(name, padded, columns)
        self.y8 = self.scale = None
        if fp8:
            self.y8 = take(f"{name} fp8", padded, columns, dtype=torch.uint8).view(E4M3)
            self.scale = take(f"{name} scale", blocks(columns), padded, dtype=torch.float32).fill_(1).T

    @property
    def live(self) -> Tensor:
        """The tokens' rows of y, without padding."""
        return self.y[: self.rows]

    @property
    def padded(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(y, y8, scale), as a Projection takes them."""
        return self.y, self.y8, self.scale

    @property
    def unpadded(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(y, y8, scale) without padding."""
        return tuple(x if x is None else x[: self.rows] for x in self.padded)

    def quantized(self) -> dict[str, Tensor]:
        """The arguments y8 and y_scale of a kernel that also writes the activation as FP8; none without FP8."""
        return {} if self.y8 is None else {"y8": self.y8, "y_scale": self.scale}


class GDNLayer:
    """The layer for one batch. Running `stages` in order runs it; each part's result stays in an attribute.

    x, residual [B, hidden] bf16: the output of the layer before. indices [B] int32: slots of `pool`. sequences: how
    rows are several tokens of a slot (sequences.py); None: B rows are B slots' next tokens. workspace: shared by layers
    that run one after the other; by default its own. memory [B padded to 16, hidden]: for the result. add_norm: in
    place of elementwise's, where x is to be summed over ranks first.
    residual_out and result [B, hidden] bf16: this layer's output; result is this rank's share, before the all-reduce.
    """

    def __init__(
        self,
        weights: LayerWeights,
        kernels: Kernels,
        pool: StatePool,
        indices,
        x: Tensor,
        residual: Tensor,
        *,
        sequences=None,
        workspace: Workspace | None = None,
        memory: Tensor | None = None,
        add_norm: Callable | None = None,
    ):
        batch, hidden = x.shape
        shape, device, fp8 = pool.shape, x.device, weights.in_qkvz.scale is not None
        HV, V = shape.num_v_heads, shape.head_v_dim
        if fp8 and V != BLOCK:
            raise ValueError(f"head_v_dim: expected {BLOCK}, the channels that share an FP8 scale, got {V}")
        self.weights, self.kernels, self.pool, self.indices = weights, kernels, pool, indices
        self.x, self.residual, self.batch, self.sequences, self.memory = x, residual, batch, sequences, memory
        self.add_norm = add_norm or kernels.elementwise.add_norm
        workspace = workspace or Workspace(device)
        take = workspace.take
        self.residual_out = take("residual", batch, hidden)
        self.normed = Activation(batch, hidden, fp8, workspace=workspace, name="normed")
        self.gated = Activation(batch, HV * V, fp8, workspace=workspace, name="gated")
        self.mixed, self.z = take("mixed", batch, shape.conv_dim), take("z", batch, HV * V)
        self.b, self.a = take("b", batch, HV), take("a", batch, HV)
        self.conv_out, self.o = take("conv", batch, shape.conv_dim), take("o", batch, HV, V)
        self.channels = shape.conv_dim, HV * V
        self.forget()
        rows = len(self.normed.y)
        self.in_qkvz, self.out = (
            Projection(weight, kernels, rows, workspace) for weight in (weights.in_qkvz, weights.out)
        )
        # joined, it runs beside in_qkvz and must share nothing with it
        self.in_ba = Projection(Linear(weights.in_ba), kernels, rows, workspace, "in_ba ")
        self.joined = kernels.fused and sequences is None and self.in_ba.by == "triton" and can_join(rows, 2 * HV)
        self.gdn = partial(
            ops.decode,
            A_log=weights.A_log,
            dt_bias=weights.dt_bias,
            pool=pool,
            indices=indices,
            backend=kernels.gdn,
            out=self.o,
        )
        self.stages = self._stages()

    def forget(self) -> None:
        """Drop the results that products allocate in each run, for the next layer to use their memory."""
        self.qkvz = self.ba = self.projected = self.result = None
        if self.kernels.fused:
            self.mixed = self.z = self.b = self.a = None  # views of them

    def _stages(self) -> tuple[Stage, ...]:
        w, elementwise = self.weights, self.kernels.elementwise
        fused, overlap = self.kernels.fused, self.kernels.overlap
        fp8 = w.in_qkvz.scale is not None

        def input_norm():
            self.add_norm(
                self.x,
                self.residual,
                w.norm,
                self.residual_out,
                self.normed.live,
                **(self.normed.quantized() if fused else {}),
                overlap=overlap,
            )

        def in_qkvz():
            if fp8 and not fused:
                elementwise.quantize(self.normed.live, self.normed.y8, self.normed.scale)
            self.qkvz = self.in_qkvz(*self.normed.padded)
            if fused:
                self._take_views()

        def in_ba():
            if self.joined:
                return  # conv's launch runs it
            self.ba = self.in_ba(self.normed.y)
            if fused:
                self.b, self.a = self.ba[: self.batch].chunk(2, dim=1)

        def split():
            if not fused:
                elementwise.split(self.qkvz, self.ba, self.mixed, self.z, self.b, self.a)

        def conv():
            if self.sequences is not None:
                return self.sequences.conv(self)
            if self.joined:
                return self._conv_and_gates()
            elementwise.conv_update(self.mixed, self.pool.conv, w.conv, self.indices, self.conv_out, overlap=overlap)

        def gated_norm():
            quantized = self.gated.quantized() if fused else {}
            outputs = quantized or {"y": self.gated.live}
            elementwise.gated_norm(self.o, self.z, w.gated_norm, **outputs, overlap=overlap)

        def out_proj():
            if fp8 and not fused:
                elementwise.quantize(self.gated.live, self.gated.y8, self.gated.scale)
            self.projected = self.out(*self.gated.padded, out=self.memory)
            self.result = self.projected[: self.batch]

        parts = (input_norm, in_qkvz, in_ba, split, conv, self._gdn, gated_norm, out_proj)
        return tuple(zip(LAYER_PARTS, parts, strict=True))

    def _conv_and_gates(self):
        from .kernels.conv_and_gates import conv_and_gates

        self.ba = torch.empty(len(self.normed.y), len(self.weights.in_ba), dtype=torch.bfloat16, device=self.x.device)
        self.b, self.a = self.ba[: self.batch].chunk(2, dim=1)
        conv_and_gates(
            self.normed.y,
            self.weights.in_ba,
            self.ba,
            self.mixed,
            self.pool.conv,
            self.weights.conv,
            self.indices,
            self.conv_out,
            scratch=self.in_ba.scratch,
            overlap=self.kernels.overlap,
        )

    def _take_views(self):
        self.mixed, self.z = self.qkvz[: self.batch].split(self.channels, dim=1)

    def _gdn(self):
        if self.sequences is not None:
            return self.sequences.gdn(self)
        q, k, v = self.qkv()
        self.gdn(q, k, v, self.a, self.b)

    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k [B, HK, K] and v [B, HV, V]: views of the convolution's output."""
        s = self.pool.shape
        q, k, v = self.conv_out.split([s.num_k_heads * s.head_k_dim] * 2 + [s.num_v_heads * s.head_v_dim], dim=1)
        heads = (self.batch, -1, s.head_k_dim)
        return q.view(heads), k.view(heads), v.view(self.batch, s.num_v_heads, s.head_v_dim)
