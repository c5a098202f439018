"""A mixture of experts at decode in four Triton kernels: route, gate_up, down, combine; built for few tokens an expert.

At B = 256 and top 10 of 512 experts an expert has five tokens, and the time goes into reading its weights. So a program
takes some rows of one expert's weight and all of the expert's tokens, 16 at a time, and multiplies

    weight tile [TILE rows, 128 of K]  by  activations [128 of K, BLOCK_M tokens]

in this order: the weight is the tensor cores' large operand, as it lies in memory, and 16 tokens are enough for a
product. The products of each 128 of K are scaled and added in float32, as 128 × 128 block scales require.

route_kernel writes each token's experts, the list of each expert's tokens, and `work`, one item for each BLOCK_M tokens
of an expert: the number of programs scales with an expert's tokens, and experts without tokens launch none. Lists and
items come from atomic counters: their order differs from run to run, results do not, since no product mixes tokens. The
counters must be zero at the start; combine_kernel, the last of a step, resets them.

Slots of a grid: first `virtual` slots for the shared expert, BLOCK_M consecutive tokens each, its weight at index
`shared_at` of the weight that the launch gets; then those of work. Rows of h and y: token · top_k + j for a token's
j-th expert, then B · top_k + token for the shared expert. inner: an expert's intermediate size on this rank.

OVERLAP: programmatic dependent launch (PDL). Each kernel waits for the one ahead before it lets the next one start, so
what the kernel before that wrote may be read before the wait.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ...backends.triton.device import INTERPRETED, prefetch
from .. import fp8

BLOCK = tl.constexpr(fp8.BLOCK)
E4M3_MAX = tl.constexpr(fp8.E4M3_MAX)
SMALLEST_AMAX = tl.constexpr(fp8.SMALLEST_AMAX)
RUNTIME = ["B", "E", "top_k", "virtual", "shared_at", "tiles"]  # not compiled anew for 1 and for multiples of 16


@triton.jit
def dot(x, y, z):
    """x @ y + z in float32. Triton's interpreter gets products of narrow dtypes wrong, so there they are widened."""
    if INTERPRETED:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), z, input_precision="ieee")
    return tl.dot(x, y, z)


@triton.jit
def narrow(x, dtype: tl.constexpr, BITS: tl.constexpr):
    """Round float32 x to `dtype`, which has BITS mantissa bits, to nearest even.

    Triton's interpreter truncates or loses the carry, so there x is rounded before it is converted.
    """
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        bits += (1 << (22 - BITS)) - 1 + ((bits >> (23 - BITS)) & 1)
        x = ((bits >> (23 - BITS)) << (23 - BITS)).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def quantized(x, axis: tl.constexpr):
    """Quantise float32 x, whose elements along `axis` share a scale: (e4m3, scale float32 without that axis)."""
    scale = tl.maximum(tl.max(tl.abs(x), axis=axis), SMALLEST_AMAX) / E4M3_MAX
    x = x / tl.expand_dims(scale, axis)
    return narrow(tl.minimum(tl.maximum(x, -E4M3_MAX), E4M3_MAX), tl.float8e4nv, 3), scale


