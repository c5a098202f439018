"""The decode step of one decoder layer on one tensor-parallel rank: GDN layer, then experts or a dense feed-forward.

    weights = StepWeights.random("qwen3.5-397b-a17b", tp=8)
    step = Step(weights, "after", batch=256)
    step()                                      # each part in a range of its name, all of them in the range STEP

One GPU cannot run the two all-reduces of a layer, after out_proj and after combine: a step does not contain them.
"""

from math import ceil

import torch

from ..backends.base import needs_capability
from ..backends.registry import refusal, variant
from ..bench.pools import L2_MULTIPLE
from ..costs import decode_bytes, replay_bytes
from ..e4m3 import quantised
from ..models import GDNShape
from ..pool import StatePool
from ..rounding import FP8
from ..trace.ranges import STEP, nvtx_range
from . import layer_reference
from .configurations import Configuration, configuration
from .feed_forward import DENSE_PARTS, EXPERT_PARTS, FeedForward
from .gdn_layer import LAYER_PARTS, GDNLayer, Kernels, Stage
from .weights import StepWeights

PARTS = LAYER_PARTS + EXPERT_PARTS + DENSE_PARTS[1:]
MAX_LAYERS = 16  # in one CUDA graph

BYTES_FORMULA = (
    "each weight that the batch needs once (of the experts those that a token chose), each activation once out and "
    "once in, state and convolution window read and written; copies that a part makes for itself are not counted"
)


class Step:
    """One step for one batch: its buffers, its pool, and its stages in order.

    name: a configuration or its name. batch: 1 to 512 requests. state_dtype: of the pool, unless the configuration has
    one of its own. pool, indices: by default a pool of batch + 1 slots with random states, and the slots 1 to batch in
    random order; a given pool must have the configuration's layout. ahead: the step of the layer before, whose output
    and residual this one takes as input; by default the inputs are random. ValueError with the sentence of refusal()
    for a configuration that cannot run here.
    """

    def __init__(
        self,
        weights: StepWeights,
        name: str | Configuration,
        batch: int,
        *,
        state_dtype=torch.bfloat16,
        seed: int = 0,
        pool: StatePool | None = None,
        indices: torch.Tensor | None = None,
        ahead: "Step | None" = None,
    ):
        if reason := self.refusal(name, weights, state_dtype):
            raise ValueError(f"configuration {configuration(name).name!r} {reason}")
        if type(batch) is not int or batch < 1:
            raise ValueError(f"batch: expected a positive int, got {batch!r}")
        self.configuration, self.weights, self.batch = configuration(name), weights, batch
        state_dtype = pool_dtype(self.configuration, state_dtype)
        self.name = self.configuration.name
        self.device, self.fp8 = weights.device, weights.precision == "fp8"
        self.kernels = kernels_of(self.configuration, self.device)
        generator = torch.Generator().manual_seed(seed)
        if pool is None:
            pool = random_pool(weights.shape, batch + 1, self.configuration.layout, state_dtype, self.device, seed)
            pool.reserve_ring(variant(self.configuration.gdn).ring)
        if indices is None:
            indices = (torch.randperm(batch, generator=generator) + 1).to(self.device, torch.int32)
        self.pool, self.indices, self.ahead, self.seed = pool, indices, ahead, seed
        hidden = weights.sizes.hidden
        x, residual = (
            torch.randn(batch, hidden, generator=generator).to(self.device, torch.bfloat16) for _ in range(2)
        )
        self.layer = GDNLayer(weights.layer, self.kernels, pool, indices, x, residual)
        self.feed_forward = FeedForward(weights, self.kernels, self.layer, batch)
        self.wrong_parts: list[str] = []  # what the last check() found
        self.stages: tuple[Stage, ...] = self.layer.stages + self.feed_forward.stages
        self.parts = tuple(part for part, _ in self.stages)

    @staticmethod
    def refusal(name: str | Configuration, weights: StepWeights, state_dtype=torch.bfloat16) -> str | None:
        """Why a configuration cannot run with these weights on their device: one sentence, or None."""
        entry, device = configuration(name), weights.device
        dtype = pool_dtype(entry, state_dtype)
        reason = refusal(entry.gdn, weights.shape, layout=entry.layout, dtype=dtype, device=device)
        if reason is None and not is_eager(entry):
            reason = needs_capability(device, 9)  # for e4m3 products and conversions
        return reason

    def __call__(self) -> None:
        """Run the step once. It never synchronises and allocates only through torch, so a CUDA graph can capture it."""
        if self.ahead is not None:
            self.layer.x, self.layer.residual = self.ahead.out, self.ahead.residual_out
        with nvtx_range(STEP):
            for part, run in self.stages:
                with nvtx_range(part):
                    run()

    @property
    def out(self) -> torch.Tensor:
        """This rank's share of the output [B, hidden], before the all-reduce."""
        return self.feed_forward.out

    @property
    def residual_out(self) -> torch.Tensor:
        """The residual [B, hidden] that the next layer takes."""
        return self.feed_forward.residual_out

    @property
    def experts_hit(self) -> int:
        """Experts that at least one token of the last run chose; 0 for a dense model. Synchronises."""
        return 0 if self.weights.dense else self.feed_forward.experts.experts_hit()

    def check(self):
        """Run the step once and compare every part's result with float64: see step_check.py."""
        from .step_check import check

        return check(self)

    def products(self) -> dict[str, str]:
        """{part: "torch" or "triton"}: what computes each part's product with a weight, except the experts'."""
        layer, forward = self.layer, self.feed_forward
        projections = {"in_proj qkvz": layer.in_qkvz, "in_proj ba": layer.in_ba, "out_proj": layer.out}
        projections |= {"feed-forward": forward.up} if self.weights.dense else {"router": forward.router}
        return {part: projection.by for part, projection in projections.items()}

    def bytes(self) -> dict[str, int]:
        """{part: bytes that it must move} (BYTES_FORMULA); of the experts, those hit in the last run."""
        w, s, B, H = self.weights, self.weights.sizes, self.batch, self.weights.sizes.hidden
        value, conv = s.shape.num_v_heads * s.shape.head_v_dim, s.shape.conv_dim
        row = 2 * B  # bytes of one bf16 channel
        nbytes = {
            "input norm": row * 4 * H,
            "in_proj qkvz": w.layer.in_qkvz.nbytes + row * (H + conv + value),
            "in_proj ba": w.layer.in_ba.nbytes + row * (H + 2 * s.shape.num_v_heads),
            "split": 0,
            "conv": w.layer.conv.nbytes + row * conv * (2 + 2 * self.pool.conv.shape[-1]),
            "gdn": self._gdn_bytes(),
            "gated norm": row * 3 * value,
            "out_proj": w.layer.out.nbytes + row * (H + value),
            "post norm": row * 4 * H,
        }
        if self.layer.joined:
            nbytes["conv"] += nbytes["in_proj ba"]
            nbytes["in_proj ba"] = 0
        if w.dense:
            nbytes["feed-forward"] = w.dense.nbytes + row * (2 * H + 4 * s.shared)
            return nbytes
        hit = self.experts_hit * (w.experts.w13.nbytes + w.experts.w2.nbytes) // s.experts
        nbytes["router"] = w.experts.router.nbytes + row * (H + 2 * s.experts)
        nbytes["experts"] = hit + row * (H + s.top_k * (2 * s.routed + H))
        shared = w.experts.shared_w13.nbytes + w.experts.shared_w2.nbytes + w.experts.shared_gate.nbytes
        nbytes["shared expert"] = shared + row * (2 * H + 2 * s.shared)
        if self.kernels.fused:  # it is one of the experts
            nbytes["experts"] += nbytes["shared expert"]
            nbytes["shared expert"] = 0
        nbytes["combine"] = row * H * (s.top_k + 2)
        return nbytes

    def _gdn_bytes(self) -> int:
        """Bytes of decode, with a ring averaged over its period."""
        shape, pool = self.weights.sizes.shape, self.pool
        if pool.ring:
            return round(replay_bytes(shape, self.batch, pool.ring.updates, pool.dtype))
        return decode_bytes(shape, self.batch, pool.dtype)


