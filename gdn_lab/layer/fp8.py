"""FP8 as checkpoints store it: e4m3, weights scaled by blocks of 128 × 128, activations by token and 128 channels.

An element is data · scale of its block or group, in float32. The scale maps the largest magnitude of the block or group
to 448, e4m3's largest number. In PyTorch, on any device; the kernels that do the same are tested against it.
"""

from typing import NamedTuple

import torch

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
BLOCK = 128  # rows and columns of a weight's block; channels of an activation's group
SMALLEST_AMAX = 1e-10  # keeps the scale of a block or group of zeros above zero
PRECISIONS = ("fp8", "bf16")  # of weights


class Linear(NamedTuple):
    """The weight of y = x Wᵀ: data [..., N, K], K contiguous.

    Either e4m3 with scale [..., ceil(N / 128), ceil(K / 128)] float32, or bf16 with scale None.
    """

    data: torch.Tensor
    scale: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)


def blocks(size: int) -> int:
    """Number of blocks or groups that `size` elements fill; the last may be partial."""
    return -(-size // BLOCK)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each 128 channels of a row: x [..., K] -> (e4m3 [..., K], scale [..., ceil(K / 128)] float32)."""
    *lead, k = x.shape
    groups = torch.nn.functional.pad(x.float(), (0, -k % BLOCK)).view(*lead, blocks(k), BLOCK)
    scale = groups.abs().amax(-1).clamp_min(SMALLEST_AMAX) / E4M3_MAX
    x8 = (groups / scale[..., None]).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3).view(*lead, blocks(k) * BLOCK)
    return x8[..., :k].contiguous(), scale


def dequantize(linear: Linear, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the weight [..., N, K] in `dtype`."""
    if linear.scale is None:
        return linear.data.to(dtype)
    n, k = linear.data.shape[-2:]
    scale = linear.scale.to(dtype).repeat_interleave(BLOCK, -2)[..., :n, :]
    return widened(linear.data, dtype) * scale.repeat_interleave(BLOCK, -1)[..., :k]


def dequantize_rows(x8: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the rows [..., K] of quantize_rows() in `dtype`."""
    return widened(x8, dtype) * scale.to(dtype).repeat_interleave(BLOCK, -1)[..., : x8.shape[-1]]


def widened(data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return e4m3 numbers in `dtype`; on a CPU from a table of all 256, four times as fast as PyTorch's cast there."""
    if data.device.type != "cpu":
        return data.to(dtype)
    values = torch.arange(256, dtype=torch.uint8).view(E4M3).to(dtype)
    return values.index_select(0, data.contiguous().view(torch.uint8).view(-1).int()).view(data.shape)


def random_weight(*shape: int, precision: str, device=None, generator: torch.Generator | None = None) -> Linear:
    """Draw a weight [..., N, K] of normal numbers of variance 1 / K, so that x Wᵀ is about as large as x.

    precision: "fp8" or "bf16". Filled piece by piece, so that gigabytes of FP8 need little temporary memory. FP8 data
    does not use each block's largest magnitude: it is normal times 100, and each block's scale is K^-½ / 100 times 0.8
    to 1.2.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected 'fp8' or 'bf16', got {precision!r}")
    *lead, n, k = shape
    fp8 = precision == "fp8"
    data = torch.empty(*lead, n, k, dtype=E4M3 if fp8 else torch.bfloat16, device=device)
    size = 100.0 if fp8 else k**-0.5
    for part in data.view(-1).split(1 << 25):
        drawn = torch.randn(part.shape, device=device, generator=generator).mul_(size)
        part.copy_(drawn.clamp_(-E4M3_MAX, E4M3_MAX) if fp8 else drawn)
    if not fp8:
        return Linear(data)
    scale = torch.rand(*lead, blocks(n), blocks(k), device=device, generator=generator).mul_(0.4).add_(0.8)
    return Linear(data, scale.mul_(k**-0.5 / size))
