"""The mixture of experts of a decode step on one tensor-parallel rank: weights, launches, the reference in PyTorch.

    experts = experts_on(weights, top_k=10, batch=256, fused=True, overlap=True)
    experts.route(x @ weights.router.T)       router logits [B, E] -> each token's experts and their weights
    experts.routed(x, *quantized)             their feed-forwards: silu(x gateᵀ) · (x upᵀ), times downᵀ
    experts.shared(x, *quantized)             the shared expert's; nothing where `fused` runs it as one of the routed
    experts.combine(x, out)                   Σ weight · expert + sigmoid(x · shared_gate) · shared expert

Each step calls all four, once and in this order. inner: an expert's intermediate size on this rank.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import silu

from .experts_tilings import cdiv, has_room, hidden_buffer, power_of_2, tilings
from .fp8 import Linear, dequantize, dequantize_rows, quantize_rows, random_weight
from .workspace import Workspace


class ExpertWeights(NamedTuple):
    """One rank's share of a layer's experts, FP8 or bf16."""

    router: torch.Tensor  # [E, H] bf16
    w13: Linear  # gate and up, [E, 2, inner, H]
    w2: Linear  # down, [E, H, inner]
    shared_w13: Linear  # [1, 2, shared inner, H]
    shared_w2: Linear  # [1, H, shared inner]
    shared_gate: torch.Tensor  # [H] bf16

    @classmethod
    def random(cls, hidden, experts, inner, shared_inner, precision, device=None, generator=None):
        """Draw random weights on `device` that keep the size of activations; precision: "fp8" or "bf16".

        A shared expert as wide as the others is stored after them in one tensor, which `fused` needs.
        """
        options = dict(precision=precision, device=device, generator=generator)
        one_tensor = inner == shared_inner
        w13 = random_weight(experts + one_tensor, 2, inner, hidden, **options)
        w2 = random_weight(experts + one_tensor, hidden, inner, **options)
        if one_tensor:
            shared_w13, shared_w2 = _part(w13, experts, experts + 1), _part(w2, experts, experts + 1)
        else:
            shared_w13 = random_weight(1, 2, shared_inner, hidden, **options)
            shared_w2 = random_weight(1, hidden, shared_inner, **options)
        router = random_weight(experts, hidden, precision="bf16", device=device, generator=generator).data
        gate = random_weight(1, hidden, precision="bf16", device=device, generator=generator).data[0]
        return cls(router, _part(w13, 0, experts), _part(w2, 0, experts), shared_w13, shared_w2, gate)

    @property
    def fp8(self) -> bool:
        return self.w13.scale is not None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self)

    @property
    def can_fuse(self) -> bool:
        """Whether the shared expert is stored right after the last of the others, in one tensor."""
        pairs = (self.w13, self.shared_w13), (self.w2, self.shared_w2)
        return all(_follows(a, b) for pair in pairs for a, b in zip(*pair, strict=True) if a is not None)

    def expert(self, index: int) -> tuple[Linear, Linear]:
        """Return (w13 [2, inner, H], w2 [H, inner]) of one expert; -1: of the shared one."""
        w13, w2 = (self.shared_w13, self.shared_w2) if index < 0 else (self.w13, self.w2)
        index = max(index, 0)
        return Linear(*(t if t is None else t[index] for t in w13)), Linear(*(t if t is None else t[index] for t in w2))


def _part(linear: Linear, start: int, stop: int) -> Linear:
    return Linear(linear.data[start:stop], None if linear.scale is None else linear.scale[start:stop])


def _follows(a: torch.Tensor, b: torch.Tensor | None) -> bool:
    """Whether b starts where a ends, both views of one tensor. Reads no address, so it also serves meta tensors."""
    if b is None or a.shape[1:] != b.shape[1:] or a._base is None or a._base is not b._base:
        return False
    return b.storage_offset() == a.storage_offset() + a.numel()


# ---- in PyTorch ------------------------------------------------------------------------------------------------------


def route_reference(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose each token's experts: logits [B, E] -> (ids int32, weights float64) [B, top_k], largest weight first.

    The weights are a softmax over all experts, of which the top_k are normalised to 1. Of equals the first is taken.
    """
    order = torch.sort(logits.double(), dim=-1, descending=True, stable=True)
    return order.indices[:, :top_k].int(), torch.softmax(order.values[:, :top_k], -1)


