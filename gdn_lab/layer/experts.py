"""The mixture of experts of a decode step on one tensor-parallel rank: weights, launches, the reference in PyTorch.

    experts = experts_on(weights, top_k=10, batch=256, fused=True, overlap=True)
    experts.route(x @ weights.router.T)       router logits [B, E] -> each token's experts and their weights
    experts.routed(x, *quantized)             their feed-forwards: silu(x gateᵀ) · (x upᵀ), times downᵀ
    experts.shared(x, *quantized)             the shared expert's; nothing where `fused` has it among the routed
    experts.combine(x, out)                   Σ weight · expert + sigmoid(x · shared_gate) · shared expert

The four are called in this order, each once a step. inner: an expert's intermediate size on this rank.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import silu

from .experts_tilings import cdiv, has_room, hidden_buffer, power_of_2, tilings
from .fp8 import Linear, dequantize, dequantize_rows, quantize_rows, random_weight


class ExpertWeights(NamedTuple):
    """One rank's share of a layer's experts. FP8 or bf16, as fp8.Linear says."""

    router: torch.Tensor  # [E, H] bf16
    w13: Linear  # gate and up, [E, 2, inner, H]
    w2: Linear  # down, [E, H, inner]
    shared_w13: Linear  # [1, 2, shared inner, H]
    shared_w2: Linear  # [1, H, shared inner]
    shared_gate: torch.Tensor  # [H] bf16

    @classmethod
    def random(cls, hidden, experts, inner, shared_inner, precision, device=None, generator=None):
        """Random weights, made on `device`; precision "fp8" or "bf16". Activations keep their size through them.

        Where the shared expert is as wide as the others it lies behind them in one tensor, as `fused` wants it.
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
        """Whether the shared expert lies behind the last of the others, as one more."""
        pairs = (self.w13, self.shared_w13), (self.w2, self.shared_w2)
        return all(_follows(a, b) for pair in pairs for a, b in zip(*pair, strict=True) if a is not None)

    def expert(self, index: int) -> tuple[Linear, Linear]:
        """(w13 [2, inner, H], w2 [H, inner]) of one expert; -1: the shared one."""
        w13, w2 = (self.shared_w13, self.shared_w2) if index < 0 else (self.w13, self.w2)
        index = max(index, 0)
        return Linear(*(t if t is None else t[index] for t in w13)), Linear(*(t if t is None else t[index] for t in w2))


def _part(linear: Linear, start: int, stop: int) -> Linear:
    return Linear(linear.data[start:stop], None if linear.scale is None else linear.scale[start:stop])


def _follows(a: torch.Tensor, b: torch.Tensor | None) -> bool:
    return b is not None and a.shape[1:] == b.shape[1:] and b.data_ptr() == a.data_ptr() + a.nbytes


# --------------------------------------------------------------------------------------------- in plain PyTorch


