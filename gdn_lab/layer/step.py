"""The decode step of one decoder layer on one tensor-parallel rank, in named ranges: GDN layer, then experts or a dense
feed-forward, with random weights at a model's real sizes.

    weights = StepWeights.random("qwen3.5-397b-a17b", tp=8)
    step = Step(weights, "after", batch=256)
    step()                                      # each part in a range of its name, all of them in the range STEP

What one GPU leaves out are the two all-reduces of a layer, after out_proj and after combine.
"""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import torch

from ..backends.base import needs_capability
from ..backends.registry import refusal
from ..costs import decode_bytes
from ..models import GDNShape, Model, model
from ..pool import StatePool
from ..trace.ranges import STEP, nvtx_range
from . import layer_reference
from .experts import ExpertWeights, experts_on
from .fp8 import Linear, random_weight
from .gdn_layer import LAYER_PARTS, Activation, GDNLayer, Kernels, LayerWeights, Projection, Work

EXPERT_PARTS = ("post norm", "router", "experts", "shared expert", "combine")
DENSE_PARTS = ("post norm", "feed-forward")
PARTS = LAYER_PARTS + EXPERT_PARTS + DENSE_PARTS[1:]
PRECISIONS = ("fp8", "bf16")
L2_MULTIPLE = 4  # what a graph moves before a layer's weights come up again, in L2 caches
LAYERS_MOST = 16

BYTES_FORMULA = (
    "each weight that the batch needs once (of the experts those that a token chose), each activation once out and "
    "once in, state and convolution window read and written; copies that a part makes for itself are not counted"
)


class Configuration(NamedTuple):
    """How a step runs. gdn: what decode() calls the backend. layout: of the pool. fused: the norms quantise, nothing is
    split, the shared expert is one of the experts, launches overlap, and products of few rows are of this workbook's
    kernels; otherwise each of these is a launch of its own, and products are torch's."""

    gdn: str
    layout: str
    description: str
    fused: bool = False


# To add one, add a line: whatever loops over configurations takes it from here.
CONFIGURATIONS: dict[str, Configuration] = {
    "before": Configuration("triton/kv8", "KV", "the engine before the pull request: Triton, KV, value tiles of 8"),
    "before-32": Configuration("triton/kv32", "KV", "the same with value tiles of 32"),
    "after": Configuration("flashinfer/vk", "VK", "FlashInfer on the VK pool in place"),
    "best": Configuration("cutedsl/vk", "VK", "the fastest here: our kernels, fewer launches that overlap", fused=True),
    "torch-kv": Configuration("torch/kv", "KV", "plain PyTorch on a KV pool, any device"),
    "torch": Configuration("torch/vk", "VK", "plain PyTorch on a VK pool, any device"),
}
GPU_CONFIGURATIONS = ("before", "before-32", "after", "best")
CPU_CONFIGURATIONS = ("torch-kv", "torch")


def configuration(name: str) -> Configuration:
    """The table's entry; ValueError with the known names if there is none."""
    if name not in CONFIGURATIONS:
        raise ValueError(f"configuration: {name!r} is not in the table; choose one of {', '.join(CONFIGURATIONS)}")
    return CONFIGURATIONS[name]


