"""One step of training. On a GPU it is a CUDA graph: launched one by one, its thousands of short kernels take longer to
launch than to run.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .muon import Muon
from .network import Network
from .training_plan import Plan

IGNORED = -100  # the target of a place after which nothing is predicted
EAGER = 2  # steps of each shape before its graph is captured: libraries set themselves up in the first


class Step:
    """Takes a step on a batch, and returns its loss, which lies on the device."""

    def __init__(self, network: Network, plan: Plan):
        self.network, self.clip = network, plan.clip
        self.device = network.embedding.device
        self.optimizers = _optimizers(network, plan)
        self.captures = self.device.type == "cuda" and plan.graph
        self.taken, self.graph, self.shape = 0, None, None

    def __call__(self, tokens: Tensor, targets: Tensor, rate: float) -> Tensor:
        """tokens, targets [n, T]: what is read, and what is predicted after each token, or IGNORED. rate: AdamW's."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"].fill_(rate)
        if tokens.shape != self.shape:
            self.taken, self.graph, self.shape = 0, None, tokens.shape
        self.taken += 1
        if not self.captures or self.taken <= EAGER:
            return self._eager(tokens, targets)
        if self.graph is None:
            self._capture(tokens, targets)
        self.given[0].copy_(tokens)
        self.given[1].copy_(targets)
        self.graph.replay()
        return self.loss.clone()

    def _eager(self, tokens: Tensor, targets: Tensor) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        logits = self.network(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()

    def _capture(self, tokens: Tensor, targets: Tensor) -> None:
        """Capture a step of this shape. Capturing changes no weight."""
        for optimizer in self.optimizers:  # gradients of the graph's own memory
            optimizer.zero_grad()
        self.given = tokens.clone(), targets.clone()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self._eager(*self.given)


def _optimizers(network: Network, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon with weight decay for the matrices of projections; AdamW for the rest, gates' projections included."""
    named = {name: x for name, x in network.named_parameters()}
    matrices = [name for name in named if name.endswith(".weight") and "in_proj_ba" not in name]
    others = [name for name in named if name not in matrices]
    device = network.embedding.device
    on_gpu = {"fused": True, "capturable": True} if device.type == "cuda" else {}
    rate = torch.tensor(plan.rate, device=device)
    return [
        Muon([named[name] for name in matrices], lr=rate, faster=plan.muon, weight_decay=plan.decay),
        torch.optim.AdamW([named[name] for name in others], lr=rate, betas=(0.9, 0.98), weight_decay=0.0, **on_gpu),
    ]
