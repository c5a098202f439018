"""Stochastic rounding: which random bits round an element of the state, and how. Kernels must give the same bits.

An element between two neighbours of a 16-bit dtype takes the upper one with the probability of its distance from the
lower one, so that the mean of many roundings is the element itself. The random bits are a hash of seed, step, slot,
head and element: no generator, and the same seed gives the same state whatever the batch and the tile.

The bits of S[v, k] are a hash of row v, exclusive-or a hash of column k: 16 bits each, new in every step. So the bits
of any two elements are independent, those of all elements of one row are, and those of one column: a sum of rounding
errors has mean zero and the variance of independent roundings, and the errors of S k and S q average as those do. Only
four corners of a rectangle depend on each other. A kernel hashes rows and columns, and pays two instructions for an
element.

bfloat16 uses 16 bits for the 16 that it drops, so the probability is exact; float16 uses 13 for its 13; float8_e4m3fn
uses 16 for its 20. Hashes: the finalizer of MurmurHash3 (Appleby) for the key of a head, and for its rows and columns
two rounds of multiply and shift with Wellons' constants ("lowbias32"). One hash of 32 bits serves two columns.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDINGS = ("nearest", "stochastic")
DTYPES = (torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn  # of which the fold of a ring rounds stochastically and nothing else (e4m3.py)
ROWS_OF_A_STEP = 4  # of a head's state: they share a counter, which only the program that stores them advances
FP16_SCALE = 2.0**-112  # makes the bits of a float32, shifted right by 13, those of a float16, subnormal numbers too
E4M3_SCALE = 2.0**-120  # the same of a float32 shifted right by 20 and float8_e4m3fn
FP16_LARGEST, FP16_INFINITY, FP16_NAN = 0x7BFF, 0x7C00, 0x7E00  # bits of 65504, infinity and NaN
E4M3_LARGEST, E4M3_NAN = 0x7E, 0x7F  # bits of 448 and NaN
MASK = 0xFFFFFFFF


class Stochastic(NamedTuple):
    """What stochastic rounding needs besides the state. steps [slots, HV, V // 4 rounded up] int32: decode() calls that
    each slot has seen since it was handed out, alike for all rows of a slot; of an FP8 state [slots], and folds instead
    of calls. seed: of the random bits."""

    steps: Tensor
    seed: int

    @classmethod
    def of(cls, slots: int, heads: int, rows: int, seed: int, device, dtype=torch.bfloat16) -> "Stochastic":
        """Make counters at 0 for `slots` slots of `heads` heads with `rows` rows of state of a dtype each."""
        counters = (slots,) if dtype is FP8 else (slots, heads, -(-rows // ROWS_OF_A_STEP))
        return cls(torch.zeros(counters, dtype=torch.int32, device=device), seed)


def head_keys(seed: int, steps: Tensor, slots: Tensor, heads: int) -> Tensor:
    """Return the key of each row's heads, [B, HV] int64 below 2^32. steps [B, HV]; slots [B]."""
    head = slots.long()[:, None] * heads + torch.arange(heads, device=slots.device)
    key = mixed(seed ^ mixed(head & MASK))
    return mixed(key ^ (steps.long() & MASK))


def random_bits(keys: Tensor, rows: int, columns: int) -> Tensor:
    """Return 16 random bits for each element of S, [B, HV, V, K] int32, of keys [B, HV] as head_keys() makes them."""
    pairs = hashed(keys, 0, columns // 2)
    of_column = torch.stack([pairs & 0xFFFF, pairs >> 16], -1).flatten(-2)
    of_row = hashed(keys, columns // 2, rows) & 0xFFFF
    return (of_row[..., :, None] ^ of_column[..., None, :]).to(torch.int32)


def round_stochastically(x: Tensor, dtype: torch.dtype, bits: Tensor) -> Tensor:
    """Return float32 x rounded to a dtype of 8 or 16 bits by 16 random bits for each element; NaN stays NaN.

    Beyond the largest finite number bfloat16 has infinity, as for rounding to nearest. Of the others the largest finite
    number stays; infinity stays infinity in float16.
    """
    if dtype is FP8:
        whole = (x * E4M3_SCALE).view(torch.int32).long() & MASK
        magnitude = (((whole & 0x7FFFFFFF) + (bits << 4)) >> 20).clamp(max=E4M3_LARGEST)
        magnitude = torch.where(x.isnan(), E4M3_NAN, magnitude)
        return (((whole >> 24) & 0x80) | magnitude).to(torch.uint8).view(FP8)
    if dtype is torch.bfloat16:
        whole = torch.where(x.isnan(), 0x7FC00000, x.contiguous().view(torch.int32).long() & MASK)
        return ((whole + bits) >> 16).to(torch.int16).view(torch.bfloat16)
    whole = (x * FP16_SCALE).view(torch.int32).long() & MASK
    magnitude = (((whole & 0x7FFFFFFF) + (bits >> 3)) >> 13).clamp(max=FP16_LARGEST)
    magnitude = torch.where(x.isfinite(), magnitude, torch.where(x.isnan(), FP16_NAN, FP16_INFINITY))
    return (((whole >> 16) & 0x8000) | magnitude).to(torch.int16).view(torch.float16)


def hashed(keys: Tensor, first: int, count: int) -> Tensor:
    """Return a hash below 2^32 of `count` numbers from `first` on, [B, HV, count] int64."""
    x = ((keys[..., None] + torch.arange(first, first + count, device=keys.device)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def mixed(x):
    """MurmurHash3's finalizer of an int or int64 tensor below 2^32."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def check_rounding(rounding, seed, dtype) -> None:
    """Raise ValueError, one sentence, for a rounding, seed or dtype of a state that cannot be."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding: expected one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if rounding == "nearest" and dtype is FP8:
        raise ValueError(f"rounding: expected stochastic for a state of {dtype}, which has no other, got {rounding!r}")
    if rounding == "stochastic" and dtype not in (*DTYPES, FP8):
        raise ValueError(f"rounding: expected nearest for a state of {dtype}, which is not rounded, got {rounding!r}")
    if type(seed) is not int or not 0 <= seed < 2**31:
        raise ValueError(f"seed: expected an int from 0 to 2^31 - 1, got {seed!r}")
