"""One step of training. On a GPU it is a CUDA graph: launched one by one, its thousands of short kernels take longer to
launch than to run.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .network import Network
from .training_plan import Plan

IGNORED = -100  # the target of a place after which nothing is predicted
EAGER = 2  # steps of each shape before its graph is captured: libraries set themselves up in the first


class Step:
    """Takes a step on a batch, and returns its loss, which lies on the device."""

    def __init__(self, network: Network, plan: Plan):
        self.network, self.clip = network, plan.clip
        self.device = network.embedding.device
        self.optimizer = _optimizer(network, plan)
        self.captures = self.device.type == "cuda" and plan.graph
        self.taken, self.graph, self.shape = 0, None, None

    def __call__(self, tokens: Tensor, targets: Tensor, rate: float) -> Tensor:
        """tokens, targets [n, T]: what is read; what is predicted after each token, or IGNORED. rate: of learning."""
        for group in self.optimizer.param_groups:
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
        self.optimizer.zero_grad()
        logits = self.network(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        return loss.detach()

    def _capture(self, tokens: Tensor, targets: Tensor) -> None:
        """Capture a step of this shape. Capturing changes no weight."""
        self.optimizer.zero_grad()  # so that gradients lie in the graph's memory
        self.given = tokens.clone(), targets.clone()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self._eager(*self.given)


def _optimizer(network: Network, plan: Plan) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices alone. Its learning rate is a tensor, which a graph reads anew."""
    matrices = [x for name, x in network.named_parameters() if x.dim() == 2 and name != "embedding"]
    chosen = {id(x) for x in matrices}
    others = [x for x in network.parameters() if id(x) not in chosen]
    device = network.embedding.device
    rates = [torch.tensor(plan.rate, device=device) for _ in range(2)]
    groups = [
        {"params": matrices, "lr": rates[0], "weight_decay": plan.decay},
        {"params": others, "lr": rates[1], "weight_decay": 0.0},
    ]
    on_gpu = {"fused": True, "capturable": True} if device.type == "cuda" else {}
    return torch.optim.AdamW(groups, lr=rates[0], betas=(0.9, 0.98), **on_gpu)
