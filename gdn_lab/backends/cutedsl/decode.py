"""The decode kernel of `cutedsl`, and its compilation. Imports the CuTe DSL, which takes a second: loaded when needed.

One warp works by itself on ROWS rows of one head's state [V, K], K last. A row is spread over its lanes 16 bytes each:

    16 bits    16 lanes of 8 elements: one load of the warp reads two rows
    float32    32 lanes of 4 elements: one load of the warp reads one row

Nothing stands between the slot's index and the loads of the state: no barrier, no branch, nothing computed. What does
not depend on the index (q, k, v, gates) is loaded while the index is on its way. From the state as loaded come S k and
S q, side by side, with q and k as they are; decay, norms and correction are applied after the sums:

    S k = g (S_old k)      u = beta (v - S k)      o = (S + u kᵀ) q = g (S_old q) + u (k . q)

With `tiles` above 1 a warp takes as many times ROWS rows, one tile after the other. They come through shared memory, by
bulk copies that are all under way from the start: so fewer warps have as many bytes in flight with no more registers.

The launch is a programmatic dependent one: its warps are set up while the kernel before it drains, wait there for its
results, and let the kernel after it do the same. Where a build says so, a warp asks before that wait for its state to
be brought into the L2. The slot that it reads then may be out of date, which costs a useless prefetch and nothing else.
"""

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float16, Float32, Int32, Int64, Uint32
from cutlass.cute import arch, math
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.cutlass_dsl import select_

from ...reference import NORM_EPS, SOFTPLUS_THRESHOLD

K = V = 128
WARP = 32
DTYPES = {"bfloat16": BFloat16, "float16": Float16, "float32": Float32, "int32": Int32, "int64": Int64}


class Build(NamedTuple):
    """All that a compilation depends on. Batch, pool size, strides and scale are arguments of what comes out."""

    architecture: str  # "sm_90a"
    num_k_heads: int
    num_v_heads: int
    state_dtype: str  # a key of DTYPES, as the next
    index_dtype: str
    rows: int  # of the state, for a warp at a time
    warps: int  # of a block; they share nothing
    ahead: bool  # the state is asked for before the wait for the kernel ahead
    tiles: int  # of `rows` rows that a warp takes
    keep: bool  # the L2 keeps the state until it is written (evict_last)
    l2norm: bool
    aligned: bool  # each head of q and k begins at a multiple of 16 bytes
    exact: bool = True  # exponentials and logarithms; else the GPU's approximations of them

    @property
    def packed(self) -> bool:
        """Two float32 multiply-adds in one instruction: compute capability 10.0 and newer."""
        return int(self.architecture[3:].rstrip("a")) >= 100


