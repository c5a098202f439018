"""Device code of stochastic rounding: the bits and the rounding of rounding.py, without a branch.

Of the elements that a thread holds, neighbours along K share a hash: it is written for each, and the compiler finds
that both halves of a pair need the same.
"""

import triton
import triton.language as tl

from ...rounding import FP16_SCALE, ROWS_OF_A_STEP

STEP_ROWS = tl.constexpr(ROWS_OF_A_STEP)
SCALE = tl.constexpr(FP16_SCALE)


@triton.jit
def mixed(x):
    """Return MurmurHash3's finalizer of a uint32."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def head_key(seed, step, head):
    """Return the key of one head in one step, uint32. head: slot · HV + value head, int64."""
    key = mixed(seed.to(tl.uint32) ^ mixed(head.to(tl.uint32)))
    return mixed(key ^ step.to(tl.uint32))


@triton.jit
def random_bits(key, vs, ks, K: tl.constexpr):
    """Return 16 random bits, uint32 [len(vs), len(ks)], for the elements S[vs, ks] of a head's state."""
    pair = (vs * (K // 2))[:, None] + (ks >> 1)[None, :]
    x = (key + pair.to(tl.uint32)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    x ^= x >> 16
    return (x >> ((ks & 1) * 16).to(tl.uint32)[None, :]) & 0xFFFF


@triton.jit
def round_stochastically(x, bits, DTYPE: tl.constexpr):
    """Return float32 x rounded to bfloat16 or float16 by 16 random bits for each element; NaN stays NaN."""
    if DTYPE == tl.bfloat16:
        whole = tl.where(x == x, x.to(tl.uint32, bitcast=True), 0x7FC00000)
        return ((whole + bits) >> 16).to(tl.uint16).to(DTYPE, bitcast=True)
    else:
        tl.static_assert(DTYPE == tl.float16)
        # Not (x * SCALE's bits << 3): ptxas 12.8 takes that for 0.
        whole = (x * SCALE).to(tl.uint32, bitcast=True) + (bits >> 3)
        rounded = ((whole >> 13) & 0x7FFF) | ((whole >> 16) & 0x8000)
        finite = tl.abs(x) < 65536.0  # not so of NaN
        return tl.where(finite, rounded.to(tl.uint16).to(DTYPE, bitcast=True), x.to(DTYPE))
