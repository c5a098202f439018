"""The second half of a decoder layer on one tensor-parallel rank: norm, then experts or a dense feed-forward."""

from collections.abc import Callable

import torch

from .experts import experts_on
from .fp8 import Linear
from .gdn_layer import Activation, Kernels, Projection, Stage
from .weights import StepWeights
from .workspace import Workspace

EXPERT_PARTS = ("post norm", "router", "experts", "shared expert", "combine")
DENSE_PARTS = ("post norm", "feed-forward")


class FeedForward:
    """Its buffers and its stages for `batch` tokens.

    ahead: the layer before it, whose `result` and `residual_out` [B, hidden] bf16 it takes. result: memory for the
    output, [rows padded to 16, hidden]; by default its own. add_norm: in place of elementwise's, where the result is to
    be summed over ranks first. out [B, hidden]: this rank's share, before the all-reduce.
    """

    def __init__(
        self,
        weights: StepWeights,
        kernels: Kernels,
        ahead,
        batch: int,
        *,
        workspace: Workspace | None = None,
        result: torch.Tensor | None = None,
        add_norm: Callable | None = None,
    ):
        self.weights, self.kernels, self.ahead, self.batch = weights, kernels, ahead, batch
        self.fp8, hidden = weights.precision == "fp8", weights.sizes.hidden
        self.workspace, self.given = workspace or Workspace(weights.device), result
        self.add_norm = add_norm or kernels.elementwise.add_norm
        self.post = Activation(batch, hidden, self.fp8, workspace=self.workspace, name="post")
        self.residual_out = self.workspace.take("post residual", batch, hidden)
        self.logits = self.gate_up = self.out_padded = None
        self.stages: tuple[Stage, ...] = self._expert_stages() if weights.experts else self._dense_stages()

    def forget(self) -> None:
        """Drop results that each run allocates, but `out`."""
        self.logits = self.gate_up = self.out_padded = None

    def _post_norm(self) -> None:
        self.add_norm(
            self.ahead.result,
            self.ahead.residual_out,
            self.weights.post_norm,
            self.residual_out,
            self.post.live,
            **(self.post.quantized() if self.kernels.fused else {}),
            overlap=self.kernels.overlap,
        )

    def _quantize_post(self) -> None:
        if self.fp8 and not self.kernels.fused:
            self.kernels.elementwise.quantize(self.post.live, self.post.y8, self.post.scale)

    def _expert_stages(self) -> tuple[Stage, ...]:
        weights, hidden = self.weights.experts, self.weights.sizes.hidden
        self.experts = experts_on(
            weights,
            self.weights.sizes.top_k,
            self.batch,
            fused=self.kernels.fused,
            overlap=self.kernels.overlap,
            workspace=self.workspace,
        )
        self.router = Projection(Linear(weights.router), self.kernels, len(self.post.y), self.workspace)
        self.out = self.workspace.take("out", self.batch, hidden) if self.given is None else self.given[: self.batch]
        popularity = self.weights.popularity

        def router():
            self.logits = self.router(self.post.y)
            if popularity is not None:
                self.logits += popularity
            self.experts.route(self.logits[: self.batch])

        def experts():
            self._quantize_post()
            self.experts.routed(*self.post.unpadded)

        def shared():
            self.experts.shared(*self.post.unpadded)  # launches nothing where it is one of the experts

        out = self.out

        def combine():
            self.out = self.experts.combine(self.post.live, out=out)

        return tuple(zip(EXPERT_PARTS, (self._post_norm, router, experts, shared, combine), strict=True))

    def _dense_stages(self) -> tuple[Stage, ...]:
        rows = len(self.post.y)
        self.up, self.down = (Projection(weight, self.kernels, rows, self.workspace) for weight in self.weights.dense)
        width = self.weights.sizes.shared
        self.hidden = Activation(self.batch, width, self.fp8, workspace=self.workspace, name="hidden")
        self.out = self.workspace.take("out", self.batch, self.weights.sizes.hidden)
        elementwise, fused, overlap = self.kernels.elementwise, self.kernels.fused, self.kernels.overlap

        def feed_forward():
            self._quantize_post()
            self.gate_up = self.up(*self.post.padded)
            outputs = (fused and self.hidden.quantized()) or {"y": self.hidden.live}
            elementwise.silu_mul(self.gate_up[: self.batch], **outputs, overlap=overlap)
            if self.fp8 and not fused:
                elementwise.quantize(self.hidden.live, self.hidden.y8, self.hidden.scale)
            self.out_padded = self.down(*self.hidden.padded, out=self.given)
            self.out = self.out_padded[: self.batch]

        return tuple(zip(DENSE_PARTS, (self._post_norm, feed_forward), strict=True))