@triton.jit(do_not_specialize=["B", "E", "slots"])
def route_kernel(
    logits,
    ids,
    weights,
    counts,
    work,
    lists,
    B,
    E,
    slots,
    row,
    TOP_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_TOP: tl.constexpr,
    BLOCK_E: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program a token. logits [B, E], rows `row` elements apart -> ids, weights [B, TOP_K], largest first.

    lists [E, B]: token · TOP_K + j of each expert's tokens; counts [E + 1]: how many each expert has, then the number
    of items in work [slots]. An item is expert + 65536 · which BLOCK_M of its tokens. BLOCK_TOP, BLOCK_E: TOP_K and E
    rounded up to powers of 2. Grid: [B].
    """
    token = tl.program_id(0)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    es = tl.arange(0, BLOCK_E)
    js = tl.arange(0, BLOCK_TOP)
    live = js < TOP_K
    x = tl.load(logits + token.to(tl.int64) * row + es, mask=es < E, other=float("-inf")).to(tl.float32) + 0.0
    bits = x.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # int32 in the order of the floats
    # Of bf16 logits the lower half is free: for the expert, so that one maximum finds both, and the first of equals
    PACKED: tl.constexpr = logits.dtype.element_ty == tl.bfloat16
    if PACKED:
        order = order & -0x10000 | 0xFFFF - es
    best = tl.zeros([BLOCK_TOP], tl.int32)
    expert = tl.zeros([BLOCK_TOP], tl.int32)
    for j in tl.static_range(TOP_K):
        largest = tl.max(order)
        if PACKED:
            chosen = 0xFFFF - (largest & 0xFFFF)
        else:
            chosen = tl.min(tl.where(order == largest, es, BLOCK_E))
        best = tl.where(js == j, largest, best)
        expert = tl.where(js == j, chosen, expert)
        order = tl.where(es == chosen, -0x80000000, order)
    best = tl.where(best < 0, best ^ 0x7FFFFFFF, best)
    if PACKED:
        best &= -0x10000
    logit = best.to(tl.float32, bitcast=True)
    share = tl.where(live, tl.exp(logit - tl.max(tl.where(live, logit, float("-inf")))), 0.0)
    tl.store(ids + token * TOP_K + js, expert, mask=live)
    tl.store(weights + token * TOP_K + js, share / tl.sum(share), mask=live)

    at = tl.atomic_add(counts + expert, 1, mask=live, sem="relaxed")
    tl.store(lists + expert * B + at, token * TOP_K + js, mask=live & (at < B))
    opens = (live & (at % BLOCK_M == 0)).to(tl.int32)
    item = tl.atomic_add(counts + E, tl.sum(opens), sem="relaxed") + tl.cumsum(opens) - 1
    tl.store(work + item, expert + (at // BLOCK_M << 16), mask=(opens > 0) & (item < slots))


@triton.jit
def slot_of(slot, counts, work, B, E, virtual, shared_at, BLOCK_M: tl.constexpr):
    """Return a slot's (expert, first of its tokens, number of tokens); no tokens: nothing to do."""
    item = tl.load(work + tl.maximum(slot - virtual, 0))  # past the last item: a stale one, masked below
    expert = item & 0xFFFF
    start = (item >> 16) * BLOCK_M
    count = tl.minimum(tl.load(counts + expert), B) - start
    if slot - virtual >= tl.load(counts + E):
        count = 0
    if slot < virtual:
        expert = shared_at
        start = slot * BLOCK_M
        count = B - start
    return expert, start, tl.minimum(count, BLOCK_M)


@triton.jit
def rows_of(expert, start, count, shared, lists, B, top_k, BLOCK_M: tl.constexpr):
    """Return a slot's (mask of its tokens, their rows of h and y, tokens), [BLOCK_M] each."""
    ms = tl.arange(0, BLOCK_M)
    live = ms < count
    entry = tl.load(lists + expert * B + start + ms, mask=live & (not shared), other=0)
    token = tl.where(shared, start + ms, entry // top_k)
    return live, tl.where(shared, B * top_k + token, entry), token


@triton.jit(do_not_specialize=RUNTIME)
def gate_up_kernel(
    x,
    x_scale,
    w,
    w_scale,
    counts,
    work,
    lists,
    h,
    B,
    E,
    H,
    inner,
    top_k,
    virtual,
    shared_at,
    x_scale_row,
    x_scale_group,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SUB: tl.constexpr,
    SPLIT: tl.constexpr,
    FP8: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """silu(x gateᵀ) · (x upᵀ). One program for TILE of inner, gate and up. Grid: [inner // TILE · SPLIT, slots].

    x [B, H]; w [experts, 2, inner, H]. FP8: both e4m3, BLOCK_K 128, x_scale [B, H / 128] by strides,
    w_scale [experts, 2, ceil(inner / 128), H / 128]. H is a multiple of BLOCK_K · SUB · SPLIT; an iteration takes
    SUB blocks of it. SPLIT 1: h [rows, inner] bf16. Otherwise h [SPLIT, rows, 2, inner] float32: partial sums over H,
    before SiLU.
    """
    slot = tl.program_id(1)
    tile = tl.program_id(0) // SPLIT
    part = tl.program_id(0) % SPLIT
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    expert, start, count = slot_of(slot, counts, work, B, E, virtual, shared_at, BLOCK_M)
    if count <= 0:
        return
    live, row, token = rows_of(expert, start, count, slot < virtual, lists, B, top_k, BLOCK_M)
    ks = tl.arange(0, BLOCK_K)
    cols = tile * TILE + tl.arange(0, TILE)
    groups = H // BLOCK
    steps = H // (BLOCK_K * SUB) // SPLIT  # of this program
    first = part * steps * SUB  # its first block of H, and the one after its last
    end = first + steps * SUB
    # gate [TILE, BLOCK_K], K contiguous; up lies `inner` rows further on
    gate_at = w + expert.to(tl.int64) * 2 * inner * H + cols[:, None] * H + ks[None, :]
    up_at = gate_at + inner.to(tl.int64) * H
    scales = (inner + BLOCK - 1) // BLOCK * groups
    gate_s_at = w_scale + expert * 2 * scales + (tile * TILE // BLOCK) * groups
    up_s_at = gate_s_at + scales
    x_at = x + token[None, :] * H + ks[:, None]  # [BLOCK_K, BLOCK_M], K contiguous
    x_s_at = x_scale + token * x_scale_row
    gate = tl.zeros([TILE, BLOCK_M], tl.float32)
    up = tl.zeros([TILE, BLOCK_M], tl.float32)
    if FP8:
        # Scales are loaded a block ahead, so that no product waits for them
        x_s = tl.load(x_s_at + first * x_scale_group, mask=live, other=0.0)
        gate_s = tl.load(gate_s_at + first)
        up_s = tl.load(up_s_at + first)
    for step in range(0, steps):
        for sub in tl.static_range(SUB):
            block = first + step * SUB + sub
            gate_w = tl.load(gate_at + block * BLOCK_K)
            up_w = tl.load(up_at + block * BLOCK_K)
            x_k = tl.load(x_at + block * BLOCK_K, mask=live[None, :], other=0.0)
            if FP8:
                zero = tl.zeros([TILE, BLOCK_M], tl.float32)
                gate_product = dot(gate_w, x_k, zero)
                up_product = dot(up_w, x_k, zero)
                gate += gate_product * (x_s * gate_s)[None, :]
                up += up_product * (x_s * up_s)[None, :]
                ahead = tl.minimum(block + 1, end - 1)
                x_s = tl.load(x_s_at + ahead * x_scale_group, mask=live, other=0.0)
                gate_s = tl.load(gate_s_at + ahead)
                up_s = tl.load(up_s_at + ahead)
            else:
                gate = dot(gate_w, x_k, gate)
                up = dot(up_w, x_k, up)
    if SPLIT == 1:
        product = gate / (1.0 + tl.exp(-gate)) * up
        tl.store(h + row[None, :] * inner + cols[:, None], narrow(product, tl.bfloat16, 7), mask=live[None, :])
    else:
        part_at = h + ((part * B * (top_k + 1) + row) * 2)[None, :] * inner + cols[:, None]
        tl.store(part_at, gate, mask=live[None, :])
        tl.store(part_at + inner, up, mask=live[None, :])


@triton.jit
def hidden(h, row, ks, live, rows, inner, SPLIT: tl.constexpr):
    """Load h [len(ks), BLOCK_M] as float32, rounded to bf16; K is the first axis."""
    if SPLIT == 1:
        return tl.load(h + row[None, :] * inner + ks[:, None], mask=live[None, :], other=0.0).to(tl.float32)
    at = h + (row * 2)[None, :] * inner + ks[:, None]
    gate = tl.zeros(at.shape, tl.float32)
    up = tl.zeros(at.shape, tl.float32)
    for part in tl.static_range(SPLIT):
        gate += tl.load(at + part * rows * 2 * inner, mask=live[None, :], other=0.0)
        up += tl.load(at + part * rows * 2 * inner + inner, mask=live[None, :], other=0.0)
    return narrow(gate / (1.0 + tl.exp(-gate)) * up, tl.bfloat16, 7).to(tl.float32)


@triton.jit(do_not_specialize=RUNTIME)
def down_kernel(
    h,
    w,
    w_scale,
    counts,
    work,
    lists,
    y,
    B,
    E,
    H,
    inner,
    top_k,
    virtual,
    shared_at,
    tiles,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE: tl.constexpr,
    SPLIT: tl.constexpr,
    FP8: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """y = h downᵀ. One program for `tiles` tiles of TILE of H. Grid: [ceil(H / TILE / tiles), slots].

    h as gate_up_kernel writes it; w [experts, H, inner], w_scale [.., ceil(H / 128), ceil(inner / 128)]; y [rows, H]
    bf16. With FP8 h is quantised here, a scale for each row and 128 of inner. WHOLE: inner is BLOCK_K, and the loop is
    over tiles of the weight, contiguous in memory. Otherwise tiles is 1, and the loop is over inner, BLOCK_K at a time.
    Of a WHOLE weight y is asked to stay in the L2, while other weights pass through it: combine_kernel reads it next.
    """
    slot = tl.program_id(1)
    # Written two kernels ago, and weights never change: both may be read before the wait
    expert, start, count = slot_of(slot, counts, work, B, E, virtual, shared_at, BLOCK_M)
    first = tl.program_id(0) * tiles  # its first tile
    w_first = w + expert.to(tl.int64) * H * inner + first * TILE * inner
    if OVERLAP:
        if WHOLE:
            if count > 0:
                prefetch(w_first, TILE * BLOCK_K * w.dtype.element_ty.primitive_bitwidth // 8)
        gdc_wait()
        gdc_launch_dependents()
    if count <= 0:
        return
    live, row, _ = rows_of(expert, start, count, slot < virtual, lists, B, top_k, BLOCK_M)
    ks = tl.arange(0, BLOCK_K)
    ns = tl.arange(0, TILE)
    rows = B * (top_k + 1)
    groups = (inner + BLOCK - 1) // BLOCK
    w_at = w_first + ns[:, None] * inner + ks[None, :]
    w_s_at = w_scale + expert * ((H + BLOCK - 1) // BLOCK) * groups
    y_at = y + row.to(tl.int64)[None, :] * H + first * TILE + ns[:, None]
    zero = tl.zeros([TILE, BLOCK_M], tl.float32)
    if WHOLE:
        h_k = hidden(h, row, ks, live, rows, inner, SPLIT)
        if FP8:
            h_q, h_s = quantized(h_k, 0)
        else:
            h_q = h_k.to(tl.bfloat16)
        for tile in range(0, tl.minimum(tiles, H // TILE - first)):
            product = dot(tl.load(w_at + tile * TILE * inner), h_q, zero)
            if FP8:
                product *= (h_s * tl.load(w_s_at + (first + tile) * TILE // BLOCK))[None, :]
            y_tile = y_at + tile * TILE
            tl.store(y_tile, narrow(product, tl.bfloat16, 7), mask=live[None, :], eviction_policy="evict_last")
    else:
        total = zero
        for block in range(0, inner // BLOCK_K):
            h_k = hidden(h, row, block * BLOCK_K + ks, live, rows, inner, SPLIT)
            w_k = tl.load(w_at + block * BLOCK_K)
            if FP8:
                h_q, h_s = quantized(h_k, 0)
                w_s = tl.load(w_s_at + (first * TILE // BLOCK) * groups + block)
                total += dot(w_k, h_q, zero) * (h_s * w_s)[None, :]
            else:
                total = dot(w_k, h_k.to(tl.bfloat16), total)
        tl.store(y_at, narrow(total, tl.bfloat16, 7), mask=live[None, :])


@triton.jit(do_not_specialize=["B", "E"])
def combine_kernel(
    x,
    shared_gate,
    y,
    weights,
    out,
    counts,
    B,
    E,
    H,
    TOP_K: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """out = Σ_j weight_j y_j + sigmoid(x · shared_gate) y_shared. One program for CHUNK of H of one token.

    BLOCK_H, BLOCK_E: H and E + 1 rounded up to powers of 2. Resets counts [E + 1]. Grid: [ceil(H / CHUNK), B].
    """
    chunk = tl.program_id(0)
    token = tl.program_id(1).to(tl.int64)
    hs = tl.arange(0, BLOCK_H)
    cs = chunk * CHUNK + tl.arange(0, CHUNK)
    live = cs < H
    gate_w = tl.load(shared_gate + hs, mask=hs < H, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    if (chunk == 0) & (token == 0):
        es = tl.arange(0, BLOCK_E)
        tl.store(counts + es, tl.zeros([BLOCK_E], tl.int32), mask=es <= E)
    gate = tl.sum(tl.load(x + token * H + hs, mask=hs < H, other=0.0).to(tl.float32) * gate_w)
    total = tl.load(y + (B * TOP_K + token) * H + cs, mask=live, other=0.0).to(tl.float32) / (1.0 + tl.exp(-gate))
    for j in tl.static_range(TOP_K):
        weight = tl.load(weights + token * TOP_K + j)
        total += weight * tl.load(y + (token * TOP_K + j) * H + cs, mask=live, other=0.0).to(tl.float32)
    tl.store(out + token * H + cs, narrow(total, tl.bfloat16, 7), mask=live)
