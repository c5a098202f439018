"""Full attention over a paged KV cache in three Triton kernels: for one token of each request, several, or a prompt.

    store     norm and rotation of q and k; k and v to the cache
    attend    flash attention over a part of the keys: programs share a long request, as in flash-decoding
    combine   sums the parts, applies the output gate, quantises where the next product takes FP8

A program of attend takes one key head, with all the query heads that share it: a tile is [tokens · group, D]. It reads
each request's length on the GPU, so a captured launch serves any length; rows of padding end at once.

attention_reference.py says what they compute, and the sizes.
"""

import torch
import triton
import triton.language as tl

from ..layer.experts_tilings import has_room
from ..layer.fp8 import BLOCK
from ..layer.kernels.experts_kernels import dot, narrow, quantized
from ..reference import NORM_EPS

EPS = tl.constexpr(NORM_EPS)
MOST_SPLITS = 64
PART = 16  # splits that combine adds at once
PROGRAMS = 264  # twice an H100's 132 SMs: with fewer programs, keys are split further
KEYS = 64  # of a tile
MOST_PAIRS = 256  # (token, query head) pairs of draft tokens; prompts have more


@triton.jit(do_not_specialize=["max_pages"])
def store_kernel(
    qkv,
    q_norm,
    k_norm,
    cos,
    sin,
    positions,
    sequence,
    indices,
    page_table,
    q,
    k_pages,
    v_pages,
    qkv_row,
    max_pages,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    PAGE: tl.constexpr,
):
    """One program for a head of q, k or v of a row. qkv [N, …] with row stride qkv_row; q [N, HQ, D] contiguous.

    cos, sin [positions, HALF]; k_pages, v_pages [pages, PAGE, HKV, D]. Padding stores nothing. Grid: [N, HQ + 2·HKV].
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = tl.load(sequence + token)
    if row < 0:
        return
    if tl.load(indices + row) < 0:
        return
    position = tl.load(positions + token)
    d = tl.arange(0, D)
    is_q = head < HQ
    at = qkv + token * qkv_row + tl.where(is_q, head, head + HQ) * D  # the gates lie between q and k
    x = tl.load(at + d).to(tl.float32)
    page = tl.load(page_table + row.to(tl.int64) * max_pages + position // PAGE).to(tl.int64)
    cached = (page * PAGE + position % PAGE) * HKV * D + d
    if head >= HQ + HKV:
        tl.store(v_pages + cached + (head - HQ - HKV) * D, x.to(v_pages.dtype.element_ty))
        return
    norm = q_norm
    if not is_q:
        norm = k_norm
    # channel i < HALF turns with i + HALF, with the sign of each
    pair = tl.where(d < HALF, d + HALF, tl.where(d < 2 * HALF, d - HALF, d))
    rms = tl.rsqrt(tl.sum(x * x) / D + EPS)
    y = x * rms * (1.0 + tl.load(norm + d).to(tl.float32))
    other = tl.load(at + pair).to(tl.float32) * rms * (1.0 + tl.load(norm + pair).to(tl.float32))
    turns = d < 2 * HALF
    angle = position * HALF + tl.where(d < HALF, d, d - HALF)
    c = tl.load(cos + angle, mask=turns, other=1.0)
    s = tl.load(sin + angle, mask=turns, other=0.0)
    y = y * c + tl.where(d < HALF, -other, other) * s
    if is_q:
        tl.store(q + (token * HQ + head) * D + d, narrow(y, tl.bfloat16, 7))
    else:
        tl.store(k_pages + cached + (head - HQ) * D, narrow(y, tl.bfloat16, 7))


@triton.jit(do_not_specialize=["max_pages"])
def attend_kernel(
    q,
    k_pages,
    v_pages,
    positions,
    starts,
    indices,
    page_table,
    parts,
    sums,
    max_pages,
    scale,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KEYS: tl.constexpr,
):
    """One program for a part of a request's keys, one key head, BLOCK_M of its (token, query head) pairs.

    parts [N, HQ, SPLITS, D] float32: Σ exp2(s - m) v; sums [N, HQ, SPLITS, 2]: m, the largest score, and Σ exp2(s - m).
    scale: of scores, with log2 e. Grid: [SPLITS, HKV · blocks of pairs, n].
    """
    split = tl.program_id(0)
    key_head = tl.program_id(1) % HKV
    block = tl.program_id(1) // HKV
    row = tl.program_id(2)
    GROUP: tl.constexpr = HQ // HKV
    first = tl.load(starts + row)
    pairs = (tl.load(starts + row + 1) - first) * GROUP
    if tl.load(indices + row) < 0:
        return
    if block * BLOCK_M >= pairs:
        return
    ms = block * BLOCK_M + tl.arange(0, BLOCK_M)
    live = ms < pairs
    token = (first + ms // GROUP).to(tl.int64)
    head = key_head * GROUP + ms % GROUP
    d = tl.arange(0, D)
    limit = tl.load(positions + token, mask=live, other=-1) + 1  # keys that a query sees
    length = tl.max(limit)
    share = tl.cdiv(tl.cdiv(length, SPLITS), KEYS) * KEYS
    begin = split * share
    end = tl.minimum(begin + share, length)
    tile = tl.load(q + (token * HQ + head)[:, None] * D + d[None, :], mask=live[:, None], other=0.0)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, D], tl.float32)
    table = page_table + row.to(tl.int64) * max_pages
    for start in range(begin, end, KEYS):
        ns = start + tl.arange(0, KEYS)
        inside = ns < end
        page = tl.load(table + ns // PAGE, mask=inside, other=0).to(tl.int64)
        at = ((page * PAGE + ns % PAGE) * HKV + key_head) * D
        k = tl.load(k_pages + at[:, None] + d[None, :], mask=inside[:, None], other=0.0)
        s = dot(tile, tl.trans(k), tl.zeros([BLOCK_M, KEYS], tl.float32)) * scale
        seen = inside[None, :] & (ns[None, :] < limit[:, None])
        s = tl.where(seen, s, float("-inf"))
        new = tl.maximum(largest, tl.max(s, axis=1))
        safe = tl.where(new == float("-inf"), 0.0, new)  # a query that sees none of these keys
        p = tl.exp2(s - safe[:, None])
        shrink = tl.exp2(largest - safe)
        v = tl.load(v_pages + at[:, None] + d[None, :], mask=inside[:, None], other=0.0)
        total = total * shrink + tl.sum(p, axis=1)
        out = dot(narrow(p, tl.bfloat16, 7), v, out * shrink[:, None])
        largest = new
    here = (token * HQ + head) * SPLITS + split
    tl.store(parts + here[:, None] * D + d[None, :], out, mask=live[:, None])
    tl.store(sums + here * 2, largest, mask=live)
    tl.store(sums + here * 2 + 1, total, mask=live)


@triton.jit
def combine_parts_kernel(
    parts,
    sums,
    qkv,
    sequence,
    indices,
    y,
    y8,
    y_scale,
    qkv_row,
    scale_group,
    HQ: tl.constexpr,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    PART: tl.constexpr,
    GROUP: tl.constexpr,
    QUANTIZE: tl.constexpr,
):
    """y = Σ parts / Σ sums · sigmoid(gate); one program a head of a row, PART parts at a time. Padding gives zeros.

    y [N, HQ · D], or with QUANTIZE only y8 and y_scale, a scale for each GROUP channels. Grid: [N, HQ].
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    # [D / GROUP, GROUP] of the head
    groups = tl.arange(0, D // GROUP)
    d = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    row = tl.load(sequence + token)
    live = row >= 0
    live = live & (tl.load(indices + tl.maximum(row, 0)) >= 0)
    here = (token * HQ + head) * SPLITS
    ps = tl.arange(0, SPLITS)
    m = tl.load(sums + (here + ps) * 2, mask=live, other=0.0)
    shrink = tl.exp2(m - tl.max(m))
    total = tl.sum(shrink * tl.load(sums + (here + ps) * 2 + 1, mask=live, other=1.0))
    out = tl.zeros([D // GROUP, GROUP], tl.float32)
    top = tl.max(m)
    for first in tl.static_range(0, SPLITS, PART):
        qs = first + tl.arange(0, PART)
        weight = tl.exp2(tl.load(sums + (here + qs) * 2, mask=live, other=0.0) - top)
        at = parts + (here + qs)[:, None, None] * D + d[None, :, :]
        out += tl.sum(weight[:, None, None] * tl.load(at, mask=live, other=0.0), axis=0)
    gate = tl.load(qkv + token * qkv_row + (HQ + head) * D + d).to(tl.float32)
    out = tl.where(live, out / total / (1.0 + tl.exp(-gate)), 0.0)
    at = token * HQ * D + head * D + d
    if QUANTIZE:
        group = head * (D // GROUP) + groups
        data, s = quantized(out, 1)
        tl.store(y8 + at, data)
        tl.store(y_scale + group * scale_group + token, s)
    else:
        tl.store(y + at, narrow(out, tl.bfloat16, 7))


# ---- launches: arguments as in attention_reference.py's functions of the same names ----------------------------------


def store_qkv(qkv, q_norm, k_norm, table, rows, q, k_pages, v_pages):
    """Norm and rotate q and k; write q [N, HQ, D], and k and v to their pages."""
    (N, HQ, D), HKV = q.shape, k_pages.shape[2]
    cos, sin = table
    store_kernel[(N, HQ + 2 * HKV)](
        qkv=qkv,
        q_norm=q_norm,
        k_norm=k_norm,
        cos=cos,
        sin=sin,
        positions=rows.positions,
        sequence=rows.sequence,
        indices=rows.indices,
        page_table=rows.page_table,
        q=q,
        k_pages=k_pages,
        v_pages=v_pages,
        qkv_row=qkv.stride(0),
        max_pages=rows.page_table.stride(0),
        HQ=HQ,
        HKV=HKV,
        D=D,
        HALF=cos.shape[1],
        PAGE=k_pages.shape[1],
        num_warps=1 if D <= 128 else 2,
    )


def attend(q, qkv, k_pages, v_pages, rows, y, y8=None, y_scale=None, *, take, max_length: int):
    """Attention of q [N, HQ, D] to the cached keys, times the gates in qkv, as y or as y8 and y_scale.

    take: of a workspace, for the parts. max_length: of the longest request, which bounds the number of parts.
    """
    (N, HQ, D), HKV, n = q.shape, k_pages.shape[2], len(rows.indices)
    quantize = y8 is not None
    splits, block_m = tiling(n, HKV, rows.longest * (HQ // HKV), max_length, has_room(q.device))
    parts = take("attention parts", N, HQ, splits, D, dtype=torch.float32)
    sums = take("attention sums", N, HQ, splits, 2, dtype=torch.float32)
    blocks = triton.cdiv(rows.longest * (HQ // HKV), block_m)
    attend_kernel[(splits, HKV * blocks, n)](
        q=q,
        k_pages=k_pages,
        v_pages=v_pages,
        positions=rows.positions,
        starts=rows.starts,
        indices=rows.indices,
        page_table=rows.page_table,
        parts=parts,
        sums=sums,
        max_pages=rows.page_table.stride(0),
        scale=D**-0.5 * 1.4426950408889634,
        HQ=HQ,
        HKV=HKV,
        D=D,
        PAGE=k_pages.shape[1],
        SPLITS=splits,
        BLOCK_M=block_m,
        KEYS=KEYS,
        num_warps=4 if block_m == 16 else 8,
        num_stages=2,
    )
    combine_parts_kernel[(N, HQ)](
        parts=parts,
        sums=sums,
        qkv=qkv,
        sequence=rows.sequence,
        indices=rows.indices,
        y=q if quantize else y,
        y8=y8 if quantize else y,
        y_scale=y_scale if quantize else y,
        qkv_row=qkv.stride(0),
        scale_group=y_scale.stride(1) if quantize else 0,
        HQ=HQ,
        D=D,
        SPLITS=splits,
        PART=min(PART, splits),
        GROUP=BLOCK,
        QUANTIZE=quantize,
        num_warps=4,
    )


def tiling(sequences: int, key_heads: int, pairs: int, max_length: int, roomy: bool = True) -> tuple[int, int]:
    """Return (parts that share a request's keys, (token, query head) pairs of a program).

    pairs: of the longest sequence. Parts of at least four tiles of keys, until there are PROGRAMS programs; prompts,
    which are many pairs, are not parted. roomy: a block may have 160 KB of shared memory.
    """
    block_m = 16 if pairs <= 16 else 32 if pairs <= 32 or not roomy else 64
    programs, splits = sequences * key_heads * triton.cdiv(pairs, block_m), 1
    while splits < MOST_SPLITS and programs * splits < PROGRAMS and splits * 2 * 4 * KEYS <= max_length:
        splits *= 2
    return 1 if pairs > MOST_PAIRS else splits, block_m
