"""Token by token in Triton: decode, and the verify calls that a state for each token or few tokens make.

The state of one value head is a [128 × 128] matrix of 32 KB in bf16. A program takes a tile of it: TILE values of V and
all of K, so that S k and S q are complete within the program. What the layouts do to the tile's memory order:

    VK   [TILE, K]   one run of TILE · K elements
    KV   [K, TILE]   K pieces of TILE elements, V elements apart

The tile is read once, moved on in registers by each token, and written where it is asked for. From the state that a
token finds, before anything else is known, come S k and S q; decay and correction are applied after:

    S k = g (S_old k)      u = beta (v - S k)      o = (S + u kᵀ) q = g (S_old q) + u (k . q)

so the two sums over K run beside each other, and nothing stands between the index and the state's load.

On compute capability 9.0 and newer `vk` and verify launch it as a programmatic dependent: its programs are set up while
the kernel before it drains, wait there for its results, and let the kernel after it do the same. Same arithmetic.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ...reference import NORM_EPS, SOFTPLUS_THRESHOLD
from ..base import KernelCase, dtype_name

FULL = 1024  # B · HV heads from which a GPU is full
FEW = 256  # and up to which it has far less to do than it could


class Tile(NamedTuple):
    """Rows of a tile of the state, warps of its program, and the most registers that a thread may take: fewer of them
    let more programs, so more bytes, be on their way. None: as many as the compiler likes."""

    rows: int
    warps: int
    registers: int | None = None


@triton.jit
def place(HK: tl.constexpr, HV: tl.constexpr, TILES: tl.constexpr):
    """A program's tile of a head, value head, key head and batch row (64 bits); tiles fastest, then heads."""
    tile = tl.program_id(0) % TILES
    head = (tl.program_id(0) // TILES) % HV
    row = (tl.program_id(0) // (TILES * HV)).to(tl.int64)
    return tile, head, head // (HV // HK), row


@triton.jit
def in_head(vs, ks, K: tl.constexpr, V: tl.constexpr, K_LAST: tl.constexpr):
    """Where S [vs, ks] lies in a head's state in either memory order; for KV the transpose of what lies there."""
    if K_LAST:
        return vs[:, None] * K + ks[None, :]
    else:
        return ks[None, :] * V + vs[:, None]


@triton.jit
def tokens_kernel(
    q, k, v, a, b, A_log, dt_bias, state, indices, states, out, scale,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, a_row, a_token, b_row, b_token, states_row,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, T: tl.constexpr, TILE: tl.constexpr,
    K_LAST: tl.constexpr, STEPS: tl.constexpr, UPDATE: tl.constexpr, OVERLAP: tl.constexpr, L2NORM: tl.constexpr,
    EPS: tl.constexpr, SOFTPLUS_MAX: tl.constexpr,
):  # fmt: skip
    """One program: TILE rows of one head's state for one batch row. Grid: [V // TILE · HV · B], tiles fastest.

    *_row, *_token, *_head: strides in elements; the last dimension is contiguous everywhere. out [B, T, HV, V].
    state [slots, HV, V, K] with K_LAST, else [slots, HV, K, V]; offsets of slots and rows are 64-bit. STEPS: states
    [B, T, HV, V, K] (or [.., K, V]) takes the state after each token. UPDATE: the pool's state takes the last. OVERLAP:
    this launch may begin before the kernel ahead of it has ended, so nothing is loaded before gdc_wait().
    """
    tile, head, key_head, row = place(HK, HV, V // TILE)
    ks = tl.arange(0, K)
    vs = tile * TILE + tl.arange(0, TILE)
    if OVERLAP:
        gdc_wait()
    slot = tl.load(indices + row).to(tl.int64)
    out_at = out + row * (T * HV * V) + head * V + vs
    if slot < 0:
        for t in tl.static_range(T):
            tl.store(out_at + t * (HV * V), tl.zeros([TILE], tl.float32).to(out.dtype.element_ty))
        return

    inside = in_head(vs, ks, K, V, K_LAST)  # [TILE, K]
    tile_at = state + (slot * HV + head) * (V * K) + inside
    S = tl.load(tile_at).to(tl.float32)

    q_at = q + row * q_row + key_head * q_head + ks
    k_at = k + row * k_row + key_head * k_head + ks
    v_at = v + row * v_row + head * v_head + vs
    a_at = a + row * a_row + head
    b_at = b + row * b_row + head
    q_next = tl.load(q_at)
    k_next = tl.load(k_at)
    v_next = tl.load(v_at)
    a_next = tl.load(a_at)
    b_next = tl.load(b_at)
    dt = tl.load(dt_bias + head)
    A = tl.exp(tl.load(A_log + head))
    if OVERLAP:
        gdc_launch_dependents()

    # What the compiler makes of decode depends on which store comes first: with the state's, on an H100, kv32 takes 0.9
    # of the time, a K-last kernel that overlaps nothing 1.1 times as long.
    STATE_FIRST: tl.constexpr = T == 1 and UPDATE and not STEPS and not K_LAST
    for t in tl.static_range(T):
        q_vec = q_next.to(tl.float32)
        k_vec = k_next.to(tl.float32)
        v_vec = v_next.to(tl.float32)
        x = a_next.to(tl.float32) + dt
        b_log = b_next.to(tl.float32)
        if t < T - 1:  # on their way while this token is at work
            q_next = tl.load(q_at + (t + 1) * q_token)
            k_next = tl.load(k_at + (t + 1) * k_token)
            v_next = tl.load(v_at + (t + 1) * v_token)
            a_next = tl.load(a_at + (t + 1) * a_token)
            b_next = tl.load(b_at + (t + 1) * b_token)

        softplus = tl.where(x > SOFTPLUS_MAX, x, tl.log(1.0 + tl.exp(tl.minimum(x, SOFTPLUS_MAX))))
        g = tl.exp(-A * softplus)
        beta = 1.0 / (1.0 + tl.exp(-b_log))
        if L2NORM:
            q_vec *= scale * tl.rsqrt(tl.sum(q_vec * q_vec) + EPS)
            k_vec *= tl.rsqrt(tl.sum(k_vec * k_vec) + EPS)
        else:
            q_vec *= scale

        Sk = tl.sum(S * k_vec[None, :], axis=1)
        Sq = tl.sum(S * q_vec[None, :], axis=1)
        u = beta * (v_vec - g * Sk)
        if STATE_FIRST:
            S = g * S + u[:, None] * k_vec[None, :]
            tl.store(tile_at, S.to(state.dtype.element_ty))
            tl.store(out_at, (g * Sq + u * tl.sum(q_vec * k_vec)).to(out.dtype.element_ty))
        else:
            o = g * Sq + u * tl.sum(q_vec * k_vec)
            S = g * S + u[:, None] * k_vec[None, :]
            tl.store(out_at + t * (HV * V), o.to(out.dtype.element_ty))
        if STEPS:
            states_at = states + row * states_row + t * (HV * V * K) + head * (V * K) + inside
            tl.store(states_at, S.to(states.dtype.element_ty))
    if UPDATE and not STATE_FIRST:
        tl.store(tile_at, S.to(state.dtype.element_ty))


def launch_tokens(
    shape, k_last: bool, overlap: bool, tile: Tile, tokens: int, strides, q, k, v, a, b, *, A_log, dt_bias, state,
    indices, scale, use_qk_l2norm, out, update_state: bool = True,
):  # fmt: skip
    """strides: of q, k and v the row's, the token's and the head's, of a and b the row's and the token's, in elements.
    state.intermediate: takes the state after each token."""
    HK, HV, K, V = shape.num_k_heads, shape.num_v_heads, shape.head_k_dim, shape.head_v_dim
    state, states = state
    steps = states is not None
    tokens_kernel[(V // tile.rows * HV * q.shape[0],)](
        q, k, v, a, b, A_log, dt_bias, state, indices, states if steps else state, out, scale,
        *strides, states.stride(0) if steps else 0,
        HK, HV, K, V, tokens, tile.rows, k_last, steps, update_state, overlap, use_qk_l2norm,
        NORM_EPS, SOFTPLUS_THRESHOLD,
        num_warps=tile.warps, maxnreg=tile.registers, launch_pdl=overlap,
    )  # fmt: skip


@functools.cache
def can_overlap(device: torch.device) -> bool:
    """Whether the GPU has programmatic dependent launch: compute capability 9.0 and newer."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Compute capability 9.x, whose compiler finds room within the limits of registers that are set for it."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def by_token(heads: int, tokens: int, dtype: torch.dtype, io_dtype: torch.dtype, steps: bool, update: bool) -> bool:
    """Whether verify goes token by token for B · HV heads. steps: the state after each token is kept.

    For few tokens that takes less time on an H100; how few, the bytes decide that the arithmetic hides behind. And it
    takes inputs of float32, whose products need many registers, and of float16, whose range is too small for u.
    """
    if steps or not update:
        return steps
    if io_dtype is not torch.bfloat16:
        return True
    return tokens <= (6 if dtype is torch.float32 else 4 if heads < FEW else 2)


def decode_tile(heads: int, overlap: bool) -> Tile:
    """Of a VK pool for B · HV heads: small to fill the GPU, large for bytes in flight. Chosen by times on an H100."""
    if heads <= 128:
        return Tile(8 if overlap else 4, 1)
    return Tile(32 if overlap and heads >= 16384 else 16, 1)


def verify_tile(heads: int, tokens: int, dtype: torch.dtype, k_last: bool, hopper: bool) -> Tile:
    """For B · HV heads, chosen by times on an H100."""
    if not k_last:
        return Tile(32, 2)
    if dtype is not torch.bfloat16 or tokens > 2:
        return Tile(8, 1)
    if heads < FEW:
        return Tile(16, 2)
    return Tile(16, 1, 128) if hopper else Tile(8, 1)


def limit(tile: Tile) -> dict:
    """Fields of a KernelCase: a limit of registers is for Hopper alone."""
    return {"registers": tile.registers, "architectures": ("sm_90a",)} if tile.registers else {}


def kernel_cases() -> list[KernelCase]:
    """Every compilation of the kernel at the models' head size, for resources.py: decode as its variants launch it, and
    verify's tiles."""
    cases = []
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")):
        types = dict.fromkeys(tokens_kernel.arg_names, "i32")
        types |= dict.fromkeys(("q", "k", "v", "a", "b", "out"), "*bf16")
        types |= dict.fromkeys(("state", "states"), f"*{name}")
        types |= {"A_log": "*fp32", "dt_bias": "*fp32", "indices": "*i32", "scale": "fp32"}
        launches = [("kv32", Tile(32, 1), False, False, 1, False), ("kv8", Tile(8, 1), False, False, 1, False)]
        for variant, overlap in (("vk", True), ("vk-serial", False)):
            tiles = {decode_tile(heads, overlap) for heads in (64, 4096, 32768)}
            launches += [(variant, tile, True, overlap, 1, False) for tile in sorted(tiles)]
        for k_last, heads, tokens, steps, hopper in (
            (True, 64, 2, False, False), (True, 64, 4, False, False), (True, 4096, 6, False, False),
            (True, 4096, 2, False, True), (True, 4096, 2, True, True), (True, 4096, 16, True, False),
            (False, 4096, 4, True, False),
        ):  # fmt: skip
            if not by_token(heads, tokens, dtype, torch.bfloat16, steps, not steps):
                continue
            tile = verify_tile(heads, tokens, dtype, k_last, hopper)
            launches.append((f"verify {'VK' if k_last else 'KV'}", tile, k_last, True, tokens, steps))
        for variant, tile, k_last, overlap, tokens, steps in launches:
            constants = dict(HK=16, HV=64, K=128, V=128, T=tokens, TILE=tile.rows, K_LAST=k_last, STEPS=steps)
            constants |= dict(UPDATE=not steps, OVERLAP=overlap, L2NORM=True)
            constants |= dict(EPS=NORM_EPS, SOFTPLUS_MAX=SOFTPLUS_THRESHOLD)
            label = f"{variant} {dtype_name(dtype)} tile {tile.rows}"
            if tokens > 1:
                label += f" T {tokens}{' states' if steps else ' update'}"
            cases.append(KernelCase(label, tokens_kernel, types, constants, tile.warps, **limit(tile)))
    unique = {case.label: case for case in cases}
    return list(unique.values())
