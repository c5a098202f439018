"""Verify in Triton: T = 2…16 draft tokens for each row by two kernels, the state read once whatever T is.

With G_i the sum of log g up to token i, S the state before the first, and normalised q and k, token i corrects by

    u_i = beta_i v_i - beta_i e^{G_i} S k_i - sum_{j<i} A_ji u_j        A_ji = beta_i e^{G_i - G_j} (k_j . k_i)
    o_i = e^{G_i} S q_i + sum_{j<=i} P_ji u_j                            P_ji = e^{G_i - G_j} (k_j . q_i)
    S_i = e^{G_i} S + sum_{j<=i} e^{G_i - G_j} u_j k_j^T

(reference.prefill_chunked is the same in float64, by chunks.) The state enters only through S k_i and S q_i.

prepare_kernel, one program for value heads that share a key head, computes A, P and the factors of each token, which
need no state, and stores them in scratch. verify_kernel, one program for a [TILE × K] tile of a state, multiplies the
tile as it is stored with the keys and queries as they came on the tensor cores, without rounding anything: norms, decay
and beta are factors of the [TILE × T] products. What remains are T steps on that small product, and one product of all
u with the keys where the state is updated.

Where every state is stored, and for few tokens, recurrent.py's kernel is used instead (use_recurrent()): it is one
launch and needs no scratch.

On compute capability 9.0 and newer both kernels use programmatic dependent launch: verify_kernel's state loads overlap
prepare_kernel. It may read what was written before prepare_kernel, because that waits before it lets others begin; it
waits itself before it reads scratch.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .device import EPS, INTERPRETED, program_coords, sigmoid, softplus, state_offsets
from .recurrent import (
    FEW_HEADS,
    SATURATED_HEADS,
    Constants,
    Strides,
    Tile,
    can_overlap,
    is_hopper,
    launch_recurrent,
    use_recurrent,
    verify_tile,
)

TOKENS = 16  # rows and columns of A and P in scratch
SCRATCH = (2 * TOKENS + 5) * TOKENS  # float32 of a value head: A, P, then one row for each of the factors below
BETA, STATE_TO_U, STATE_TO_O, U_TO_STATE, CARRY = (tl.constexpr((2 * TOKENS + i) * TOKENS) for i in range(5))


@triton.jit
def split_dot(x, y, PIECES: tl.constexpr):
    """Return x @ y to float32 precision.

    PIECES: how many numbers of y's 16-bit dtype add up to one of x; their products are exact. 0: y is float32.
    """
    if PIECES == 0:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), input_precision="tf32x3")
    piece = x.to(y.dtype)
    product = tl.dot(piece, y)
    rest = x.to(tl.float32)
    for _ in tl.static_range(PIECES - 1):
        rest -= piece.to(tl.float32)
        piece = rest.to(y.dtype)
        product = tl.dot(piece, y, product)
    return product


@triton.jit
def prepare_kernel(
    q, k, a, b, A_log, dt_bias, indices, scratch, scale,
    q_row, q_token, q_head, k_row, k_token, k_head, a_row, a_token, b_row, b_token,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, T: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr,
    GROUP: tl.constexpr, PIECES: tl.constexpr, OVERLAP: tl.constexpr, L2NORM: tl.constexpr,
):  # fmt: skip
    """Compute A, P and factors for GROUP value heads of one key head and row. Grid: [HV // GROUP · B], heads fastest.

    scratch [B, HV, SIZE] float32. A and P are stored as [j, i], N × N with N = 16: row j is the effect of u_j on the
    tokens from j on.
    """
    first = tl.program_id(0) % (HV // GROUP) * GROUP
    row = (tl.program_id(0) // (HV // GROUP)).to(tl.int64)
    key_head = first // (HV // HK)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    if tl.load(indices + row) < 0:
        return

    ts = tl.arange(0, N)
    ks = tl.arange(0, K)
    i = ts[None, :]
    j = ts[:, None]
    live = ts < T
    k_at = k + row * k_row + key_head * k_head + ks[:, None] + i * k_token
    q_at = q + row * q_row + key_head * q_head + ks[:, None] + i * q_token
    k_i = tl.load(k_at, mask=i < T, other=0.0)  # [K, N], a token a column
    q_i = tl.load(q_at, mask=i < T, other=0.0)
    k_j = tl.trans(k_i)
    kk = split_dot(k_j, k_i, PIECES)  # [j, i]
    kq = split_dot(k_j, q_i, PIECES)

    k_norm = tl.full([N], 1.0, tl.float32)
    k_norm_j = tl.full([N], 1.0, tl.float32)
    q_norm = tl.full([N], 1.0, tl.float32) * scale
    if L2NORM:
        squares = tl.where(i == j, kk, 0.0)
        k_norm = tl.rsqrt(tl.sum(squares, axis=0) + EPS)
        k_norm_j = tl.rsqrt(tl.sum(squares, axis=1) + EPS)
        q_wide = q_i.to(tl.float32)
        q_norm = tl.rsqrt(tl.sum(q_wide * q_wide, axis=0) + EPS) * scale
    kk = tl.where(i > j, kk * k_norm_j[:, None] * k_norm[None, :], 0.0)
    kq = kq * k_norm_j[:, None] * q_norm[None, :]

    for head in range(first, first + GROUP):
        a_i = tl.load(a + row * a_row + ts * a_token + head, mask=live, other=0.0).to(tl.float32)
        b_i = tl.load(b + row * b_row + ts * b_token + head, mask=live, other=0.0).to(tl.float32)
        x = a_i + tl.load(dt_bias + head)
        sp = softplus(x)
        log_g = tl.where(live, -tl.exp(tl.load(A_log + head)) * sp, 0.0)
        beta = tl.where(live, sigmoid(b_i), 0.0)
        # Sums from j to i, not differences of sums from the start: after a strong decay those would be rounded coarsely
        decay = tl.where(i >= j, tl.exp(tl.cumsum(tl.where(i > j, log_g[None, :], 0.0), axis=1)), 0.0)
        from_start = tl.exp(tl.cumsum(log_g, axis=0))
        to_end = tl.sum(tl.where(i == T - 1, decay, 0.0), axis=1)

        at = scratch + (row * HV + head) * SIZE
        tl.store(at + j * N + i, decay * kk * beta[None, :], mask=j < T)
        tl.store(at + N * N + j * N + i, decay * kq, mask=j < T)
        tl.store(at + BETA + ts, beta)
        tl.store(at + STATE_TO_U + ts, beta * from_start * k_norm)
        tl.store(at + STATE_TO_O + ts, from_start * q_norm)
        tl.store(at + U_TO_STATE + ts, to_end * k_norm_j)
        tl.store(at + CARRY, tl.exp(tl.sum(log_g, axis=0)))


@triton.jit
def verify_kernel(
    q, k, v, state, indices, scratch, out,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, T: tl.constexpr, COLUMNS: tl.constexpr,
    N: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr, K_LAST: tl.constexpr, UPDATE: tl.constexpr,
    PIECES: tl.constexpr, U_PIECES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Verify T tokens on TILE rows of one head's state for one batch row. Grid: [V // TILE · HV · B], tiles fastest.

    state [slots, HV, V, K] with K_LAST, else [slots, HV, K, V]; offsets of slots and rows are 64-bit. out
    [B, T, HV, V]. COLUMNS: T, rounded up to what a product takes. UPDATE: the pool's state takes the last.
    U_PIECES: as split_dot's PIECES, of the product of u and the keys.
    """
    tile, head, key_head, row = program_coords(HK, HV, V // TILE)
    ts = tl.arange(0, COLUMNS)
    ks = tl.arange(0, K)
    vs = tile * TILE + tl.arange(0, TILE)
    live = (ts < T)[None, :]
    slot = tl.load(indices + row).to(tl.int64)
    out_at = out + row * (T * HV * V) + ts[None, :] * (HV * V) + head * V + vs[:, None]  # [TILE, COLUMNS]
    if slot < 0:
        tl.store(out_at, tl.zeros([TILE, COLUMNS], tl.float32).to(out.dtype.element_ty), mask=live)
        return

    inside = state_offsets(vs, ks, K, V, K_LAST)  # [TILE, K]
    tile_at = state + (slot * HV + head) * (V * K) + inside
    S = tl.load(tile_at)
    k_at = k + row * k_row + key_head * k_head + ks[:, None] + ts[None, :] * k_token
    q_at = q + row * q_row + key_head * q_head + ks[:, None] + ts[None, :] * q_token
    k_i = tl.load(k_at, mask=live, other=0.0)  # [K, COLUMNS]
    q_i = tl.load(q_at, mask=live, other=0.0)
    v_at = v + row * v_row + head * v_head + ts[None, :] * v_token + vs[:, None]
    v_i = tl.load(v_at, mask=live, other=0.0).to(tl.float32)  # [TILE, COLUMNS]
    Sk = split_dot(S, k_i, PIECES)
    Sq = split_dot(S, q_i, PIECES)

    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    at = scratch + (row * HV + head) * SIZE
    # Column t of u is u_t once the columns before it have had their effect on it
    u = tl.load(at + BETA + ts)[None, :] * v_i - tl.load(at + STATE_TO_U + ts)[None, :] * Sk
    o = tl.load(at + STATE_TO_O + ts)[None, :] * Sq
    for t in tl.static_range(T):
        u_t = tl.sum(tl.where(ts[None, :] == t, u, 0.0), axis=1)
        if t < T - 1:
            u -= u_t[:, None] * tl.load(at + t * N + ts)[None, :]
        o += u_t[:, None] * tl.load(at + N * N + t * N + ts)[None, :]
    tl.store(out_at, o.to(out.dtype.element_ty), mask=live)
    if UPDATE:
        u *= tl.load(at + U_TO_STATE + ts)[None, :]
        S = S.to(tl.float32) * tl.load(at + CARRY) + split_dot(u, tl.trans(k_i), U_PIECES)
        tl.store(tile_at, S.to(state.dtype.element_ty))


def verify_launch(call):
    """Return the launch function for calls like this one."""
    HK, HV, K, V = call.shape.dims
    k_last, overlap = call.layout == "VK", can_overlap(call.device)
    hopper = is_hopper(call.device) and K <= 128  # limits of registers leave no room for a wider tile
    qk_pieces, state_pieces = pieces(call.io_dtype, call.io_dtype), pieces(call.state_dtype, call.io_dtype)

    def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, update_state):
        B, T = q.shape[:2]
        heads, dtype = B * HV, state.data.dtype
        strides = Strides(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *a.stride()[:2], *b.stride()[:2])
        if use_recurrent(heads, T, dtype, q.dtype, state.intermediate is not None, update_state):
            tile = verify_tile(heads, T, dtype, k_last, hopper)
            data, states = state.data, state.intermediate
            constants = Constants(
                *call.shape.dims,
                T=T,
                TILE=tile.rows,
                K_LAST=k_last,
                STORE_STATES=states is not None,
                UPDATE=update_state,
                OVERLAP=overlap,
                L2NORM=use_qk_l2norm,
            )
            buffer = data if states is None else states
            arguments = (q, k, v, a, b, A_log, dt_bias, data, indices, buffer, out, scale)
            launch_recurrent(constants, tile, arguments, strides, 0 if states is None else states.stride(0))
            return
        scratch = torch.empty(heads * SCRATCH, dtype=torch.float32, device=q.device)
        group = HV // HK if heads >= SATURATED_HEADS else 1
        prepare_kernel[(heads // group,)](
            *(q, k, a, b, A_log, dt_bias, indices, scratch, scale),
            **strides.of("q", "k", "a", "b"),
            HK=HK,
            HV=HV,
            K=K,
            T=T,
            N=TOKENS,
            SIZE=SCRATCH,
            GROUP=group,
            PIECES=qk_pieces,
            OVERLAP=overlap,
            L2NORM=use_qk_l2norm,
            num_warps=1,
            launch_pdl=overlap,
        )
        tile = tiling(heads, T, dtype, update_state, state_pieces, hopper)
        rows = min(tile.rows, V & -V)  # the largest power of 2 that divides V
        verify_kernel[(V // rows * heads,)](
            *(q, k, v, state.data, indices, scratch, out),
            **strides.of("q", "k", "v"),
            HK=HK,
            HV=HV,
            K=K,
            V=V,
            T=T,
            COLUMNS=columns(T, update_state),
            N=TOKENS,
            SIZE=SCRATCH,
            TILE=rows,
            K_LAST=k_last,
            UPDATE=update_state,
            PIECES=state_pieces,
            U_PIECES=u_pieces(dtype),
            OVERLAP=overlap,
            num_warps=tile.warps,
            maxnreg=tile.registers,
            launch_pdl=overlap,
        )

    return launch


def pieces(dtype: torch.dtype, io_dtype: torch.dtype) -> int:
    """Return how many numbers of io_dtype add up to any one of dtype; 0 stands for a product in float32.

    That is what an io_dtype that has not 16 bits takes, one whose sum would not be exact, and the interpreter, which
    gets 16-bit products wrong.
    """
    if INTERPRETED.value or io_dtype.itemsize != 2 or (io_dtype is torch.float16 and dtype is not torch.float16):
        return 0
    return 1 if dtype is io_dtype else {torch.float16: 2, torch.float32: 3}[dtype]


def u_pieces(dtype: torch.dtype) -> int:
    """Return how many bfloat16 make up u in the product with the keys that updates a state of `dtype`.

    Two have 16 bits of mantissa, more than a 16-bit state keeps.
    """
    if INTERPRETED.value:
        return 0
    return 3 if dtype is torch.float32 else 2


def columns(tokens: int, update: bool) -> int:
    """Return the columns of the products with the state: tokens, rounded up to what the tensor cores take.

    16 where another product, which sums over them, updates the state.
    """
    return 8 if tokens <= 8 and not update else 16


def tiling(heads: int, tokens: int, dtype: torch.dtype, update: bool, state_pieces: int, hopper: bool) -> Tile:
    """Choose the tile for B · HV heads. state_pieces: pieces() of the state.

    bf16 and float32 pools by times on an H100, others so that nothing spills. Updating a float32 state spills a few
    registers: that takes half the time of tiles that spill none.
    """
    if state_pieces == 0:
        return Tile(16, 2 if tokens <= 8 else 4)
    if dtype is torch.float32:
        if update or tokens <= 4:
            return Tile(16, 1)
        return Tile(32, 2) if tokens <= 8 else Tile(64, 4)
    if dtype is torch.float16:
        return Tile(16, 2 if update else 1)
    if update:
        return Tile(64, 4, 128 if hopper else None)
    if heads >= SATURATED_HEADS:
        return Tile(64, 4) if 4 < tokens <= 8 else Tile(64, 2)
    if heads < FEW_HEADS:
        return Tile(32, 2)
    return Tile(128, 8) if tokens <= 8 else Tile(64, 2)
