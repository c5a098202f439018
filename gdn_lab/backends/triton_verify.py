"""Verify in Triton: T = 2…16 draft tokens for each row by two kernels, the state read once whatever T is.

With G_i the sum of log g up to token i, S the state before the first, and normalised q and k, token i corrects by

    u_i = beta_i v_i - beta_i e^{G_i} S k_i - sum_{j<i} A_ji u_j        A_ji = beta_i e^{G_i - G_j} (k_j . k_i)
    o_i = e^{G_i} S q_i + sum_{j<=i} P_ji u_j                            P_ji = e^{G_i - G_j} (k_j . q_i)
    S_i = e^{G_i} S + sum_{j<=i} e^{G_i - G_j} u_j k_j^T

(reference.prefill_chunked says the same in float64, by chunks.) The state enters only through S k_i and S q_i.

prepare_kernel, one program for a value head, makes A, P and the factors of each token, which need no state, and
leaves them in scratch. verify_kernel, one program for a [TILE × K] tile of a state, has the tensor cores multiply
the tile as it is stored with the keys and queries as they came, without rounding anything: norms, decay and beta are
factors of the [TILE × T] products. What remains are T steps on that small product, and one product of all u with the
keys where the state moves on.

On compute capability 9.0 and newer both are programmatic dependents: verify_kernel's state loads overlap the kernel
that prepares its factors. It may read what was written before prepare_kernel, because that waits before it lets
others begin; it waits itself before it reads scratch.
"""

import itertools

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..reference import NORM_EPS, SOFTPLUS_THRESHOLD
from .base import KernelCase, dtype_name

TOKENS = 16  # rows and columns of A and P in scratch
SCRATCH = (2 * TOKENS + 5) * TOKENS  # float32 of a value head: A, P, then one row for each of the factors below
BETA, STATE_TO_U, STATE_TO_O, U_TO_STATE, CARRY = (tl.constexpr((2 * TOKENS + i) * TOKENS) for i in range(5))
BY_TOKEN = tl.constexpr(-1)
FULL = 1024  # B · HV heads from which a GPU is full
INTERPRETED = triton.knobs.runtime.interpret


