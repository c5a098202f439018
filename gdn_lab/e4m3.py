"""An FP8 state: float8_e4m3fn elements with one float32 scale for each row of S, in plain PyTorch.

    S[v, :] = scale[v] · e4m3[v, :]        scale[v] = max |S[v, :]| / 448, where 448 is the largest e4m3 number

e4m3 has 4 significant bits, so an element is off by up to 1/16 of itself, rounded to nearest, and by up to 1/8, rounded
stochastically; and by no less than half, or all, of 2^-9 scales. Nothing here synchronises with a GPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .rounding import FP8

LARGEST = 448.0  # of float8_e4m3fn
SMALLEST_SCALE = 1e-30  # of a row of zeros


class RowScaled(NamedTuple):
    """A state in FP8. data [.., V, K] float8_e4m3fn; scales [.., V] float32."""

    data: Tensor
    scales: Tensor

    def dequantised(self) -> Tensor:
        """Return the state, [.., V, K] float32."""
        return self.data.float() * self.scales[..., None]

    def where(self, condition: Tensor, other: "RowScaled") -> "RowScaled":
        """Return this state where condition, bool [n], else `other`. Both [n, HV, V, K]."""
        data = torch.where(condition[:, None, None, None], self.data.view(torch.uint8), other.data.view(torch.uint8))
        return RowScaled(data.view(FP8), torch.where(condition[:, None, None], self.scales, other.scales))


def row_scales(S: Tensor) -> Tensor:
    """Return the scale of each row of S [.., V, K]: [.., V] float32. NaN in a row does not count."""
    return (S.abs().nan_to_num(nan=0.0, posinf=torch.inf).amax(-1).float() / LARGEST).clamp(min=SMALLEST_SCALE)


def quantised(S: Tensor) -> RowScaled:
    """Round S [.., V, K] to nearest. NaN and infinity become NaN, and with infinity the whole row."""
    scales = row_scales(S)
    return RowScaled((S.float() / scales[..., None]).clamp(-LARGEST, LARGEST).to(FP8), scales)


def as_stored(S: Tensor, dtype: torch.dtype) -> Tensor:
    """Return S [.., V, K] as it is read back after it was stored in dtype, float32."""
    return quantised(S).dequantised() if dtype is FP8 else S.to(dtype).float()


def draft_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the states that verify() keeps for draft tokens, for a pool of dtype: of FP8 bfloat16."""
    return torch.bfloat16 if dtype is FP8 else dtype


def check_layout(dtype: torch.dtype, layout: str) -> None:
    """Raise ValueError for a state of FP8 in another layout than VK."""
    if dtype is FP8 and layout != "VK":
        raise ValueError(f"layout: expected VK for a state of {FP8}, where a row with its scale is a run, got {layout}")
