"""Device code of stochastic rounding: the bits and the rounding of rounding.py, without a branch.

A thread hashes its rows and its columns; an element then costs one instruction for its bits, one to add them, and half
of one to pack it; to float16 also a product with 2^112, after which the conversion cuts off what was added.
"""

import triton
import triton.language as tl

from ...rounding import E4M3_SCALE, FP16_SCALE, ROWS_OF_A_STEP

STEP_ROWS = tl.constexpr(ROWS_OF_A_STEP)
SCALE, UNSCALE = tl.constexpr(FP16_SCALE), tl.constexpr(1 / FP16_SCALE)
FP8_SCALE = tl.constexpr(E4M3_SCALE)


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
def hashed(key, at):
    """Return a hash, uint32, of each number of `at`."""
    x = (key + at.to(tl.uint32)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def random_bits(key, vs, ks, u, K: tl.constexpr):
    """Return 16 random bits, uint32 [len(vs), len(ks)], for the elements S[vs, ks] of a head's state.

    u [len(vs)]: S = g S + u kᵀ, u = beta (v - g S k). An S, k, g or v that is not finite makes u so. Such a row has no
    finite element; it gets 0, since a NaN plus random bits may be a number.
    """
    columns = (hashed(key, ks >> 1) >> ((ks & 1) * 16).to(tl.uint32)) & 0xFFFF
    rows = hashed(key, K // 2 + vs) & 0xFFFF
    kept = tl.where(tl.abs(u) < float("inf"), 0xFFFF, 0).to(tl.uint32)
    return (rows[:, None] ^ columns[None, :]) & kept[:, None]


@triton.jit
def scaled(x, DTYPE: tl.constexpr):
    """Return x as round_stochastically takes it: for float16 times 2^-112, else as it is."""
    return x * SCALE if DTYPE == tl.float16 else x


@triton.jit
def round_stochastically(x, bits, DTYPE: tl.constexpr):
    """Return float32 x, scaled, rounded to bfloat16 or float16 by 16 random bits for each element, 0 for a NaN."""
    if DTYPE == tl.bfloat16:
        rounded = x.to(tl.uint32, bitcast=True) + bits
        return (rounded >> 16).to(tl.uint16).to(DTYPE, bitcast=True)
    else:
        tl.static_assert(DTYPE == tl.float16)
        # Random bits below the last place, of subnormal numbers too; what then is below it is cut off
        rounded = (x.to(tl.uint32, bitcast=True) + (bits >> 3)).to(tl.float32, bitcast=True)
        return (rounded * UNSCALE).to(DTYPE, fp_downcast_rounding="rtz")


@triton.jit
def random_bits_of_e4m3(key, vs, ks, K: tl.constexpr):
    """Return the bits of random_bits() as round_to_e4m3() takes them, 4 places further left."""
    columns = ((hashed(key, ks >> 1) >> ((ks & 1) * 16).to(tl.uint32)) & 0xFFFF) << 4
    rows = (hashed(key, K // 2 + vs) & 0xFFFF) << 4
    return rows[:, None] ^ columns[None, :]


@triton.jit
def round_to_e4m3(x, bits):
    """Return float32 x, of at most 448, rounded to float8_e4m3fn by random_bits_of_e4m3(); of NaN, anything."""
    # e4m3 is bits 26 to 20 of this, under the sign. The bits are below 0xFFFF1, so that 448 does not become a NaN
    whole = (x * FP8_SCALE).to(tl.uint32, bitcast=True) + bits
    byte = ((whole << 4) & 0x7FFFFFFF) | (whole & 0x80000000)
    return (byte >> 24).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