def route_reference(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [B, E] -> (ids int32, weights) [B, top_k], largest first, of equals the first: softmax over all experts,
    then the top_k's shares, made to add up to 1. In float64."""
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
    """The experts' part of a step, [B, H] in `dtype`, rounded where the kernels round: x to e4m3, h to bf16 and e4m3.

    x [B, H] bf16; quantized: (x8, x_scale), where they were made elsewhere.
    """
    rows = expert_rows(x, weights, quantized, dtype)
    out = torch.sigmoid(x.to(dtype) @ weights.shared_gate.to(dtype))[:, None] * rows(-1, slice(None))
    for expert in ids.unique().tolist():
        token, j = torch.where(ids == expert)
        out.index_put_((token,), topk_weights.to(dtype)[token, j, None] * rows(expert, token), accumulate=True)
    return out


def expert_rows(x, weights: ExpertWeights, quantized, dtype):
    """A function (expert or -1, which tokens) -> that expert's feed-forward of them, [n, H] in `dtype`."""
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


# ------------------------------------------------------------------------------------------------------ launches


def experts_on(weights: ExpertWeights, top_k: int, batch: int, *, fused: bool, overlap: bool):
    """Experts, in Triton, where the weights' device has it, else in plain PyTorch."""
    if weights.router.device.type == "cuda" or kernels_interpreted():
        return Experts(weights, top_k, batch, fused=fused, overlap=overlap)
    return TorchExperts(weights, top_k, batch, fused=fused)


def kernels_interpreted() -> bool:
    """Whether Triton was imported under TRITON_INTERPRET=1, and so runs on CPU tensors."""
    try:
        import triton
    except ImportError:
        return False
    return triton.knobs.runtime.interpret


class TorchExperts:
    """The same interface in plain PyTorch, any device, in float32: expert by expert, for toy sizes."""

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
    """Buffers and launches of one layer's experts for a batch of `batch` tokens; a step allocates nothing.

    fused: the shared expert runs in the same launches as the others. overlap: programmatic dependent launch, of every
    kernel here. After route, ids and weights [B, top_k] hold each token's experts, largest weight first.
    """

    def __init__(self, weights: ExpertWeights, top_k: int, batch: int, *, fused: bool, overlap: bool):
        E, H = weights.router.shape
        inner, shared_inner = weights.w13.data.shape[2], weights.shared_w13.data.shape[2]
        if fused and not weights.can_fuse:
            raise ValueError(
                "fused: the shared expert must lie behind the last of the others in one tensor, and be as wide; "
                "make the weights so, or take fused=False"
            )
        if not 1 <= top_k <= E:
            raise ValueError(f"top_k: expected 1 to {E}, the number of experts, got {top_k}")
        self.model, self.top_k, self.batch, self.fused, self.overlap = weights, top_k, batch, fused, overlap
        tokens = batch * top_k / E
        roomy = has_room(weights.router.device)
        self.tiling = tilings(min(E, batch * top_k) + fused, tokens, H, inner, weights.fp8, roomy)
        # The shared expert alone: 16 tokens a slot, so that its few programs are as many as can be
        self.shared_tiling = tilings(cdiv(batch, 16), 0, H, shared_inner, weights.fp8, roomy)
        # At most so many blocks of tokens: each expert may have one that is not full
        self.slots = min(batch * top_k, E + batch * top_k // self.tiling[0].block_m)

        rows, device = batch * (top_k + 1), weights.router.device
        options = dict(dtype=torch.int32, device=device)
        self.ids = torch.zeros(batch, top_k, **options)
        self.weights = torch.zeros(batch, top_k, dtype=torch.float32, device=device)
        # Zero before each step: made so here, and by the combine that ends a step
        self.counts = torch.zeros(E + 1, **options)
        self.work = torch.zeros(self.slots, **options)
        self.lists = torch.zeros(E, batch, **options)
        self.h = hidden_buffer(self.tiling[0], rows, inner, device)
        self.shared_h = self.h if fused else hidden_buffer(self.shared_tiling[0], rows, shared_inner, device)
        self.y = torch.empty(rows, H, dtype=torch.bfloat16, device=device)

    def route(self, logits: torch.Tensor) -> None:
        """logits [B, E] bf16 or float32, the last dimension contiguous."""
        from .kernels.experts_kernels import route_kernel

        E = len(self.model.router)
        route_kernel[(self.batch,)](
            logits, self.ids, self.weights, self.counts, self.work, self.lists, self.batch, E, self.slots,
            logits.stride(0), self.top_k, self.tiling[0].block_m, power_of_2(self.top_k), power_of_2(E), self.overlap,
            num_warps=1, launch_pdl=self.overlap,
        )  # fmt: skip

    def routed(self, x: torch.Tensor, x8: torch.Tensor | None = None, x_scale: torch.Tensor | None = None) -> None:
        """x [B, H] bf16; with FP8 weights x8 [B, H] e4m3, contiguous, and x_scale [B, H / 128] of any strides are
        read in its place."""
        virtual = cdiv(self.batch, self.tiling[0].block_m) if self.fused else 0
        self._launch((x, x8, x_scale), self.model.w13, self.model.w2, self.h, self.tiling, virtual, self.slots)

    def shared(self, x: torch.Tensor, x8: torch.Tensor | None = None, x_scale: torch.Tensor | None = None) -> None:
        """The shared expert's launches; none where it is fused."""
        if self.fused:
            return
        virtual = cdiv(self.batch, self.shared_tiling[0].block_m)
        weights = self.model.shared_w13, self.model.shared_w2
        self._launch((x, x8, x_scale), *weights, self.shared_h, self.shared_tiling, virtual, 0)

    def combine(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """out [B, H] = the weighted sum; x [B, H] bf16 for the shared expert's gate."""
        from .kernels.experts_kernels import combine_kernel

        E, H = self.model.router.shape
        chunk = min(1024 if self.batch <= 64 else 4096, power_of_2(H))
        combine_kernel[(cdiv(H, chunk), self.batch)](
            x, self.model.shared_gate, self.y, self.weights, out, self.counts,
            self.batch, E, H, self.top_k, chunk, power_of_2(H), power_of_2(E + 1), self.overlap,
            num_warps=max(1, chunk // 512), launch_pdl=self.overlap,
        )  # fmt: skip
        return out

    def experts_hit(self) -> int:
        """Experts that at least one token of the last step chose. Waits for the GPU."""
        return self.ids.unique().numel()

    def _launch(self, given, w13, w2, h, tiling, virtual, slots):
        from .kernels.experts_kernels import down_kernel, gate_up_kernel

        up, down = tiling
        E, H = self.model.router.shape
        inner = w13.data.shape[2]
        fp8 = w13.scale is not None
        x, x_scale = given[1:] if fp8 else (given[0], given[0])
        sizes = (self.batch, E, H, inner, self.top_k, virtual, E if slots else 0)
        lists = (self.counts, self.work, self.lists)
        gate_up_kernel[(inner // up.tile * up.split, virtual + slots)](
            x, x_scale, w13.data, w13.scale if fp8 else w13.data, *lists, h, *sizes, *x_scale.stride(),
            up.block_m, up.tile, up.block_k, up.sub, up.split, fp8, self.overlap,
            num_warps=up.warps, num_stages=up.stages, launch_pdl=self.overlap,
        )  # fmt: skip
        down_kernel[(cdiv(H, down.tile * down.tiles), virtual + slots)](
            h, w2.data, w2.scale if fp8 else w2.data, *lists, self.y, *sizes, down.tiles,
            up.block_m, down.tile, down.block_k, down.block_k == inner, up.split, fp8, self.overlap,
            num_warps=down.warps, num_stages=down.stages, launch_pdl=self.overlap,
        )  # fmt: skip