def reference(
    x: torch.Tensor,
    weights: ExpertWeights,
    ids: torch.Tensor,
    topk_weights: torch.Tensor,
    quantized: tuple[torch.Tensor, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Compute the experts' output [B, H] in `dtype`, rounding as the kernels do: x to e4m3, h to bf16 and e4m3.

    x [B, H] bf16; quantized: (x8, x_scale) of x, by default computed here.
    """
    rows = expert_rows(x, weights, quantized, dtype)
    out = torch.sigmoid(x.to(dtype) @ weights.shared_gate.to(dtype))[:, None] * rows(-1, slice(None))
    for expert in ids.unique().tolist():
        token, j = torch.where(ids == expert)
        out.index_put_((token,), topk_weights.to(dtype)[token, j, None] * rows(expert, token), accumulate=True)
    return out


def expert_rows(x, weights: ExpertWeights, quantized, dtype):
    """Return a function (expert, or -1 for the shared one; tokens) -> its feed-forward of them, [n, H] in `dtype`."""
    if weights.fp8:
        x = dequantize_rows(*(quantized or quantize_rows(x)), dtype)
    x = x.to(dtype)

    def rows(expert, tokens):
        w13, w2 = weights.expert(expert)
        gate, up = x[tokens] @ dequantize(w13, dtype).mT
        h = (silu(gate) * up).to(torch.bfloat16)
        h = dequantize_rows(*quantize_rows(h), dtype) if weights.fp8 else h.to(dtype)
        return h @ dequantize(w2, dtype).T

    return rows


# ---- launches --------------------------------------------------------------------------------------------------------


def experts_on(
    weights: ExpertWeights,
    top_k: int,
    batch: int,
    *,
    fused: bool,
    overlap: bool,
    workspace: Workspace | None = None,
):
    """Return Experts, in Triton, for weights on a GPU or under Triton's interpreter, else TorchExperts."""
    if weights.router.device.type == "cuda" or kernels_interpreted():
        return Experts(weights, top_k, batch, fused=fused, overlap=overlap, workspace=workspace)
    return TorchExperts(weights, top_k, batch, fused=fused)


def kernels_interpreted() -> bool:
    """Whether Triton was imported under TRITON_INTERPRET=1, so that its kernels run on CPU tensors."""
    try:
        import triton
    except ImportError:
        return False
    return triton.knobs.runtime.interpret


class TorchExperts:
    """The interface of Experts in PyTorch on any device, in float32, expert by expert: for toy sizes."""

    def __init__(self, weights: ExpertWeights, top_k: int, batch: int, *, fused: bool):
        self.model, self.top_k, self.batch, self.fused = weights, top_k, batch, fused
        self.ids = torch.zeros(batch, top_k, dtype=torch.int32, device=weights.router.device)
        self.weights = torch.zeros(batch, top_k, device=weights.router.device)

    def route(self, logits):
        ids, weights = route_reference(logits, self.top_k)
        self.ids.copy_(ids)
        self.weights.copy_(weights)

    def routed(self, x, x8=None, x_scale=None):
        rows = self._rows(x, x8, x_scale)
        self._routed = torch.zeros(x.shape, device=x.device)
        for expert in self.ids.unique().tolist():
            token, j = torch.where(self.ids == expert)
            self._routed[token] += self.weights[token, j, None] * rows(expert, token)
        if self.fused:
            self._shared = rows(-1, slice(None))

    def shared(self, x, x8=None, x_scale=None):
        if not self.fused:
            self._shared = self._rows(x, x8, x_scale)(-1, slice(None))

    def combine(self, x, out):
        gate = torch.sigmoid(x.float() @ self.model.shared_gate.float())
        total = self._routed + gate[:, None] * self._shared
        return out.copy_(total)

    def experts_hit(self) -> int:
        return self.ids.unique().numel()

    def _rows(self, x, x8, x_scale):
        return expert_rows(x, self.model, None if x8 is None else (x8, x_scale), torch.float32)


class Experts:
    """Buffers and launches of one layer's experts for `batch` tokens; a step allocates nothing. Layers that run one
    after the other may share a workspace.

    fused: the shared expert runs in the same launches as the others. overlap: every kernel here uses programmatic
    dependent launch (PDL). After route(), ids and weights [B, top_k] hold each token's experts, largest weight first.
    ValueError where the weights cannot be fused, or for a top_k that is out of range.
    """

    def __init__(
        self,
        weights: ExpertWeights,
        top_k: int,
        batch: int,
        *,
        fused: bool,
        overlap: bool,
        workspace: Workspace | None = None,
    ):
        E, H = weights.router.shape
        inner, shared_inner = weights.w13.data.shape[2], weights.shared_w13.data.shape[2]
        if fused and not weights.can_fuse:
            raise ValueError(
                "fused: the shared expert must be stored after the last of the others in one tensor, and be as wide; "
                "store the weights so, or pass fused=False"
            )
        if not 1 <= top_k <= E:
            raise ValueError(f"top_k: expected 1 to {E}, the number of experts, got {top_k}")
        self.model, self.top_k, self.batch, self.fused, self.overlap = weights, top_k, batch, fused, overlap
        tokens = batch * top_k / E
        roomy = has_room(weights.router.device)
        self.tiling = tilings(min(E, batch * top_k) + fused, tokens, H, inner, weights.fp8, roomy)
        # The shared expert alone takes 16 tokens a slot, which gives the most programs
        self.shared_tiling = tilings(cdiv(batch, 16), 0, H, shared_inner, weights.fp8, roomy)
        # Upper bound on the blocks of tokens: each expert may have one that is not full
        self.slots = min(batch * top_k, E + batch * top_k // self.tiling[0].block_m)

        rows = batch * (top_k + 1)
        take = (workspace or Workspace(weights.router.device)).take
        self.ids = take("expert ids", batch, top_k, dtype=torch.int32)
        self.weights = take("expert weights", batch, top_k, dtype=torch.float32)
        # Must be zero before each step: combine(), the last of a step, resets them
        self.counts = take("expert counts", E + 1, dtype=torch.int32)
        self.work = take("expert work", self.slots, dtype=torch.int32)
        self.lists = take("expert lists", E, batch, dtype=torch.int32)
        self.h = hidden_buffer(self.tiling[0], rows, inner, take)
        self.shared_h = self.h if fused else hidden_buffer(self.shared_tiling[0], rows, shared_inner, take, "shared h")
        self.y = take("expert rows", rows, H)

    def route(self, logits: torch.Tensor) -> None:
        """Choose each token's experts. logits [B, E] bf16 or float32, the last dimension contiguous."""
        from .kernels.experts_kernels import route_kernel

        E = len(self.model.router)
        route_kernel[(self.batch,)](
            logits=logits,
            ids=self.ids,
            weights=self.weights,
            counts=self.counts,
            work=self.work,
            lists=self.lists,
            B=self.batch,
            E=E,
            slots=self.slots,
            row=logits.stride(0),
            TOP_K=self.top_k,
            BLOCK_M=self.tiling[0].block_m,
            BLOCK_TOP=power_of_2(self.top_k),
            BLOCK_E=power_of_2(E),
            OVERLAP=self.overlap,
            num_warps=1,
            launch_pdl=self.overlap,
        )

    def routed(self, x: torch.Tensor, x8: torch.Tensor | None = None, x_scale: torch.Tensor | None = None) -> None:
        """Run the routed experts. x [B, H] bf16; with FP8 weights the kernels read x8 and x_scale instead: x8 [B, H]
        e4m3, contiguous, x_scale [B, H / 128] of any strides."""
        self._launch(
            x=x8 if self.model.fp8 else x,
            x_scale=x_scale,
            w13=self.model.w13,
            w2=self.model.w2,
            h=self.h,
            tiling=self.tiling,
            virtual=cdiv(self.batch, self.tiling[0].block_m) if self.fused else 0,
            slots=self.slots,
        )

    def shared(self, x: torch.Tensor, x8: torch.Tensor | None = None, x_scale: torch.Tensor | None = None) -> None:
        """Run the shared expert, with the arguments of routed(); launches nothing where it is fused."""
        if self.fused:
            return
        self._launch(
            x=x8 if self.model.fp8 else x,
            x_scale=x_scale,
            w13=self.model.shared_w13,
            w2=self.model.shared_w2,
            h=self.shared_h,
            tiling=self.shared_tiling,
            virtual=cdiv(self.batch, self.shared_tiling[0].block_m),
            slots=0,
        )

    def combine(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write the weighted sum to out [B, H] and return it; x [B, H] bf16, for the shared expert's gate."""
        from .kernels.experts_kernels import combine_kernel

        E, H = self.model.router.shape
        chunk = min(1024 if self.batch <= 64 else 4096, power_of_2(H))
        combine_kernel[(cdiv(H, chunk), self.batch)](
            x=x,
            shared_gate=self.model.shared_gate,
            y=self.y,
            weights=self.weights,
            out=out,
            counts=self.counts,
            B=self.batch,
            E=E,
            H=H,
            TOP_K=self.top_k,
            CHUNK=chunk,
            BLOCK_H=power_of_2(H),
            BLOCK_E=power_of_2(E + 1),
            OVERLAP=self.overlap,
            num_warps=max(1, chunk // 512),
            launch_pdl=self.overlap,
        )
        return out

    def experts_hit(self) -> int:
        """Number of experts that at least one token of the last step chose. Waits for the GPU."""
        return self.ids.unique().numel()

    def _launch(self, *, x, x_scale, w13: Linear, w2: Linear, h, tiling, virtual: int, slots: int) -> None:
        """Launch both products. x [B, H] as the weights need it; slots 0: only the shared expert's virtual slots."""
        from .kernels.experts_kernels import down_kernel, gate_up_kernel

        up, down = tiling
        E, H = self.model.router.shape
        inner, fp8 = w13.data.shape[2], w13.scale is not None
        scale = x_scale if fp8 else x  # not read without FP8
        common = dict(
            counts=self.counts,
            work=self.work,
            lists=self.lists,
            h=h,
            B=self.batch,
            E=E,
            H=H,
            inner=inner,
            top_k=self.top_k,
            virtual=virtual,
            shared_at=E if slots else 0,
            BLOCK_M=up.block_m,
            SPLIT=up.split,
            FP8=fp8,
            OVERLAP=self.overlap,
            launch_pdl=self.overlap,
        )
        gate_up_kernel[(inner // up.tile * up.split, virtual + slots)](
            x=x,
            x_scale=scale,
            w=w13.data,
            w_scale=w13.scale if fp8 else w13.data,
            x_scale_row=scale.stride(0),
            x_scale_group=scale.stride(1),
            TILE=up.tile,
            BLOCK_K=up.block_k,
            SUB=up.sub,
            num_warps=up.warps,
            num_stages=up.stages,
            **common,
        )
        down_kernel[(cdiv(H, down.tile * down.tiles), virtual + slots)](
            w=w2.data,
            w_scale=w2.scale if fp8 else w2.data,
            y=self.y,
            tiles=down.tiles,
            TILE=down.tile,
            BLOCK_K=down.block_k,
            WHOLE=down.block_k == inner,
            num_warps=down.warps,
            num_stages=down.stages,
            **common,
        )
