"""Lanes: the same decode steps on each way's own pool and on the float64 reference, side by side.

On a GPU a lane's chunk of steps is one CUDA graph, captured after the first chunk has run step by step.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ... import reference
from ...backends.registry import VARIANTS
from ...pool import StatePool
from .regimes import Inputs
from .ways import Way


class Lane(ABC):
    """What all lanes share: steps one by one, or a whole chunk."""

    def __init__(self, device):
        self.device, self.graph = torch.device(device), None

    @abstractmethod
    def step(self, t: int) -> None:
        """Take step t of the current chunk."""

    def chunk(self, steps: int) -> None:
        """Take all steps of the current chunk."""
        if self.device.type != "cuda":
            for t in range(steps):
                self.step(t)
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                for t in range(steps):
                    self.step(t)
        self.graph.replay()


class ReferenceLane(Lane):
    """The float64 reference. S [B, HV, V, K]; q [B, HV, K] of the step just taken is last_q."""

    def __init__(self, stream, device):
        super().__init__(device)
        self.stream = stream
        HK, HV, K, V = stream.shape.dims
        self.S = torch.zeros(stream.rows, HV, V, K, dtype=torch.float64, device=device)
        self.factors = None

    def next(self) -> None:
        """Compute the factors of the stream's current chunk, in place from the second time on."""
        gates = self.stream.A_log, self.stream.dt_bias
        q, k, v, log_g, beta = reference.prepared(*self.stream.inputs, *gates, device=self.device)
        made = q, k, v, torch.exp(log_g), beta
        if self.factors is None:
            self.factors = tuple(x.contiguous() for x in made)
        for kept, new in zip(self.factors, made, strict=True):
            kept.copy_(new)

    def step(self, t: int) -> None:
        _, k, v, g, beta = (x[t] for x in self.factors)
        self.S.mul_(g[..., None, None])
        u = beta[..., None] * (v - (self.S @ k[..., None])[..., 0])
        self.S.flatten(0, 1).baddbmm_(u.flatten(0, 1)[:, :, None], k.flatten(0, 1)[:, None, :])

    def output(self, S: Tensor, t: int) -> Tensor:
        """Return S q of step t for a float64 state, [B, HV, V]."""
        return (S @ self.factors[0][t][..., None])[..., 0]


class WayLane(Lane):
    """A way on a pool of its own, whose slots 1 to B are the rows'. out [B, HV, V] of the step just taken."""

    def __init__(self, way: Way, stream, device, seed: int):
        super().__init__(device)
        self.way, self.stream = way, stream
        options = {"dtype": way.dtype, "device": device, "rounding": way.rounding, "seed": seed}
        self.pool = StatePool(stream.shape, stream.rows + 1, **options)
        self.pool.reserve_ring(VARIANTS[way.backend].ring, key_dtype=way.io_dtype)
        self.slots = self.pool.acquire(stream.rows)
        self.A_log, self.dt_bias = stream.A_log.clone(), stream.dt_bias.clone()
        if "A_log" in way.shortcut:
            self.A_log = self.A_log.bfloat16().float()
        if "dt_bias" in way.shortcut:
            self.dt_bias = self.dt_bias.bfloat16().float()
        self.inputs = Inputs(*(x.to(way.io_dtype) for x in stream.inputs))  # those of bfloat16 are the stream's own
        self.out = torch.empty_like(self.inputs.v[0])

    def next(self) -> None:
        """Take over the stream's current chunk."""
        if self.inputs.q is self.stream.inputs.q:
            return
        for kept, new in zip(self.inputs, self.stream.inputs, strict=True):
            kept.copy_(new)
        if "beta" in self.way.shortcut:
            beta = torch.sigmoid(self.inputs.b).bfloat16().double().clamp(2.0**-20, 1 - 2.0**-9)
            self.inputs.b.copy_(torch.log(beta / (1 - beta)))  # whose sigmoid is the rounded beta

    def step(self, t: int) -> None:
        gates = {"A_log": self.A_log, "dt_bias": self.dt_bias}
        options = {"pool": self.pool, "indices": self.slots, "out": self.out}
        self.way.decode(*self.inputs.at(t), **gates, **options)

    @property
    def S(self) -> Tensor:
        """The state as stored, with what a ring holds back, float64 [B, HV, V, K]."""
        return self.pool.read(self.slots).double()


def relative_errors(actual: Tensor, expected: Tensor) -> tuple[float | None, float | None]:
    """Return (median, largest) over rows and heads of the norm of the error by the norm of what is expected.

    None where one is not finite. The first two dimensions are rows and heads.
    """
    error = (actual.double() - expected).flatten(2).norm(dim=2)
    ratio = error / expected.flatten(2).norm(dim=2).clamp(min=1e-300)
    if not bool(torch.isfinite(ratio).all()):
        return None, None
    return ratio.median().item(), ratio.max().item()
