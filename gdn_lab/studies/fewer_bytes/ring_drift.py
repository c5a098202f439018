"""How rounding errors of a state add up over decode steps: the roundings of each design, in PyTorch, against float64.

The arithmetic between two roundings is float32, as in the kernels. A ring rounds u to bf16 where the state is bf16 or
FP8 and keeps it whole otherwise; the state is rounded once in C + 1 steps, FP8 once in C steps, stochastically, with
a scale a row.
"""

from typing import NamedTuple

import torch

from .byte_designs import FP8, Design

HEADS, SIZE = 1, 128  # value heads, K and V
E4M3_LARGEST, E4M3_MANTISSA, E4M3_SMALLEST = 448.0, 3, -6


class Kind(NamedTuple):
    """Inputs of a trajectory. decay: least and greatest g. rank: dimensions that the keys span."""

    name: str
    decay: tuple[float, float]
    rank: int


KINDS = (Kind("typical decay", (0.9, 0.999), SIZE), Kind("hardly any decay, 16-dimensional keys", (0.9999, 1.0), 16))


def drift(designs, steps: int, *, kinds=KINDS, seed: int = 0, device="cpu") -> list[dict]:
    """Return rows of kind, design, step and relative_error, ‖S - S₆₄‖ / ‖S₆₄‖, at the steps of marks()."""
    return [row for kind in kinds for row in _drift(designs, steps, kind, seed, device)]


def marks(steps: int) -> list[int]:
    """Return the steps at which errors are taken: 1, 2, 5, 10, … well before the last, and the last."""
    wanted = (digit * 10**power for power in range(7) for digit in (1, 2, 5))
    return sorted({*(step for step in wanted if step < 0.8 * steps), steps})


def _drift(designs, steps: int, kind: Kind, seed: int, device) -> list[dict]:
    rng = torch.Generator(device).manual_seed(seed)
    double = {"dtype": torch.float64, "device": device}
    basis = torch.randn(HEADS, kind.rank, SIZE, generator=rng, **double)
    exact = torch.zeros(HEADS, SIZE, SIZE, **double)
    states = {design: torch.zeros(HEADS, SIZE, SIZE, device=device) for design in designs}
    rows, taken = [], set(marks(steps))
    for step in range(1, steps + 1):
        k = (torch.randn(HEADS, 1, kind.rank, generator=rng, **double) @ basis).bfloat16().double()
        norm = torch.rsqrt(k.square().sum(-1, keepdim=True) + 1e-6)
        v = torch.randn(HEADS, SIZE, 1, generator=rng, **double).bfloat16().double()
        least, most = kind.decay
        g = least + (most - least) * torch.rand(HEADS, 1, 1, generator=rng, **double)
        beta = torch.rand(HEADS, 1, 1, generator=rng, **double)
        exact = _step(exact, k, norm, v, g, beta, None)
        inputs = [x.float() for x in (k, norm, v, g, beta)]
        for design in designs:
            # Phases of different slots do not matter here: every state is written at the same steps
            period = design.updates + (design.dtype is not FP8)  # a step that fills an FP8 ring also empties it
            writes = design.updates == 0 or step % period == 0
            keeps_bf16 = design.dtype is FP8 or not writes and design.dtype is torch.bfloat16
            state = _step(states[design], *inputs, torch.bfloat16 if keeps_bf16 else None)
            states[design] = rounded(state, design.dtype, rng) if writes else state
            if step in taken:
                error = ((states[design].double() - exact).norm() / exact.norm()).item()
                rows.append({"kind": kind.name, "design": design.label, "step": step, "relative_error": error})
    return rows


def _step(S, k, norm, v, g, beta, correction_dtype):
    """Return g S + u kᵀ. k [HEADS, 1, K] as it came; u over its norm is rounded to correction_dtype, if given."""
    S = g * S
    u = beta * (v - (S * k).sum(-1, keepdim=True) * norm) * norm
    return S + (u if correction_dtype is None else u.to(correction_dtype).to(S.dtype)) * k


def rounded(S: torch.Tensor, dtype: torch.dtype, rng: torch.Generator) -> torch.Tensor:
    """Return S [.., V, K] float32 as it is read back after it was stored in dtype."""
    if dtype is not FP8:
        return S.to(dtype).float()
    scale = (S.abs().amax(-1, keepdim=True) / E4M3_LARGEST).clamp(min=1e-30)
    x = S / scale
    exponent = torch.floor(torch.log2(x.abs().clamp(min=2.0**E4M3_SMALLEST)))
    unit = torch.exp2(exponent - E4M3_MANTISSA)
    noise = torch.rand(x.shape, generator=rng, device=x.device)
    return (torch.floor(x / unit + noise) * unit).clamp(-E4M3_LARGEST, E4M3_LARGEST) * scale


def ratio_to(rows: list[dict], design: Design, other: Design, kind: str) -> float:
    """Return the error of `design` over that of `other` at the last step."""
    last = max(row["step"] for row in rows)
    errors = {row["design"]: row["relative_error"] for row in rows if row["step"] == last and row["kind"] == kind}
    return errors[design.label] / errors[other.label]
