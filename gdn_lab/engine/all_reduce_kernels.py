"""All-reduce over peer pointers in Triton, alone or with the residual and the RMSNorm that follow it: one launch.

Each rank has a scratch that its peers write into over NVLink. An element of a scratch is EMPTY until its sender has
written it: who reads it waits until it is not, takes it and leaves EMPTY behind. So no flags, no fences and no barriers
are needed: a message costs one way over the link. EMPTY is a NaN of 16-bit floats; a NaN with those bits is sent as
another NaN.

One shot: each rank sends all rows to all ranks, and each adds up all of them. Two shots: row i is sent to its owner
alone, rank i % RANKS, which adds it up, with the residual, and sends the sum to all ranks. Of `rows` a rank sends
(RANKS - 1) · rows over the link in one shot, and 2 · (RANKS - 1) / RANKS · rows in two: the same for two ranks. Both
add in float32 in the same order on every rank, so every rank has the same bits.

Two halves of a scratch take turns, by a counter on the device, so replays of a CUDA graph need no host. A half is used
again two calls later. By then its sender has received all data of the call between, and its peer sent those after it
had emptied that half. That needs kernels of a stream not to overlap: no programmatic dependent launch (PDL).

A kernel has stages: send, add up (and send again), receive. FIRST and LAST choose those of a launch: all of them on a
GPU, one after the other where several ranks are emulated in one process.
"""

import triton
import triton.language as tl

from ..layer.kernels.norms import store_normed

EMPTY = tl.constexpr(-1)  # 0xFFFF: a NaN in bfloat16 and float16
OTHER_NAN = tl.constexpr(0x7FFF)
CALLS = tl.constexpr(16)  # the counter's bits from here on count calls, and may wrap
ONE_CALL, JOINED = tl.constexpr(1 << 16), tl.constexpr((1 << 16) - 1)  # below them: programs that joined this call
SEND, ADD, RECEIVE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def turn_of(counter, capacity, JOIN: tl.constexpr):
    """Offset of the half of every scratch that this call uses. The last program to JOIN starts the next call's turn."""
    if JOIN:
        joined = tl.atomic_add(counter, 1, sem="relaxed")
        if (joined & JOINED) == tl.num_programs(0) - 1:
            tl.atomic_add(counter, -tl.num_programs(0) + ONE_CALL, sem="relaxed")
    else:
        joined = tl.load(counter)
    return ((joined >> CALLS) & 1).to(tl.int64) * capacity


@triton.jit
def send(bits, scratches, peer, at, mask):
    """Store `bits` at offset `at` of the scratch of rank `peer`."""
    scratch = tl.multiple_of(tl.load(scratches + peer).to(tl.pointer_type(tl.int16)), 16)
    tl.store(scratch + at, tl.where(bits == EMPTY, OTHER_NAN, bits), mask=mask)


@triton.jit
def arrived(at, apart, own, rank, columns, mask, COUNT: tl.constexpr, FLOAT: tl.constexpr):
    """The sum of COUNT rows, as the bits of a float32; EMPTY where an element of another rank has not come yet."""
    total = tl.zeros(mask.shape, tl.float32)
    empty = tl.zeros(mask.shape, tl.int1)
    for place in tl.static_range(COUNT):
        row = tl.multiple_of(tl.where(place == rank, own, at + place * apart), 16)
        bits = tl.load(row + columns, mask=mask, other=0, volatile=True)
        empty = empty | ((bits == EMPTY) & (place != rank))
        total += bits.to(FLOAT, bitcast=True).to(tl.float32)
    return tl.where(empty, EMPTY, total.to(tl.int32, bitcast=True))


@triton.jit
def receive(at, apart, own, rank, columns, mask, COUNT: tl.constexpr, FLOAT: tl.constexpr):
    """Wait for COUNT rows in the scratch, the first at the pointer `at`, each `apart` from the one before.

    That of `rank` is not there but at `own`. Return their float32 sum [mask's shape], added up in the order of ranks,
    and leave EMPTY behind. No sum has the bits of EMPTY.
    """
    sums = arrived(at, apart, own, rank, columns, mask, COUNT, FLOAT)
    while tl.max((sums == EMPTY).to(tl.int32)) > 0:
        sums = arrived(at, apart, own, rank, columns, mask, COUNT, FLOAT)
    for place in tl.static_range(COUNT):
        if place != rank:
            tl.store(at + place * apart + columns, tl.full(mask.shape, EMPTY, tl.int16), mask=mask)
    return sums.to(tl.float32, bitcast=True)


