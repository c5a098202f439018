"""Muon, the optimiser of the small model's matrices: momentum whose singular values are all brought near one.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. Learning rates are tensors and
nothing synchronises, so that a CUDA graph can hold a step.
"""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Newton-Schulz: slope at zero large, singular values end in 0.7 to 1.2
ITERATIONS = 5
MOMENTUM = 0.95


def orthogonalised(x: Tensor) -> Tensor:
    """Return matrices [m, rows, columns] with the singular vectors of x and singular values near one.

    The iteration runs in bfloat16 on a GPU.
    """
    tall = x.shape[-2] > x.shape[-1]
    y = x.bfloat16() if x.is_cuda else x
    y = y.mT if tall else y
    y = y / (torch.linalg.matrix_norm(y, keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.mT if tall else y).to(x.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with decoupled weight decay. Matrices of one shape are orthogonalised together.

    lr: 0-dimensional. A step's singular values are near faster * lr; weights decay by lr * weight_decay.
    """

    def __init__(self, matrices: list[Tensor], lr: Tensor, faster: float, weight_decay: float):
        super().__init__(matrices, {"lr": lr, "faster": faster, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Update all matrices from their gradients."""
        for group in self.param_groups:
            by_shape: dict[tuple, list[Tensor]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(tuple(matrix.shape), []).append(matrix)
            for (rows, columns), matrices in by_shape.items():
                gradients = torch.stack([matrix.grad for matrix in matrices])
                state = self.state[matrices[0]]
                if not state:
                    state["momentum"] = torch.zeros_like(gradients)
                momentum = state["momentum"].lerp_(gradients, 1 - MOMENTUM)
                update = orthogonalised(gradients.lerp(momentum, MOMENTUM))  # Nesterov's
                scale = group["faster"] * max(1.0, rows / columns) ** 0.5
                for matrix, change in zip(matrices, update, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.sub_(change * (group["lr"] * scale))