class StepSizes(NamedTuple):
    """One rank's share of a layer. experts None: a dense feed-forward, whose width is `shared`."""

    shape: GDNShape
    hidden: int
    experts: int | None
    top_k: int | None
    routed: int | None  # width of a routed expert
    shared: int  # of the shared expert, or of the dense feed-forward

    @classmethod
    def of(cls, name: str, tp: int, toy: bool = False) -> "StepSizes":
        """Of a model in the table, or with `toy` of a small one built alike, for a CPU. ValueError for what cannot be
        split evenly."""
        entry: Model = model(name)
        shape = GDNShape.from_model(name, tp)
        if toy:
            experts = None if entry.experts is None else 8
            return cls(GDNShape(2, 4), 256, experts, experts and 2, experts and 128, 128 if experts else 256)
        for what, size in (
            ("experts' width", entry.moe_intermediate),
            ("feed-forward's width", entry.ffn_intermediate),
        ):
            if size and size % tp:
                raise ValueError(f"tp: {name} has a {what} of {size}, which {tp} GPUs cannot share evenly")
        routed = entry.moe_intermediate and entry.moe_intermediate // tp
        return cls(shape, entry.hidden, entry.experts, entry.top_k, routed, entry.ffn_intermediate // tp)


class DenseWeights(NamedTuple):
    """A dense feed-forward: gate_up [2·width, hidden], the gate first; down [hidden, width]."""

    gate_up: Linear
    down: Linear

    @property
    def nbytes(self) -> int:
        return self.gate_up.nbytes + self.down.nbytes


@dataclass(frozen=True)
class StepWeights:
    """One decoder layer's random weights on one rank; steps of several configurations share them. random() makes them.

    model: a name of the table. tp: tensor-parallel GPUs. precision: "fp8" or "bf16". experts None: dense is not.
    popularity [experts] bf16, added to the router's logits; None: the routing is uniform.
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
    ) -> "StepWeights":
        """precision: "fp8" (e4m3, 128 × 128 block scales) or "bf16" of projections and experts; router, in_proj ba and
        norms are bf16 in either. seed: the same, the same weights (on one kind of device). toy: a small model built
        alike, for a CPU. skew: 0 routes uniformly at random; s > 0 makes the n-th most popular expert n^-s times as
        likely as the first, the order being random. ValueError for what cannot be made."""
        if not skew >= 0:
            raise ValueError(f"skew: expected 0 (uniform) or more, got {skew}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        s, device = StepSizes.of(model, tp, toy), torch.device(device or "cpu")
        options = {"precision": precision, "device": device, "generator": torch.Generator(device).manual_seed(seed)}
        layer = LayerWeights.random(s.shape, s.hidden, **options)
        post_norm = torch.empty(s.hidden, device=device).uniform_(-0.5, 0.5, generator=options["generator"]).bfloat16()
        experts = dense = None
        if s.experts is None:
            dense = DenseWeights(
                random_weight(2 * s.shared, s.hidden, **options), random_weight(s.hidden, s.shared, **options)
            )
        else:
            experts = ExpertWeights.random(s.hidden, s.experts, s.routed, s.shared, **options)
        popularity = None
        if experts and skew:
            rank = torch.randperm(s.experts, generator=torch.Generator().manual_seed(seed)) + 1
            popularity = (-skew * rank.double().log()).to(device, torch.bfloat16)
        return cls(model, tp, precision, s, device, layer, post_norm, experts, dense, popularity)

    @property
    def shape(self) -> GDNShape:
        return self.sizes.shape

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.layer.nbytes + self.post_norm.nbytes + (self.experts or self.dense).nbytes


class Step:
    """One step for one batch: its buffers, its pool, and the parts' functions in order.

    configuration: a name in CONFIGURATIONS. batch: 1 to 512 requests. state_dtype: of the pool. pool, indices: given
    ones of the configuration's layout, or by default a pool of batch + 1 slots with random states and the slots in
    random order. ahead: the layer before, whose result and residual this one takes; by default random ones.
    Raises ValueError with the sentence of what cannot run here (refusal()).
    """

    def __init__(
        self, weights: StepWeights, name: str, batch: int, *, state_dtype=torch.bfloat16, seed: int = 0, pool=None,
        indices=None, ahead: "Step | None" = None,
    ):  # fmt: skip
        if reason := self.refusal(name, weights, state_dtype):
            raise ValueError(f"configuration {name!r} {reason}")
        if type(batch) is not int or batch < 1:
            raise ValueError(f"batch: expected a positive int, got {batch!r}")
        self.name, self.configuration, self.weights, self.batch = name, configuration(name), weights, batch
        self.device, self.fp8 = weights.device, weights.precision == "fp8"
        self.kernels = kernels_of(self.configuration, self.device)
        rng = torch.Generator().manual_seed(seed)
        if pool is None:
            pool = StatePool(
                weights.shape, batch + 1, layout=self.configuration.layout, dtype=state_dtype, device=self.device
            )
            on_device = torch.Generator(self.device).manual_seed(seed)
            pool.state.normal_(0, 0.1, generator=on_device)
            pool.conv.normal_(0, 1, generator=on_device)
        if indices is None:
            indices = (torch.randperm(batch, generator=rng) + 1).to(self.device, torch.int32)
        self.pool, self.indices, self.ahead, self.seed = pool, indices, ahead, seed
        hidden = weights.sizes.hidden
        x, residual = (torch.randn(batch, hidden, generator=rng).to(self.device, torch.bfloat16) for _ in range(2))
        self.layer = GDNLayer(weights.layer, self.kernels, pool, indices, x, residual)
        self.post = Activation(batch, hidden, self.fp8, self.device)
        self.residual_out = torch.zeros_like(residual)
        self.out = torch.zeros_like(residual)  # [B, hidden]: this rank's share, before the all-reduce
        self.logits = self.gate_up = None
        self.wrong_parts: list[str] = []  # what the last check() found
        self.work: tuple[Work, ...] = self.layer.work + (self._expert_work() if weights.experts else self._dense_work())
        self.parts = tuple(part for part, _ in self.work)

    @staticmethod
    def refusal(name: str, weights: StepWeights, state_dtype=torch.bfloat16) -> str | None:
        """Why a configuration cannot run with these weights on their device: one sentence, or None."""
        entry, device = configuration(name), weights.device
        reason = refusal(entry.gdn, weights.shape, layout=entry.layout, dtype=state_dtype, device=device)
        if reason is None and not entry.gdn.startswith("torch"):
            # e4m3 products and conversions
            reason = needs_capability(device, 9)
        return reason

    def __call__(self) -> None:
        """Runs it once: never synchronises, allocates nothing but through torch, so that a CUDA graph can hold it."""
        if self.ahead is not None:
            self.layer.x, self.layer.residual = self.ahead.out, self.ahead.residual_out
        with nvtx_range(STEP):
            for part, do in self.work:
                with nvtx_range(part):
                    do()

    @property
    def experts_hit(self) -> int:
        """Experts that at least one token of the last run chose; 0 for a dense model. Synchronises."""
        return 0 if self.weights.dense else self.experts.experts_hit()

    def _post_norm(self):
        into = self.post.quantized() if self.kernels.fused else {}
        self.kernels.small.add_norm(
            self.layer.result, self.layer.residual_out, self.weights.post_norm, self.residual_out, self.post.live,
            **into, overlap=self.kernels.overlap,
        )  # fmt: skip

    def _quantize_post(self):
        if self.fp8 and not self.kernels.fused:
            self.kernels.small.quantize(self.post.live, self.post.y8, self.post.scale)

    def _expert_work(self) -> tuple[Work, ...]:
        weights, fused = self.weights.experts, self.kernels.fused
        self.experts = experts_on(
            weights, self.weights.sizes.top_k, self.batch, fused=fused, overlap=self.kernels.overlap
        )

        product = self.router_product = Projection(Linear(weights.router), self.kernels, len(self.post.y))
        popularity = self.weights.popularity

        def router():
            self.logits = product(self.post.y)
            if popularity is not None:
                self.logits += popularity
            self.experts.route(self.logits[: self.batch])

        def experts():
            self._quantize_post()
            self.experts.routed(*self.post.of_tokens)

        def shared():
            self.experts.shared(*self.post.of_tokens)  # nothing, where it is one of the experts

        def combine():
            self.experts.combine(self.post.live, out=self.out)

        return tuple(zip(EXPERT_PARTS, (self._post_norm, router, experts, shared, combine), strict=True))

    def _dense_work(self) -> tuple[Work, ...]:
        width = self.weights.sizes.shared
        up, down = (Projection(weight, self.kernels, len(self.post.y)) for weight in self.weights.dense)
        self.up = up
        self.hidden = Activation(self.batch, width, self.fp8, self.device)
        small, fused, overlap = self.kernels.small, self.kernels.fused, self.kernels.overlap

        def feed_forward():
            self._quantize_post()
            self.gate_up = up(*self.post.padded)
            into = (fused and self.hidden.quantized()) or {"y": self.hidden.live}
            small.silu_mul(self.gate_up[: self.batch], **into, overlap=overlap)
            if self.fp8 and not fused:
                small.quantize(self.hidden.live, self.hidden.y8, self.hidden.scale)
            self.out_padded = down(*self.hidden.padded)
            self.out = self.out_padded[: self.batch]

        return tuple(zip(DENSE_PARTS, (self._post_norm, feed_forward), strict=True))

    def check(self):
        """Runs it once and holds every part's result against float64: check.py."""
        from .step_check import check

        return check(self)

    def products(self) -> dict[str, str]:
        """What multiplies by the weights of each part that has some, "torch" or "triton"; experts apart."""
        layer = self.layer
        found = {"in_proj qkvz": layer.in_qkvz, "in_proj ba": layer.in_ba, "out_proj": layer.out}
        found |= {"feed-forward": self.up} if self.weights.dense else {"router": self.router_product}
        return {part: product.by for part, product in found.items()}

    def bytes(self) -> dict[str, int]:
        """Bytes that each part must move (BYTES_FORMULA). Of the experts, those hit in the last run."""
        w, s, B, H = self.weights, self.weights.sizes, self.batch, self.weights.sizes.hidden
        value, conv = s.shape.num_v_heads * s.shape.head_v_dim, s.shape.conv_dim
        row = 2 * B  # bytes of one bf16 channel
        moved = {
            "input norm": row * 4 * H,
            "in_proj qkvz": w.layer.in_qkvz.nbytes + row * (H + conv + value),
            "in_proj ba": w.layer.in_ba.nbytes + row * (H + 2 * s.shape.num_v_heads),
            "split": 0,
            "conv": w.layer.conv.nbytes + row * conv * (2 + 2 * self.pool.conv.shape[-1]),
            "gdn": decode_bytes(s.shape, B, self.pool.dtype),
            "gated norm": row * 3 * value,
            "out_proj": w.layer.out.nbytes + row * (H + value),
            "post norm": row * 4 * H,
        }
        if w.dense:
            moved["feed-forward"] = w.dense.nbytes + row * (2 * H + 4 * s.shared)
            return moved
        hit = self.experts_hit * (w.experts.w13.nbytes + w.experts.w2.nbytes) // s.experts
        moved["router"] = w.experts.router.nbytes + row * (H + 2 * s.experts)
        moved["experts"] = hit + row * (H + s.top_k * (2 * s.routed + H))
        shared = w.experts.shared_w13.nbytes + w.experts.shared_w2.nbytes + w.experts.shared_gate.nbytes
        moved["shared expert"] = shared + row * (2 * H + 2 * s.shared)
        if self.kernels.fused:  # it is one of the experts
            moved["experts"] += moved["shared expert"]
            moved["shared expert"] = 0
        moved["combine"] = row * H * (s.top_k + 2)
        return moved


def kernels_of(entry: Configuration, device: torch.device) -> Kernels:
    """What a configuration runs on a device."""
    if entry.gdn.startswith("torch"):
        return Kernels(entry.gdn, layer_reference, False, False, True)
    from .kernels import small as layer_kernels

    # torch's product with 128 × 128 block scales is cuBLAS's, which has it for compute capability 9.x alone
    torch_fp8 = torch.cuda.get_device_capability(device)[0] == 9
    return Kernels(entry.gdn, layer_kernels, entry.fused, entry.fused, torch_fp8)


def stacked(first: Step, weights: list[StepWeights]) -> list[Step]:
    """`first` and a step for each of `weights`, each of which takes what the one ahead leaves; seeds count on."""
    steps = [first]
    for number, layer in enumerate(weights, 1):
        options = {"state_dtype": first.pool.dtype, "seed": first.seed + number, "ahead": steps[-1]}
        steps.append(Step(layer, first.name, first.batch, **options))
    return steps


def layers_needed(step: Step, l2: int) -> int:
    """How many steps with weights and states of their own one graph must hold, so that it moves L2_MULTIPLE L2 caches
    before a layer comes up again, as the other layers of a model do in serving; at most LAYERS_MOST."""
    return min(LAYERS_MOST, max(1, ceil(L2_MULTIPLE * l2 / sum(step.bytes().values()))))
