"""Deferred write-back, the part that writes: the true state of slots whose ring is full, and of any slot on request.

The pending updates of a slot are u_j k_jᵀ with j = first … end - 1 (base.Ring). Their sum over j is one product
[TILE, C] · [C, K] on the tensor cores: k as it came is exact in 16 bits, u is split into 16-bit terms.
"""

import torch
import triton
import triton.language as tl

from .device import INTERPRETED, state_offsets

ARRIVE = tl.constexpr(
    "{ .reg .pred p; .reg .u32 t; mov.u32 t, %tid.x; setp.eq.u32 p, t, 0; mov.b32 $0, -1;"
    " @p atom.relaxed.gpu.global.add.u32 $0, [$1], 1; shfl.sync.idx.b32 $0, $0, 0, 31, -1; }"
)
SETTLE_TILE, SETTLE_WARPS = 32, 4


@triton.jit
def arrive(counter):
    """Add one to *counter, int32; return what it was, in the program's first warp alone."""
    if INTERPRETED:
        return tl.atomic_add(counter, 1, sem="relaxed")
    else:
        return tl.inline_asm_elementwise(ARRIVE, "=r,l", [counter.to(tl.int64)], tl.int32, is_pure=False, pack=1)


@triton.jit
def decays_after(log_decays_at, first, end, C: tl.constexpr):
    """Return Σ_{i > j} g_i for each j of a ring [C], and the sum of all.

    Each is a sum of its own terms: as a difference of two sums it would lose everything after one strong decay.
    """
    js = tl.arange(0, C)
    later = tl.load(log_decays_at + js + 1, mask=(js + 1 >= first) & (js + 1 < end), other=0.0)
    every = tl.load(log_decays_at + js, mask=(js >= first) & (js < end), other=0.0)
    return tl.cumsum(later, axis=0, reverse=True), tl.sum(every)


@triton.jit
def ring_of_head(keys_at, log_decays_at, first, end, K: tl.constexpr, C: tl.constexpr):
    """Return a head's keys [C, K], zero where nothing is pending, the weight e^{Σ_{i > j} g_i} of each, e^{Σ g_i}."""
    js = tl.arange(0, C)
    pending = (js >= first) & (js < end)
    after, total = decays_after(log_decays_at, first, end, C)
    keys = tl.load(keys_at + js[:, None] * K + tl.arange(0, K)[None, :], mask=pending[:, None], other=0.0)
    return keys, tl.where(pending, tl.exp(after), 0.0), tl.exp(total)


@triton.jit
def add_updates(S, u, keys, TERMS: tl.constexpr):
    """Return S [TILE, K] + u keys, float32: u [TILE, C] float32, keys [C, K]. TERMS: bf16 terms of u, or 0 for TF32
    products, three for each."""
    if TERMS == 0:
        S = tl.dot(u, keys.to(tl.float32), S, input_precision="tf32x3")
    for _ in tl.static_range(TERMS):
        term = u.to(tl.bfloat16)
        if INTERPRETED:  # it has no product of bf16
            S = tl.dot(term.to(tl.float32), keys.to(tl.float32), S)
        else:
            S = tl.dot(term, keys, S)
        u -= term.to(tl.float32)
    return S


@triton.jit
def with_pending(S, corrections_at, keys, weights, decay, first, end, V: tl.constexpr, TILE: tl.constexpr,
                 C: tl.constexpr, TERMS: tl.constexpr):  # fmt: skip
    """Return S [TILE, K] float32 with the pending updates added. corrections_at: a head's [C, V] from the tile's first
    row on. TERMS: of add_updates()."""
    js = tl.arange(0, C)
    pending = (js >= first) & (js < end)
    u_at = corrections_at + js[None, :] * V + tl.arange(0, TILE)[:, None]
    u = tl.load(u_at, mask=pending[None, :], other=0.0).to(tl.float32) * weights[None, :]
    return add_updates(S * decay, u, keys, TERMS)


@triton.jit
def settle_kernel(
    state, indices, keys, corrections, log_decays, span,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    TERMS: tl.constexpr,
):  # fmt: skip
    """Add a row's pending updates to TILE rows of one head's state. Grid: [V // TILE · HV · B]. The span stays."""
    TILES: tl.constexpr = V // TILE
    tile = tl.program_id(0) % TILES
    head = tl.program_id(0) // TILES % HV
    slot = tl.load(indices + tl.program_id(0) // (TILES * HV)).to(tl.int64)
    if slot < 0:
        return
    first, end = tl.load(span + 2 * slot), tl.load(span + 2 * slot + 1)
    if first == end:
        return
    vs = tile * TILE + tl.arange(0, TILE)
    tile_at = state + (slot * HV + head) * (V * K) + state_offsets(vs, tl.arange(0, K), K, V, True)
    keys_at = keys + (slot * HK + head // (HV // HK)) * (C * K)
    ring, weights, decay = ring_of_head(keys_at, log_decays + (slot * HV + head) * C, first, end, K, C)
    u_at = corrections + (slot * HV + head) * (C * V) + tile * TILE
    S = tl.load(tile_at).to(tl.float32)
    S = with_pending(S, u_at, ring, weights, decay, first, end, V, TILE, C, TERMS)
    tl.store(tile_at, S.to(state.dtype.element_ty))


def terms(state_dtype: torch.dtype, key_dtype: torch.dtype) -> int:
    """Choose how u enters the product with keys of key_dtype: in 2 or 3 bf16 terms, 16 or 24 bits, or 0 for TF32."""
    if key_dtype is not torch.bfloat16:
        return 0
    return 2 if state_dtype is torch.bfloat16 else 3


def settle(state, ring, indices) -> None:
    """Add the pending updates of the rows' slots to state, [slots, HV, V, K]. ring: base.Ring; its spans stay."""
    HV, V, K = state.shape[1:]
    HK, C = ring.keys.shape[1:3]
    with torch.cuda.device_of(state):
        settle_kernel[(V // SETTLE_TILE * HV * len(indices),)](
            *(state, indices, ring.keys, ring.corrections, ring.log_decays, ring.span),
            HK=HK,
            HV=HV,
            K=K,
            V=V,
            C=C,
            TILE=SETTLE_TILE,
            TERMS=terms(state.dtype, ring.keys.dtype),
            num_warps=SETTLE_WARPS,
        )
