"""Gates and keys of the drift study: streams of decode inputs, a chunk of steps at a time.

strong decay       as the models are initialised, with a far from its mean: g from e^-20 to nearly 1
typical            each head's mean -log g between 0.001 and 0.1
hardly any decay   between 0.000001 and 0.0001
rare writes        between 0.00001 and 0.001, and beta near 0 in all but one of 50 steps: the state mostly decays
as trained         inputs of the small trained model's GDN layers on documents (trained/as_trained.py)
checkpoint         A_log, dt_bias of a Hugging Face folder, a and b as its projections spread them
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...models import GDNShape
from ...trained.as_trained import LayerInputs

STRONG, TYPICAL, HARDLY, RARE = "strong decay", "typical", "hardly any decay", "rare writes"
TRAINED, CHECKPOINT = "as trained", "checkpoint"
GATES = (STRONG, TYPICAL, HARDLY, RARE, TRAINED, CHECKPOINT)
FULL, FEW, PARALLEL, OWN = "full rank", "few dimensions", "nearly parallel", "its own"
KEYS = (FULL, FEW, PARALLEL)
RATES = {
    TYPICAL: (1e-3, 1e-1),
    HARDLY: (1e-6, 1e-4),
    RARE: (1e-5, 1e-3),
}  # -log g of a head's mean, drawn evenly in its logarithm
WRITES = 0.02  # share of the steps that write, of rare writes
CLOSED = -12.0  # b of a step that does not: beta is 6e-6
NOISE = 0.05  # of nearly parallel keys and queries, relative to the direction that they share
FEWER = 8  # K / FEWER dimensions hold all keys and queries of a head: 16 of 128


class Gates(NamedTuple):
    """What a layer's gates are made from, [HV] float32 each. a is normal with a_mean, a_std, and b with 0, b_std.

    write_share: of the steps in which a head writes; in the others its b is CLOSED.
    """

    A_log: Tensor
    dt_bias: Tensor
    a_mean: Tensor
    a_std: Tensor
    b_std: Tensor
    write_share: Tensor


class Inputs(NamedTuple):
    """Inputs of C steps of B rows: q, k [C, B, HK, K]; v [C, B, HV, V]; a, b [C, B, HV]."""

    q: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor

    def at(self, step: int) -> tuple[Tensor, ...]:
        """Return the positional arguments of decode() for one of the steps."""
        return tuple(x[step] for x in self)


def synthetic(kind: str, heads: int, seed: int) -> Gates:
    """Draw the gates of one of the first four kinds."""
    rng = torch.Generator().manual_seed(seed)
    A = torch.empty(heads).uniform_(1, 16, generator=rng)
    ones = torch.ones(heads)
    if kind == STRONG:
        return Gates(A.log(), 0.5 * torch.randn(heads, generator=rng), -ones, 4 * ones, ones, ones)
    low, high = (torch.tensor(rate).log().item() for rate in RATES[kind])
    rate = torch.empty(heads).uniform_(low, high, generator=rng).exp()
    return Gates(
        A.log(), torch.expm1(rate / A).log(), 0 * ones, 0.5 * ones, ones, (WRITES if kind == RARE else 1) * ones
    )


class RandomStream:
    """Random inputs under given gates; keys of one of KEYS. `inputs` holds the current chunk, in place.

    The same seed gives the same numbers on the same kind of device.
    """

    def __init__(self, gates: Gates, keys: str, shape: GDNShape, *, rows: int, chunk: int, device, seed: int):
        HK, HV, K, V = shape.dims
        self.shape, self.rows, self.keys = shape, rows, keys
        self.gates = Gates(*(x.to(device) for x in gates))
        self.A_log, self.dt_bias = self.gates.A_log, self.gates.dt_bias
        self.rng = torch.Generator(device).manual_seed(seed)
        sizes = ((HK, K), (HK, K), (HV, V), (HV,), (HV,))
        self.inputs = Inputs(*(torch.zeros(chunk, rows, *size, dtype=torch.bfloat16, device=device) for size in sizes))
        self.basis = self._normal(HK, max(1, K // FEWER), K)
        self.direction = self._normal(HK, K)

    def next(self) -> None:
        """Draw the next chunk into `inputs`."""
        for name in ("q", "k"):
            getattr(self.inputs, name).copy_(self._keys())
        self.inputs.v.copy_(self._normal(*self.inputs.v.shape))
        gates = self.gates
        self.inputs.a.copy_(gates.a_mean + gates.a_std * self._normal(*self.inputs.a.shape))
        drawn = torch.rand(self.inputs.b.shape, generator=self.rng, device=self.rng.device)
        b = gates.b_std * self._normal(*self.inputs.b.shape)
        self.inputs.b.copy_(torch.where(drawn < gates.write_share, b, CLOSED))

    def _keys(self) -> Tensor:
        shape = self.inputs.k.shape
        if self.keys == FEW:
            return (self._normal(*shape[:3], 1, len(self.basis[0])) @ self.basis)[..., 0, :]
        noise = self._normal(*shape)
        return self.direction + NOISE * noise if self.keys == PARALLEL else noise

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.rng, device=self.rng.device)


class RecordedStream:
    """Inputs of a trained model's layers, their heads side by side, documents as rows, over and over again."""

    def __init__(self, layers: list[LayerInputs], *, chunk: int, device):
        def joined(name, dim):
            return torch.cat([getattr(layer, name) for layer in layers], dim).to(device)

        # [n, T, heads, …] of each layer -> [T, n, heads of all layers, …]
        self.recorded = Inputs(*(joined(name, 2).transpose(0, 1).contiguous() for name in Inputs._fields))
        self.A_log, self.dt_bias = joined("A_log", 0), joined("dt_bias", 0)
        self.tokens, self.rows, HK, K = self.recorded.k.shape
        self.shape = GDNShape(HK, *self.recorded.v.shape[2:3], K, self.recorded.v.shape[3])
        self.inputs = Inputs(*(torch.zeros_like(x[:1]).repeat(chunk, *[1] * (x.dim() - 1)) for x in self.recorded))
        self.position = 0

    def next(self) -> None:
        """Copy the next chunk into `inputs`."""
        chunk = len(self.inputs.k)
        steps = torch.arange(self.position, self.position + chunk, device=self.A_log.device) % self.tokens
        for buffer, recorded in zip(self.inputs, self.recorded, strict=True):
            buffer.copy_(recorded[steps])
        self.position += chunk