@triton.jit
def finish(
    total,
    row,
    columns,
    mask,
    groups,
    gain,
    residual_out,
    y,
    y8,
    y_scale,
    hidden,
    scale_group,
    NORM: tl.constexpr,
    GROUP: tl.constexpr,
    QUANTIZE: tl.constexpr,
    EPS: tl.constexpr,
    MAX: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    """Store a row: `total` itself at y, or with NORM at residual_out and its norm at y (and y8, y_scale)."""
    if NORM:
        store_normed(
            total,
            gain,
            row,
            columns,
            mask,
            groups,
            residual_out,
            y,
            y8,
            y_scale,
            hidden,
            scale_group,
            GROUP,
            QUANTIZE,
            EPS,
            MAX,
            SMALLEST,
        )
    else:
        tl.store(y + row * hidden + columns, total.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rank", "rows"])
def one_shot_kernel(
    x,
    residual,
    weight,
    residual_out,
    y,
    y8,
    y_scale,
    scratches,
    scratch,
    counter,
    rank,
    rows,
    hidden,
    x_row,
    scale_group,
    capacity,
    RANKS: tl.constexpr,
    FLOAT: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    QUANTIZE: tl.constexpr,
    EPS: tl.constexpr,
    MAX: tl.constexpr,
    SMALLEST: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """x [rows, hidden] as int16 with row stride x_row; residual, residual_out, y as add_norm() takes them.

    scratches: int64 [RANKS], the address of each rank's scratch; scratch: this rank's own, int16 [2, capacity], a half
    holding [RANKS, rows, hidden]. counter: int32 [1]. Grid: as many programs as can run at once, or fewer.
    """
    # [groups, GROUP] of a row
    groups = tl.arange(0, BLOCK // GROUP)
    columns = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    mask = columns < hidden
    gain = 0.0
    if NORM:
        gain = 1.0 + tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    half = turn_of(counter, capacity, LAST == ADD)
    first, step = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    if FIRST == SEND:
        for row in range(first, rows, step):
            bits = tl.load(x + row * x_row + columns, mask=mask, other=0)
            at = half + (rank.to(tl.int64) * rows + row) * hidden + columns
            for other in tl.static_range(1, RANKS):
                send(bits, scratches, (rank + other) % RANKS, at, mask)
    if LAST == ADD:
        apart = rows.to(tl.int64) * hidden
        for row in range(first, rows, step):
            if NORM:
                before = tl.load(residual + row * hidden + columns, mask=mask, other=0.0).to(tl.float32)
            at = scratch + half + row * hidden
            total = receive(at, apart, x + row * x_row, rank, columns, mask, RANKS, FLOAT)
            if NORM:
                total += before
            finish(
                total,
                row,
                columns,
                mask,
                groups,
                gain,
                residual_out,
                y,
                y8,
                y_scale,
                hidden,
                scale_group,
                NORM,
                GROUP,
                QUANTIZE,
                EPS,
                MAX,
                SMALLEST,
            )


@triton.jit(do_not_specialize=["rank", "rows"])
def two_shot_kernel(
    x,
    residual,
    weight,
    residual_out,
    y,
    y8,
    y_scale,
    scratches,
    scratch,
    counter,
    rank,
    rows,
    hidden,
    x_row,
    scale_group,
    capacity,
    RANKS: tl.constexpr,
    FLOAT: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    QUANTIZE: tl.constexpr,
    EPS: tl.constexpr,
    MAX: tl.constexpr,
    SMALLEST: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """Arguments as of one_shot_kernel. Half a scratch holds [RANKS, owned rows, hidden], then sums [rows, hidden].

    With NORM the owner adds the residual, and what it sends, rounded to x's dtype, is what all ranks normalise.
    """
    # [groups, GROUP] of a row
    groups = tl.arange(0, BLOCK // GROUP)
    columns = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    mask = columns < hidden
    gain = 0.0
    if NORM:
        gain = 1.0 + tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    half = turn_of(counter, capacity, LAST == RECEIVE)
    first, step = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    owned = tl.cdiv(rows, RANKS)
    sums = half + (owned * RANKS).to(tl.int64) * hidden
    if FIRST == SEND:
        for row in range(first, rows, step):
            bits = tl.load(x + row * x_row + columns, mask=mask, other=0)
            at = half + (rank.to(tl.int64) * owned + row // RANKS) * hidden + columns
            if row % RANKS != rank:
                send(bits, scratches, row % RANKS, at, mask)
    if (FIRST <= ADD) & (LAST >= ADD):
        apart = owned.to(tl.int64) * hidden
        for index in range(first, tl.cdiv(rows - rank, RANKS), step):
            row = index * RANKS + rank
            if NORM:
                before = tl.load(residual + row * hidden + columns, mask=mask, other=0.0).to(tl.float32)
            at = scratch + half + index * hidden
            total = receive(at, apart, x + row * x_row, rank, columns, mask, RANKS, FLOAT)
            if NORM:
                total += before
            bits = total.to(FLOAT).to(tl.int16, bitcast=True)
            for other in tl.static_range(1, RANKS + 1):
                send(bits, scratches, (rank + other) % RANKS, sums + row * hidden + columns, mask)
    if LAST == RECEIVE:
        for row in range(first, rows, step):
            finish(
                receive(scratch + sums + row * hidden, 0, x, -1, columns, mask, 1, FLOAT),
                row,
                columns,
                mask,
                groups,
                gain,
                residual_out,
                y,
                y8,
                y_scale,
                hidden,
                scale_group,
                NORM,
                GROUP,
                QUANTIZE,
                EPS,
                MAX,
                SMALLEST,
            )
