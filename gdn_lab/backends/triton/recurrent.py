"""Recurrent Triton kernel: decode, and verify for few tokens or where every state is stored.

The state of one value head is a [128 × 128] matrix of 32 KB in bf16. A program takes a tile of it: TILE rows of V and
all of K, so that S k and S q are complete within the program. In memory the tile is

    VK (K-last)   [TILE, K]   one run of TILE · K elements
    KV            [K, TILE]   K runs of TILE elements, V elements apart

The tile is read once, updated in registers for each token, and written where the call asks for it. S k and S q are
taken from the state as loaded, before decay and correction are known; those are applied afterwards:

    S k = g (S_old k)      u = beta (v - S k)      o = (S + u kᵀ) q = g (S_old q) + u (k . q)

so the two sums over K run in parallel, and nothing but the index precedes the load of the state.

Stochastic rounding (rounding.py) is a constant of the kernel: without it, not an instruction is added. A program reads
its own counter of steps, which nobody else writes, and stores it advanced by one with its tile.

On compute capability 9.0 and newer, decode of `vk` and all of verify use programmatic dependent launch (PDL): programs
are set up while the kernel before them drains, wait there for its results, and let the next kernel do the same. The
arithmetic is the same.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..base import capability
from .device import EPS, log_decay, program_coords, sigmoid, state_offsets
from .stochastic import STEP_ROWS, head_key, random_bits, round_stochastically, scaled

SATURATED_HEADS = 1024  # B · HV heads that fill a GPU
FEW_HEADS = 256  # fewer than these leave most of it idle


class Tile(NamedTuple):
    """How a kernel is launched. registers: the most that a thread may take, so that more programs fit an SM and more
    bytes are in flight; None leaves it to the compiler. keep: as KEEP of recurrent_kernel."""

    rows: int  # of the state, for a program
    warps: int
    registers: int | None = None
    keep: bool = False


class Strides(NamedTuple):
    """Elements from one row, token and head of each input to the next; the last dimension is contiguous."""

    q_row: int
    q_token: int
    q_head: int
    k_row: int
    k_token: int
    k_head: int
    v_row: int
    v_token: int
    v_head: int
    a_row: int
    a_token: int
    b_row: int
    b_token: int

    def of(self, *inputs: str) -> dict[str, int]:
        """Return the strides of some inputs, "q" say, by name."""
        return {name: value for name, value in zip(self._fields, self, strict=True) if name[0] in inputs}


class Constants(NamedTuple):
    """The constexprs of recurrent_kernel, in its order."""

    HK: int
    HV: int
    K: int
    V: int
    T: int
    TILE: int
    K_LAST: bool
    STORE_STATES: bool
    UPDATE: bool
    OVERLAP: bool
    L2NORM: bool
    STOCHASTIC: bool = False
    KEEP: bool = False


@triton.jit(do_not_specialize=["seed"])
def recurrent_kernel(
    q, k, v, a, b, A_log, dt_bias, state, indices, states, out, scale,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, a_row, a_token, b_row, b_token, states_row,
    steps, seed,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, T: tl.constexpr, TILE: tl.constexpr,
    K_LAST: tl.constexpr, STORE_STATES: tl.constexpr, UPDATE: tl.constexpr, OVERLAP: tl.constexpr, L2NORM: tl.constexpr,
    STOCHASTIC: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Update TILE rows of one head's state for one batch row. Grid: [V // TILE · HV · B], tiles fastest.

    *_row, *_token, *_head: strides in elements; the last dimension is contiguous everywhere. out [B, T, HV, V].
    state [slots, HV, V, K] with K_LAST, else [slots, HV, K, V]; offsets of slots and rows are 64-bit.
    STORE_STATES: states [B, T, HV, V, K] (or [.., K, V]) takes the state after each token. UPDATE: the pool's state
    takes the last one. OVERLAP: the launch may begin before the kernel ahead of it has ended, so nothing is loaded
    before gdc_wait(). STOCHASTIC: the pool's state is rounded stochastically by `seed` and steps [slots, HV, V // 4];
    with K_LAST alone. Both are None otherwise. KEEP: the L2 keeps the tile until it is written (evict_last).
    """
    tile, head, key_head, row = program_coords(HK, HV, V // TILE)
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

    inside = state_offsets(vs, ks, K, V, K_LAST)  # [TILE, K]
    tile_at = state + (slot * HV + head) * (V * K) + inside
    S = tl.load(tile_at, eviction_policy="evict_last" if KEEP else "").to(tl.float32)
    if STOCHASTIC:
        steps_at = steps + (slot * HV + head) * (V // STEP_ROWS) + tile * (TILE // STEP_ROWS)
        step = tl.load(steps_at)

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

    # The order of the two stores changes decode's time on an H100: with the state's first kv32 takes 0.9 times as long,
    # a K-last kernel without PDL 1.1 times.
    STATE_FIRST: tl.constexpr = T == 1 and UPDATE and not STORE_STATES and not K_LAST
    for t in tl.static_range(T):
        q_vec = q_next.to(tl.float32)
        k_vec = k_next.to(tl.float32)
        v_vec = v_next.to(tl.float32)
        x = a_next.to(tl.float32) + dt
        b_log = b_next.to(tl.float32)
        if t < T - 1:  # prefetch the next token
            q_next = tl.load(q_at + (t + 1) * q_token)
            k_next = tl.load(k_at + (t + 1) * k_token)
            v_next = tl.load(v_at + (t + 1) * v_token)
            a_next = tl.load(a_at + (t + 1) * a_token)
            b_next = tl.load(b_at + (t + 1) * b_token)

        g = tl.exp(log_decay(x, A))
        beta = sigmoid(b_log)
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
            if STOCHASTIC:  # cheaper here than once for each element
                g, u = scaled(g, state.dtype.element_ty), scaled(u, state.dtype.element_ty)
            S = g * S + u[:, None] * k_vec[None, :]
            tl.store(out_at + t * (HV * V), o.to(out.dtype.element_ty))
        if STORE_STATES:
            states_at = states + row * states_row + t * (HV * V * K) + head * (V * K) + inside
            tl.store(states_at, S.to(states.dtype.element_ty))
    if STOCHASTIC:
        bits = random_bits(head_key(seed, step, slot * HV + head), vs, ks, u, K)
        tl.store(tile_at, round_stochastically(S, bits, state.dtype.element_ty))
        tl.store(steps_at + tl.arange(0, TILE // STEP_ROWS), tl.zeros([TILE // STEP_ROWS], tl.int32) + (step + 1))
    elif UPDATE and not STATE_FIRST:
        tl.store(tile_at, S.to(state.dtype.element_ty))


def launch_recurrent(
    constants: Constants, tile: Tile, arguments: tuple, strides: tuple, states_row: int, rounding=(None, None)
) -> None:
    """Launch recurrent_kernel. arguments: its tensors and scale; strides: as Strides, here as a plain tuple too.
    rounding: steps and seed, where the constants say so.

    By position: passing this many arguments by keyword makes decode() take a sixth more host time.
    """
    recurrent_kernel[(constants.V // constants.TILE * constants.HV * arguments[0].shape[0],)](
        *arguments,
        *strides,
        states_row,
        *rounding,
        *constants,
        num_warps=tile.warps,
        maxnreg=tile.registers,
        launch_pdl=constants.OVERLAP,
    )


def can_overlap(device: torch.device) -> bool:
    """Whether the GPU has programmatic dependent launch: compute capability 9.0 and newer."""
    return device.type == "cuda" and capability(device) >= (9, 0)


def is_hopper(device: torch.device) -> bool:
    """Compute capability 9.x, for which the limits of registers were chosen."""
    return device.type == "cuda" and capability(device)[0] == 9


def use_recurrent(
    heads: int, tokens: int, dtype: torch.dtype, io_dtype: torch.dtype, store_states: bool, update: bool
) -> bool:
    """Whether verify takes recurrent_kernel for B · HV heads. store_states: the state after each token is kept.

    With stored states both kernels are memory-bound, and this one needs no scratch. Otherwise it is faster on an H100
    up to the number of tokens whose arithmetic hides behind the state's bytes. Inputs of float32, whose products need
    many registers, and of float16, whose range is too small for u, always take it.
    """
    if store_states or not update:
        return store_states
    if io_dtype is not torch.bfloat16:
        return True
    return tokens <= (6 if dtype is torch.float32 else 4 if heads < FEW_HEADS else 2)


def decode_tile(heads: int, overlap: bool) -> Tile:
    """Choose the tile of a VK pool for B · HV heads: small to fill the GPU, large for bytes in flight (H100 times)."""
    if heads <= 128:
        return Tile(8 if overlap else 4, 1)
    return Tile(32 if overlap and heads >= 16384 else 16, 1)


def h200_tile(tile: Tile) -> Tile:
    """Choose the tile on an H200, given that of an H100: at most 16 rows, of a 16-bit state 1.7 % faster than 32; and
    where it was 32, kept in the L2 until it is written, another 2.4 % faster at random slots."""
    return tile._replace(rows=min(tile.rows, 16), keep=tile.rows > 16)


def stochastic_tile(tile: Tile) -> Tile:
    """Choose the tile of stochastic rounding, given that of rounding to nearest: at most 16 rows, 2% faster than 32 on
    an H200, and the registers that nearest takes for them, without which 13 programs fit an SM, not 16."""
    return tile if tile.rows < 16 else tile._replace(rows=16, registers=128)


def verify_tile(heads: int, tokens: int, dtype: torch.dtype, k_last: bool, hopper: bool) -> Tile:
    """Choose the tile of verify for B · HV heads, by times on an H100."""
    if not k_last:
        return Tile(32, 2)
    if dtype is not torch.bfloat16 or tokens > 2:
        return Tile(8, 1)
    if heads < FEW_HEADS:
        return Tile(16, 2)
    return Tile(16, 1, 128) if hopper else Tile(8, 1)
