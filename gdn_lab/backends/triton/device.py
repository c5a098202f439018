"""Device code that the Triton kernels share: gate arithmetic, where a program works, where its state lies, prefetching.

Constants of the operation come from reference.py, so that a kernel cannot disagree with it about them.
"""

import triton
import triton.language as tl

from ...reference import NORM_EPS, SOFTPLUS_THRESHOLD

EPS = tl.constexpr(NORM_EPS)  # under the root of the norms of q and k
SOFTPLUS_MAX = tl.constexpr(SOFTPLUS_THRESHOLD)  # softplus(x) is x above it
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1: kernels run on the CPU
PREFETCH = tl.constexpr("prefetch.global.L2 [$1]; mov.b32 $0, 0;")


@triton.jit
def softplus(x, COMPENSATED: tl.constexpr = False):
    """Return log(1 + e^x), float32; x above SOFTPLUS_MAX.

    COMPENSATED: put back what rounding 1 + e^x lost. Prefill sums log g over a whole sequence, where it would add up.
    """
    if COMPENSATED:
        e = tl.exp(tl.minimum(x, SOFTPLUS_MAX))
        return tl.where(x > SOFTPLUS_MAX, x, tl.log(1.0 + e) + (e - ((1.0 + e) - 1.0)) / (1.0 + e))
    else:
        return tl.where(x > SOFTPLUS_MAX, x, tl.log(1.0 + tl.exp(tl.minimum(x, SOFTPLUS_MAX))))


@triton.jit
def log_decay(x, A, COMPENSATED: tl.constexpr = False):
    """Return log g = -A softplus(x), float32, of x = a + dt_bias and A = exp(A_log)."""
    sp = softplus(x, COMPENSATED)
    return -A * sp


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + e^-x), float32: beta of b."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def program_coords(HK: tl.constexpr, HV: tl.constexpr, TILES: tl.constexpr):
    """Return a program's tile of a head's state, value head, key head and batch row (64 bits).

    Grid: [TILES · HV · B], tiles fastest, then heads.
    """
    tile = tl.program_id(0) % TILES
    head = (tl.program_id(0) // TILES) % HV
    row = (tl.program_id(0) // (TILES * HV)).to(tl.int64)
    return tile, head, head // (HV // HK), row


@triton.jit
def state_offsets(vs, ks, K: tl.constexpr, V: tl.constexpr, K_LAST: tl.constexpr):
    """Return the offsets [len(vs), len(ks)] of S[vs, ks] in one head's state: [V, K] with K_LAST, else [K, V]."""
    if K_LAST:
        return vs[:, None] * K + ks[None, :]
    else:
        return ks[None, :] * V + vs[:, None]


@triton.jit
def prefetch_lines(addresses):
    """Ask for the 128-byte lines at int64 `addresses` to be brought into the L2. Nothing waits for them."""
    if not INTERPRETED:
        tl.inline_asm_elementwise(PREFETCH, "=r,l", [addresses], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def prefetch(first, BYTES: tl.constexpr):
    """Ask for BYTES of memory from pointer `first` on to be brought into the L2."""
    if not INTERPRETED:
        prefetch_lines(first.to(tl.int64) + tl.arange(0, BYTES // 128) * 128)