@triton.jit
def _product(x, y, PIECES: tl.constexpr):
    """x @ y to float32 precision. PIECES: how many numbers of y's 16-bit dtype add up to one of x; products of those
    are exact. 0: y is float32."""
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
    STEPS: tl.constexpr, PIECES: tl.constexpr, OVERLAP: tl.constexpr, L2NORM: tl.constexpr, EPS: tl.constexpr,
    SOFTPLUS_MAX: tl.constexpr,
):  # fmt: skip
    """One program: one value head of one row. Grid: [HV · B], heads fastest. scratch [B, HV, SIZE] float32.

    A and P lie as [j, i], N × N with N = 16: row j is what u_j does to the tokens from j on. STEPS: the factors that
    carry the state on are those of single tokens, else those from each token to the last.
    """
    head = tl.program_id(0) % HV
    row = (tl.program_id(0) // HV).to(tl.int64)
    key_head = head // (HV // HK)
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
    x = tl.load(a + row * a_row + ts * a_token + head, mask=live, other=0.0).to(tl.float32) + tl.load(dt_bias + head)
    b_log = tl.load(b + row * b_row + ts * b_token + head, mask=live, other=0.0).to(tl.float32)
    kk = _product(k_j, k_i, PIECES)  # [j, i]
    kq = _product(k_j, q_i, PIECES)

    softplus = tl.where(x > SOFTPLUS_MAX, x, tl.log(1.0 + tl.exp(tl.minimum(x, SOFTPLUS_MAX))))
    log_g = tl.where(live, -tl.exp(tl.load(A_log + head)) * softplus, 0.0)
    beta = tl.where(live, 1.0 / (1.0 + tl.exp(-b_log)), 0.0)
    # Sums from j to i, not differences of sums from the start: after a strong decay those would be rounded coarsely
    decay = tl.where(i >= j, tl.exp(tl.cumsum(tl.where(i > j, log_g[None, :], 0.0), axis=1)), 0.0)
    from_start = tl.exp(tl.cumsum(log_g, axis=0))

    k_norm = tl.full([N], 1.0, tl.float32)
    k_norm_j = tl.full([N], 1.0, tl.float32)
    q_norm = tl.full([N], 1.0, tl.float32) * scale
    if L2NORM:
        k_wide = k_i.to(tl.float32)
        q_wide = q_i.to(tl.float32)
        k_norm = tl.rsqrt(tl.sum(k_wide * k_wide, axis=0) + EPS)
        k_norm_j = tl.rsqrt(tl.sum(tl.where(i == j, kk, 0.0), axis=1) + EPS)
        q_norm = tl.rsqrt(tl.sum(q_wide * q_wide, axis=0) + EPS) * scale

    at = scratch + (row * HV + head) * SIZE
    kept = decay * k_norm_j[:, None]
    tl.store(at + j * N + i, tl.where(i > j, kept * kk * (beta * k_norm)[None, :], 0.0), mask=j < T)
    tl.store(at + N * N + j * N + i, kept * kq * q_norm[None, :], mask=j < T)
    tl.store(at + BETA + ts, beta)
    tl.store(at + STATE_TO_U + ts, beta * from_start * k_norm)
    tl.store(at + STATE_TO_O + ts, from_start * q_norm)
    if STEPS:
        tl.store(at + U_TO_STATE + ts, k_norm)
        tl.store(at + CARRY + ts, tl.exp(log_g))
    else:
        tl.store(at + U_TO_STATE + ts, tl.sum(tl.where(i == T - 1, kept, 0.0), axis=1))
        tl.store(at + CARRY + ts, tl.zeros([N], tl.float32) + tl.exp(tl.sum(log_g, axis=0)))


@triton.jit
def verify_kernel(
    q, k, v, state, indices, scratch, states, out,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, states_row,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, T: tl.constexpr, COLUMNS: tl.constexpr,
    N: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr, K_LAST: tl.constexpr, STEPS: tl.constexpr,
    UPDATE: tl.constexpr, PIECES: tl.constexpr, U_PIECES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: TILE rows of one head's state for one batch row. Grid: [V // TILE · HV · B], tiles fastest.

    state [slots, HV, V, K] with K_LAST, else [slots, HV, K, V]; offsets of slots and rows are 64-bit. COLUMNS: T,
    rounded up to 8 or 16. STEPS: states [B, T, HV, V, K] (or [.., K, V]) takes the state after each token. UPDATE: the
    pool's state takes the last. U_PIECES: as _product's PIECES, of the product of u and the keys that moves the state
    on by all tokens at once; BY_TOKEN instead: one by one.
    """
    TILES: tl.constexpr = V // TILE
    tile = tl.program_id(0) % TILES
    head = (tl.program_id(0) // TILES) % HV
    row = (tl.program_id(0) // (TILES * HV)).to(tl.int64)
    key_head = head // (HV // HK)

    ts = tl.arange(0, COLUMNS)
    ks = tl.arange(0, K)
    vs = tile * TILE + tl.arange(0, TILE)
    live = (ts < T)[None, :]
    slot = tl.load(indices + row).to(tl.int64)
    out_at = out + row * (T * HV * V) + ts[None, :] * (HV * V) + head * V + vs[:, None]  # [TILE, COLUMNS]
    if slot < 0:
        tl.store(out_at, tl.zeros([TILE, COLUMNS], tl.float32).to(out.dtype.element_ty), mask=live)
        return

    # S [TILE, K] in either memory order; for KV the tile is the transpose of what lies in memory
    if K_LAST:
        in_head = vs[:, None] * K + ks[None, :]
    else:
        in_head = ks[None, :] * V + vs[:, None]
    tile_at = state + (slot * HV + head) * (V * K) + in_head
    stored = tl.load(tile_at)
    k_head_at = k + row * k_row + key_head * k_head
    q_head_at = q + row * q_row + key_head * q_head
    k_i = tl.load(k_head_at + ks[:, None] + ts[None, :] * k_token, mask=live, other=0.0)  # [K, COLUMNS]
    q_i = tl.load(q_head_at + ks[:, None] + ts[None, :] * q_token, mask=live, other=0.0)
    v_at = v + row * v_row + head * v_head + ts[None, :] * v_token + vs[:, None]
    v_i = tl.load(v_at, mask=live, other=0.0).to(tl.float32)  # [TILE, COLUMNS]
    Sk = _product(stored, k_i, PIECES)
    Sq = _product(stored, q_i, PIECES)

    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    at = scratch + (row * HV + head) * SIZE
    # Column t of u is u_t once the columns before it have had their effect on it
    u = tl.load(at + BETA + ts)[None, :] * v_i - tl.load(at + STATE_TO_U + ts)[None, :] * Sk
    o = tl.load(at + STATE_TO_O + ts)[None, :] * Sq
    S = stored.to(tl.float32)
    TOKEN_BY_TOKEN: tl.constexpr = STEPS or (UPDATE and U_PIECES == BY_TOKEN)
    for t in tl.static_range(T):
        u_t = tl.sum(tl.where(ts[None, :] == t, u, 0.0), axis=1)
        if t < T - 1:
            u -= u_t[:, None] * tl.load(at + t * N + ts)[None, :]
        o += u_t[:, None] * tl.load(at + N * N + t * N + ts)[None, :]
        if TOKEN_BY_TOKEN:
            if STEPS or t == 0:
                S *= tl.load(at + CARRY + t)
            k_t = tl.load(k_head_at + t * k_token + ks).to(tl.float32)
            S += (u_t * tl.load(at + U_TO_STATE + t))[:, None] * k_t[None, :]
        if STEPS:
            states_at = states + row * states_row + t * (HV * V * K) + head * (V * K) + in_head
            tl.store(states_at, S.to(states.dtype.element_ty))
    tl.store(out_at, o.to(out.dtype.element_ty), mask=live)
    if UPDATE:
        if not TOKEN_BY_TOKEN:  # by now column t of u is u_t
            S = S * tl.load(at + CARRY) + _product(u * tl.load(at + U_TO_STATE + ts)[None, :], tl.trans(k_i), U_PIECES)
        tl.store(tile_at, S.to(state.dtype.element_ty))


def verify_launch(call, overlap: bool):
    """The launch function of `call`. overlap: whether the GPU has programmatic dependent launch."""
    HK, HV, K, V = call.shape.num_k_heads, call.shape.num_v_heads, call.shape.head_k_dim, call.shape.head_v_dim
    k_last = call.layout == "VK"
    of_keys, of_state = pieces(call.io_dtype, call.io_dtype), pieces(call.state_dtype, call.io_dtype)
    wide = k_last and call.device.type == "cuda" and torch.cuda.get_device_capability(call.device)[0] == 9

    def launch(
        q, k, v, a, b, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, intermediate_states, update_state
    ):  # fmt: skip
        B, T = q.shape[:2]
        steps = intermediate_states is not None
        scratch = torch.empty(B * HV * SCRATCH, dtype=torch.float32, device=q.device)
        strides = (*q.stride()[:3], *k.stride()[:3])
        prepare_kernel[(B * HV,)](
            q, k, a, b, A_log, dt_bias, indices, scratch, scale, *strides, *a.stride()[:2], *b.stride()[:2],
            HK, HV, K, T, TOKENS, SCRATCH, steps, of_keys, overlap, use_qk_l2norm, NORM_EPS, SOFTPLUS_THRESHOLD,
            num_warps=1, launch_pdl=overlap,
        )  # fmt: skip
        of_u = BY_TOKEN.value if steps or not update_state else u_pieces(B * HV, T, state.dtype, q.dtype)
        tile, warps = tiling(B * HV, T, state.dtype, steps or update_state, of_state, of_u, wide)
        tile = min(tile, V & -V)  # the largest power of 2 that divides V
        verify_kernel[(V // tile * B * HV,)](
            q, k, v, state, indices, scratch, intermediate_states if steps else state, out,
            *strides, *v.stride()[:3], intermediate_states.stride(0) if steps else 0,
            HK, HV, K, V, T, columns(T, of_u), TOKENS, SCRATCH, tile, k_last, steps, update_state, of_state, of_u,
            overlap, num_warps=warps, launch_pdl=overlap,
        )  # fmt: skip

    return launch


def pieces(dtype: torch.dtype, io_dtype: torch.dtype) -> int:
    """How many numbers of io_dtype add up to any one of dtype; 0 if io_dtype is no 16-bit dtype, or the sum would not
    do: a product in float32 then. The interpreter gets 16-bit products wrong."""
    if INTERPRETED or io_dtype.itemsize != 2 or (io_dtype is torch.float16 and dtype is not torch.float16):
        return 0
    return 1 if dtype is io_dtype else {torch.float16: 2, torch.float32: 3}[dtype]


def u_pieces(heads: int, tokens: int, dtype: torch.dtype, io_dtype: torch.dtype) -> int:
    """How many numbers of io_dtype make up u where one product with the keys moves a state of dtype on by all tokens:
    two of bfloat16 have 16 bits, more than a 16-bit state keeps. -1 where the state moves on token by token: by few
    tokens, which takes less time on an H100; a state of float32, whose three pieces take twice the time of its bytes;
    and for inputs of float32, whose products take many registers, and float16, whose range is too small."""
    if tokens <= (4 if heads < FULL else 3) or dtype is torch.float32:
        return BY_TOKEN.value
    if INTERPRETED:
        return 0
    return 2 if io_dtype is torch.bfloat16 else BY_TOKEN.value


def columns(tokens: int, of_u: int) -> int:
    """Columns of the products with the state: tokens rounded up to what the tensor cores take; 16 where one product
    moves the state on, which sums over them."""
    return 8 if tokens <= 8 and of_u == BY_TOKEN.value else 16


def tiling(heads: int, tokens: int, dtype: torch.dtype, writes: bool, of_state: int, of_u: int, wide: bool):
    """(rows of a tile, warps) for B · HV heads. of_state, of_u: pieces(), u_pieces(). wide: a VK pool on compute
    capability 9.x, where the largest tiles do not spill. bf16: by times on an H100; otherwise so that next to nothing
    spills, and no two warps multiply the same 16 rows where registers allow."""
    if of_state == 0:
        return 16, 2 if tokens <= 8 else 4
    by_product = of_u != BY_TOKEN.value
    if dtype is torch.float32:
        if writes:
            return (32, 2) if wide and tokens <= 8 else (16, 2)
        return (32, 2) if tokens <= 8 else (64, 4)
    if dtype is torch.float16:
        return 16, 2 if by_product else 1
    if by_product:
        return (128, 4) if wide and heads >= FULL else (64, 4)
    if writes:
        return (16, 1) if tokens <= 4 else (32, 2)
    if heads < FULL:
        return (32, 2) if heads < 256 else (128, 8)
    return 64, 2 if tokens <= 4 else 4


def kernel_cases() -> list[KernelCase]:
    """What verify compiles at the models' head size, for resources.py: the most tokens of each number of columns."""
    cases, bf16 = [], torch.bfloat16
    writes = {"": (False, False), " states": (True, False), " update": (False, True)}
    pools = [("VK", bf16, "bf16"), ("VK", torch.float16, "fp16"), ("VK", torch.float32, "fp32"), ("KV", bf16, "bf16")]
    for (layout, dtype, name), wide in itertools.product(pools, (False, True)):
        types = dict.fromkeys(verify_kernel.arg_names, "i32")
        types |= dict.fromkeys(("q", "k", "v", "out"), "*bf16") | dict.fromkeys(("state", "states"), f"*{name}")
        types |= {"indices": "*i32", "scratch": "*fp32"}
        for (what, (steps, update)), tokens in itertools.product(writes.items(), (8, 16)):
            of_state, of_u = pieces(dtype, bf16), u_pieces(4096, tokens, dtype, bf16) if update else BY_TOKEN.value
            narrow, tile_and_warps = (
                tiling(4096, tokens, dtype, steps or update, of_state, of_u, of_wide) for of_wide in (False, wide)
            )
            if wide and (layout == "KV" or tile_and_warps == narrow):
                continue  # the launch never takes it, or it is there already
            tile, warps = tile_and_warps
            constants = dict(HK=16, HV=64, K=128, V=128, T=tokens, COLUMNS=columns(tokens, of_u), N=TOKENS)
            constants |= dict(SIZE=SCRATCH, TILE=tile, K_LAST=layout == "VK", STEPS=steps, UPDATE=update, OVERLAP=True)
            constants |= dict(PIECES=of_state, U_PIECES=of_u)
            label = f"verify {layout} {dtype_name(dtype)} T {tokens}{what}{' wide' if wide else ''}"
            cases.append(
                KernelCase(label, verify_kernel, types, constants, warps, architectures=("sm_90a",) if wide else None)
            )
    types = dict.fromkeys(prepare_kernel.arg_names, "i32")
    types |= dict.fromkeys(("q", "k", "a", "b"), "*bf16")
    types |= {"A_log": "*fp32", "dt_bias": "*fp32", "indices": "*i32", "scratch": "*fp32", "scale": "fp32"}
    for what, steps in (("", False), (" states", True)):
        constants = dict(HK=16, HV=64, K=128, T=16, N=TOKENS, SIZE=SCRATCH, STEPS=steps, PIECES=1, OVERLAP=True)
        constants |= dict(L2NORM=True, EPS=NORM_EPS, SOFTPLUS_MAX=SOFTPLUS_THRESHOLD)
        cases.append(KernelCase(f"verify prepare{what}", prepare_kernel, types, constants, 1))
    return cases