def compile_decode(build: Build, options: str = ""):
    """The compiled function of (q, k, v, a, b, A_log, dt_bias, state, indices, out, scale), torch tensors and a float.

    It launches on torch's current stream and raises ValueError for tensors it was not built for. options: of
    cute.compile, in addition to the architecture.
    """
    HK, HV, state_dtype = build.num_k_heads, build.num_v_heads, DTYPES[build.state_dtype]
    batch, slots = cute.sym_int32(), cute.sym_int32()

    def heads(number, alignment=2):
        """[batch, number, 128] bf16; rows and heads any multiple of `alignment` bytes apart."""
        row, head = (cute.sym_int64(divisibility=alignment // 2) for _ in range(2))
        return make_fake_tensor(BFloat16, (batch, number, K), (row, head, 1), assumed_align=alignment)

    def gate():
        return make_fake_tensor(BFloat16, (batch, HV), (cute.sym_int64(), 1), assumed_align=2)

    def parameter():
        return make_fake_tensor(Float32, (HV,), (1,), assumed_align=4)

    qk_alignment = 16 if build.aligned else 2
    q, k, v = heads(HK, qk_alignment), heads(HK, qk_alignment), heads(HV)
    state = make_fake_tensor(state_dtype, (slots, HV, V, K), (HV * V * K, V * K, K, 1), assumed_align=16)
    indices = make_fake_tensor(DTYPES[build.index_dtype], (batch,), (1,), assumed_align=4)
    arguments = (q, k, v, gate(), gate(), parameter(), parameter(), state, indices, heads(HV), Float32(1.0))
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    options = f"--enable-tvm-ffi --gpu-arch {build.architecture} {options}"
    return cute.compile(launch_decode, *arguments, build, stream, options=options)


@cute.jit
def launch_decode(
    q: cute.Tensor, k: cute.Tensor, v: cute.Tensor, a: cute.Tensor, b: cute.Tensor, A_log: cute.Tensor,
    dt_bias: cute.Tensor, state: cute.Tensor, indices: cute.Tensor, out: cute.Tensor, scale: Float32,
    build: cutlass.Constexpr, stream,
):  # fmt: skip
    blocks = out.shape[0] * (out.shape[1] * (V // build.rows // build.tiles // build.warps))
    kernel = decode_kernel(q, k, v, a, b, A_log, dt_bias, state, indices, out, scale, build)
    kernel.launch(grid=(blocks, 1, 1), block=(WARP * build.warps, 1, 1), stream=stream, use_pdl=True)


@cute.kernel
def decode_kernel(
    q: cute.Tensor, k: cute.Tensor, v: cute.Tensor, a: cute.Tensor, b: cute.Tensor, A_log: cute.Tensor,
    dt_bias: cute.Tensor, state: cute.Tensor, indices: cute.Tensor, out: cute.Tensor, scale: Float32,
    build: cutlass.Constexpr,
):  # fmt: skip
    """Warps: [B · HV · PARTS], parts fastest. Slot offsets are 64-bit: the strides of the tensors are."""
    HK, HV = build.num_k_heads, build.num_v_heads
    LANES = K * state.element_type.width // 128  # that hold a row of the state
    N = K // LANES  # elements of a row in a lane
    AT_ONCE = WARP // LANES  # rows read by one load of the warp
    LOADS = build.rows // AT_ONCE
    PARTS = V // build.rows // build.tiles  # of a head, a warp each
    SIZE = build.rows * K  # elements of a tile

    program, _, _ = arch.block_idx()
    warp = Int32(0)
    if cutlass.const_expr(build.warps > 1):
        warp = arch.make_warp_uniform(arch.warp_idx())
        program = program * build.warps + warp
    start = program % PARTS * (build.tiles * build.rows)  # the warp's first row
    head = (program // PARTS) % HV
    row = program // (PARTS * HV)
    key_head = head // (HV // HK)

    lane = arch.lane_idx()
    part = lane % LANES  # which N elements of a row
    first = start + lane // LANES  # row of the lane's first load; the next load is AT_ONCE rows on
    mine = first + part // (LANES // LOADS) * AT_ONCE  # the row whose sums, v and o this lane looks after
    here = cute.assume(part * N, divby=N)

    if cutlass.const_expr(build.tiles > 1):
        buffer = arch.alloc_smem(state.element_type, build.warps * build.tiles * SIZE, 128) + warp * build.tiles * SIZE
        barriers = arch.alloc_smem(Int64, build.warps * build.tiles, 8) + warp * build.tiles
        if lane < build.tiles:
            arch.mbarrier_init(barriers + lane, 1)
        arch.mbarrier_init_fence()
        arch.fence_proxy("async.shared", space="cta")
        arch.sync_warp()
    if cutlass.const_expr(build.ahead):
        prefetch_tile(state, indices, row, head, start, build)
    arch.griddepcontrol_wait()
    if cutlass.const_expr(build.ahead):
        arch.griddepcontrol_launch_dependents()
    slot = Int64(indices[row])
    q_raw = load_pairs(q[row, key_head, None].iterator + here, N)
    k_raw = load_pairs(k[row, key_head, None].iterator + here, N)
    v_raw = [v[row, head, mine + tile * build.rows] for tile in range(build.tiles)]
    a_raw, b_raw = a[row, head], b[row, head]
    A, bias = A_log[head], dt_bias[head]

    # A padding row reads the null slot and writes none. [N, LOADS]: what a lane holds of a tile.
    live = slot >= 0
    head_state = state[select_(live, slot, Int64(0)), head, None, None].iterator
    held = cute.make_layout((N, LOADS), stride=(1, AT_ONCE * K))
    S = cute.make_rmem_tensor((N, LOADS), state.element_type)
    if cutlass.const_expr(build.tiles > 1):
        if lane < build.tiles:
            copy_tile(head_state + (start * K + lane * SIZE), buffer + lane * SIZE, SIZE, barriers + lane)
    elif cutlass.const_expr(build.keep):
        load_kept(head_state + (first * K + here), S, AT_ONCE * K)
    else:
        cute.autovec_copy(cute.make_tensor(head_state + cute.assume(first * K + here, divby=N), held), S)
    if cutlass.const_expr(not build.ahead):
        arch.griddepcontrol_launch_dependents()

    g = decay(-exp(A, build) * softplus(Float32(a_raw) + bias, build), build)
    beta = arch.rcp_approx(1.0 + exp(-Float32(b_raw), build))
    q_scale, k_scale = scale, Float32(1.0)
    if cutlass.const_expr(build.l2norm):
        q_scale = scale * math.rsqrt(sum_lanes(dot(q_raw, q_raw, build), LANES) + NORM_EPS, fastmath=True)
        k_scale = math.rsqrt(sum_lanes(dot(k_raw, k_raw, build), LANES) + NORM_EPS, fastmath=True)
    kq = sum_lanes(dot(k_raw, q_raw, build), LANES)

    for tile in cutlass.range_constexpr(build.tiles):
        if cutlass.const_expr(build.tiles > 1):
            arch.mbarrier_wait(barriers + tile, 0)
            staged = buffer + cute.assume(tile * SIZE + lane // LANES * K + here, divby=N)
            cute.autovec_copy(cute.make_tensor(staged, held), S)
        rows = [pairs(S, i) for i in range(LOADS)]
        sums = [(dot(S_row, k_raw, build), dot(S_row, q_raw, build)) for S_row in rows]
        Sk, Sq = share_rows(sums, part, LANES)
        u = k_scale * beta * (Float32(v_raw[tile]) - g * (k_scale * Sk))  # times k as loaded, hence the second k_scale
        o = select_(live, q_scale * (g * Sq + u * kq), Float32(0.0))
        if part % (LANES // LOADS) == 0:
            out[row, head, mine + tile * build.rows] = o.to(BFloat16)

        new = cute.make_rmem_tensor((N, LOADS), Float32)
        for i in cutlass.range_constexpr(LOADS):
            u_row = arch.shuffle_sync(u, i * (LANES // LOADS), mask_and_clamp=(WARP - LANES) << 8 | WARP - 1)
            for j in cutlass.range_constexpr(N // 2):
                decayed = multiply((g, g), rows[i][j], build)
                new[2 * j, i], new[2 * j + 1, i] = multiply_add((u_row, u_row), k_raw[j], decayed, build)
        S.store(new.load().to(state.element_type))
        target = head_state + cute.assume((first + tile * build.rows) * K + here, divby=N)
        if live:
            cute.autovec_copy(S, cute.make_tensor(target, held))


# Below, traced as the Python it is: lists and pairs become registers.


def copy_tile(source, target, elements, barrier):
    """Begin to copy `elements` from memory to shared memory; `barrier` completes when they are there. For one lane."""
    nbytes = elements * source.dtype.width // 8
    arch.mbarrier_arrive_and_expect_tx(barrier, nbytes)
    copy = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{$r0}], [{$r1}], {$r2}, [{$r3}];"
    arch.inline_ptx(copy, read_only_args=[target.toint(), source.toint(), Int32(nbytes), barrier.toint()])


def load_kept(at, S, stride):
    """Load what a lane holds of a tile, 16 bytes every `stride` elements from `at` on. The L2 evicts them last."""
    policy = arch.inline_ptx("createpolicy.fractional.L2::evict_last.b64 {$w0};", write_only_types=[Int64])
    load = "ld.global.L2::cache_hint.v4.b32 {{$w0}, {$w1}, {$w2}, {$w3}}, [{$r0}], {$r1};"
    words = cute.recast_tensor(S, Uint32)
    for i in range(S.shape[1]):
        address = (at + i * stride).toint()
        loaded = arch.inline_ptx(load, write_only_types=[Uint32] * 4, read_only_args=[address, policy])
        for j, word in enumerate(loaded):
            words[j, i] = word


def prefetch_tile(state, indices, row, head, first, build):
    """Ask for the 128-byte lines of a warp's rows of a head's state, from row `first` on, a line for each lane.

    The index bypasses the L1, so that the load after the wait finds nothing old there. One that is no slot counts as 0.
    """
    index = Int64(arch.load(indices.iterator + row, indices.element_type, cop="cg"))
    slot = select_((index >= 0) & (index < state.shape[0]), index, Int64(0))
    line = 1024 // state.element_type.width  # elements
    lines = build.rows * build.tiles * K // line
    at = state[slot, head, None, None].iterator + (first * K + arch.lane_idx() % lines * line)
    for part in range(0, lines, WARP):
        arch.prefetch((at + part * line).to_llvm_ptr(), cache_level="L2")


def exp(x, build):
    return math.exp(x, fastmath=not build.exact)


def decay(log_g, build):
    """g. Near 1 by g - 1 as a series: errors of e^x there have a sign, so that they add up over the steps."""
    if cutlass.const_expr(not build.exact):
        return exp(log_g, build)
    series = log_g * (1.0 + log_g * (1 / 2 + log_g * (1 / 6 + log_g * (1 / 24 + log_g * (1 / 120)))))
    return select_(log_g > -1 / 16, 1.0 + series, exp(log_g, build))


def softplus(x, build):
    """log(1 + e^x), with what rounding 1 + e^x lost put back; x above SOFTPLUS_THRESHOLD."""
    e = exp(x, build)
    s = 1.0 + e
    if cutlass.const_expr(not build.exact):
        return select_(x > SOFTPLUS_THRESHOLD, x, math.log(s, fastmath=True))
    return select_(x > SOFTPLUS_THRESHOLD, x, math.log(s) + (e - (s - 1.0)) * arch.rcp_approx(s))


def load_pairs(at, n):
    """n elements from `at` as n // 2 pairs of float32."""
    raw = cute.make_rmem_tensor((n,), at.dtype)
    cute.autovec_copy(cute.make_tensor(at, cute.make_layout((n,))), raw)
    x = raw.load().to(Float32)
    return [(x[2 * j], x[2 * j + 1]) for j in range(n // 2)]


def pairs(S, i):
    """What a lane holds of load i as pairs of float32. A bfloat16 is the upper half of a float32."""
    if S.element_type is not BFloat16:
        x = [S[j, i].to(Float32) for j in range(S.shape[0])]
        return list(zip(x[::2], x[1::2], strict=True))
    words = cute.recast_tensor(S, Uint32)
    words = [words[j, i] for j in range(words.shape[0])]
    return [((x << Uint32(16)).bitcast(Float32), (x & Uint32(0xFFFF0000)).bitcast(Float32)) for x in words]


def multiply(x, y, build):
    return arch.mul_packed_f32x2(x, y) if build.packed else (x[0] * y[0], x[1] * y[1])


def multiply_add(x, y, z, build):
    return arch.fma_packed_f32x2(x, y, z) if build.packed else (x[0] * y[0] + z[0], x[1] * y[1] + z[1])


def dot(xs, ys, build):
    """A lane's part of the dot product of two lists of pairs."""
    total = multiply(xs[0], ys[0], build)
    for x, y in zip(xs[1:], ys[1:], strict=True):
        total = multiply_add(x, y, total, build)
    return total[0] + total[1]


def sum_lanes(x, lanes):
    """The sum over groups of `lanes` lanes, in each of them."""
    while lanes > 1:
        lanes //= 2
        x = x + arch.shuffle_sync_bfly(x, offset=lanes)
    return x


def share_rows(rows, part, lanes):
    """Sums over groups of `lanes` lanes of each row's (Sk, Sq); lane `part` gets those of row part // (lanes // rows).

    At each step two halves of the group exchange: a lane gives away the partial sums of the rows that the other half
    goes on with, so that 16 rows take 30 shuffles, not 128. When one row is left, the lanes that share it add up.
    """
    while lanes > 1:
        lanes //= 2
        if len(rows) == 1:
            rows = [tuple(x + arch.shuffle_sync_bfly(x, offset=lanes) for x in rows[0])]
            continue
        upper, half = (part & lanes) != 0, len(rows) // 2
        rows = [
            tuple(
                select_(upper, high, low) + arch.shuffle_sync_bfly(select_(upper, low, high), offset=lanes)
                for low, high in zip(*pair, strict=True)
            )
            for pair in zip(rows[:half], rows[half:], strict=True)
        ]
    return rows[0]