def pool_dtype(entry: Configuration, asked: torch.dtype) -> torch.dtype:
    """The dtype of a configuration's pool: its own, or what is asked for."""
    return getattr(torch, entry.state_dtype) if entry.state_dtype else asked


def is_eager(entry: Configuration) -> bool:
    """Whether a configuration runs eager PyTorch throughout, on any device."""
    return variant(entry.gdn).role == "eager"


def kernels_of(entry: Configuration, device: torch.device) -> Kernels:
    """What a configuration runs on a device."""
    if is_eager(entry):
        return Kernels(entry.gdn, layer_reference, fused=False, overlap=False, torch_fp8=True)
    from .kernels import elementwise

    # torch's product with 128 × 128 block scales is cuBLAS's, which has it for compute capability 9.x alone
    torch_fp8 = torch.cuda.get_device_capability(device)[0] == 9
    return Kernels(entry.gdn, elementwise, fused=entry.fused, overlap=entry.fused, torch_fp8=torch_fp8)


def random_pool(shape: GDNShape, slots: int, layout: str, dtype: torch.dtype, device, seed: int) -> StatePool:
    """A pool whose states and convolution windows are random."""
    pool = StatePool(shape, slots, layout=layout, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    if dtype is FP8:
        for slot in range(slots):
            state = 0.1 * torch.randn(pool.state.shape[1:], generator=generator, device=device)
            pool.state[slot], pool.scales[slot] = quantised(state)
    else:
        pool.state.normal_(0, 0.1, generator=generator)
    pool.conv.normal_(0, 1, generator=generator)
    return pool


def stacked(first: Step, weights: list[StepWeights]) -> list[Step]:
    """`first`, and a step for each of `weights` that takes the output of the one before; seeds count on."""
    steps = [first]
    for number, layer in enumerate(weights, 1):
        steps.append(
            Step(
                layer,
                first.configuration,
                first.batch,
                state_dtype=first.pool.dtype,
                seed=first.seed + number,
                ahead=steps[-1],
            )
        )
    return steps


def layers_needed(step: Step, l2_bytes: int) -> int:
    """How many layers, each with weights and states of its own, one CUDA graph must hold.

    So that it moves L2_MULTIPLE times the L2 cache before it uses the same weights again, as in serving, where the
    other layers of a model come between; at most MAX_LAYERS.
    """
    return min(MAX_LAYERS, max(1, ceil(L2_MULTIPLE * l2_bytes / sum(step.bytes().values()))))
