"""Inputs that are hard for a 16-bit kernel, by name: for the tests of decode, verify and prefill and for every check
before timing."""

from typing import NamedTuple

import torch

from .models import GDNShape
from .ops import DecodeInputs, make_inputs


class HardInputs(NamedTuple):
    """Arguments of one call, and the standard deviation of the normal state that it should start from."""

    inputs: DecodeInputs
    state_std: float


class HardCall(NamedTuple):
    """Inputs of one call whose row i is of kind kinds[i], and the standard deviation of each such row's state."""

    kinds: list[str]
    inputs: DecodeInputs
    state_std: list[float]


class _Kind(NamedTuple):
    state_std: float
    strong_decay: bool = False
    gates_near_one: bool = False  # log g mostly from -1e-3 to -1e-6, beta mostly from 0.9 to 1


KINDS = {
    "strong decay": _Kind(1.0, strong_decay=True),
    "hardly any decay": _Kind(1.0, gates_near_one=True),
    "nearly parallel keys": _Kind(30.0, gates_near_one=True),
    "q = k": _Kind(30.0, gates_near_one=True),
    "large state": _Kind(30.0),
    "large values": _Kind(1.0),
    "zero keys": _Kind(1.0),  # of every third token; with large values
}
LARGEST_VALUE = 1000.0
NOISE = 0.05  # of nearly parallel keys and queries, relative to the direction that a head's keys and queries share


def hard_inputs(
    shape: GDNShape, batch: int, *, tokens=None, device="cpu", dtype=torch.bfloat16, seed=0
) -> dict[str, HardInputs]:
    """Make the inputs of every kind in KINDS.

    batch, tokens, device, dtype, seed: as in make_inputs(); for prefill(), `batch` counts tokens.
    """
    options = dict(tokens=tokens, device=device, dtype=dtype, seed=seed)
    return {name: inputs_of_kind(name, shape, batch, **options) for name in KINDS}


def inputs_of_kind(name: str, shape: GDNShape, batch: int, **options) -> HardInputs:
    """Make the inputs of one kind. options: tokens, device, dtype, seed, as in make_inputs()."""
    return HardInputs(_inputs(name, shape, batch, **{"seed": 0} | options), KINDS[name].state_std)


def in_one_call(
    shape: GDNShape, kinds, batch: int, *, tokens=None, device="cpu", dtype=torch.bfloat16, seed=0
) -> HardCall:
    """Make the inputs of one call of `batch` rows whose row i is of kind kinds[i]; the rows after those are random.

    kinds: at most `batch` names in KINDS. Other arguments as in make_inputs().
    """
    options = dict(tokens=tokens, device=device, dtype=dtype, seed=seed)
    x = make_inputs(shape, batch, **options)
    for row, name in enumerate(kinds):
        hard = _inputs(name, shape, len(kinds), **options)
        for part in ("mixed_qkv", "a", "b"):
            getattr(x, part)[row] = getattr(hard, part)[row]
    return HardCall(list(kinds), x, [KINDS[name].state_std for name in kinds])


def split_kinds(rows: int) -> list[list[str]]:
    """Split the names of all kinds into calls of at most `rows` rows each."""
    names = list(KINDS)
    return [names[start : start + rows] for start in range(0, len(names), rows)]


def _inputs(name, shape, batch, *, seed, **options) -> DecodeInputs:
    """Make inputs of the kind `name`: those of make_inputs() with some of them changed in place."""
    kind = KINDS[name]
    x = make_inputs(shape, batch, seed=seed, strong_decay=kind.strong_decay, **options)
    if kind.gates_near_one:
        x.a.sub_(5.0)  # make_inputs() draws a around -6 and b around 0
        x.b.add_(4.0)
    if name == "nearly parallel keys":
        rng = torch.Generator().manual_seed(seed)
        direction = torch.randn(shape.num_k_heads, shape.head_k_dim, generator=rng).to(x.k.device)
        for part in (x.q, x.k):
            part.copy_(direction + NOISE * part.float())
    elif name == "q = k":
        x.q.copy_(x.k)
    elif name in ("large values", "zero keys"):
        x.v.mul_(LARGEST_VALUE / 4.5)  # the largest of a few thousand normal numbers is near 4.5
    if name == "zero keys":
        x.k[..., ::3, :, :] = 0.0  # every third token
    return x
