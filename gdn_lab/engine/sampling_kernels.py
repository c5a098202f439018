"""The sampler in Triton: several programs for each row, which return at once where the row is greedy.

Logits are bf16, so that a row has at most 65,536 different ones: a number of 16 bits orders them. The least one that
top-k or top-p keeps is found exactly, 3 bits in each pass over the row: a pass sums what 8 thresholds keep. How many
parts a row has depends on the vocabulary alone, so that sums, and thus tokens, are the same in any batch; how many of
them a program takes depends on the batch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.triton.stochastic import hashed, mixed
from .sampling import SamplingRows

SHIFTS = (13, 10, 7, 4, 1, 0)  # of the bits that a pass finds
PASSES = tl.constexpr(len(SHIFTS))
TRIALS = tl.constexpr(8)  # thresholds of a pass
TOP_K, TOP_P = 0, 1  # what a pass is of; top-p comes second
SPAN, BLOCK, WARPS = 8192, 1024, 4  # tokens of a part, and of one step of a program
PROGRAMS = 1024  # about as many, where there are more parts: two rounds of four for each of an H100's multiprocessors


@triton.jit
def ordered(x):
    """A number from 0 to 65,535 that orders bf16, int32."""
    bits = x.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return tl.where(bits >= 0x8000, 0xFFFF - bits, bits | 0x8000)


@triton.jit
def pass_sums(sums, row, number, parts, PARTS: tl.constexpr):
    """What each threshold of pass `number` keeps, over all parts of a row: [TRIALS] float32."""
    part, trial = tl.arange(0, PARTS), tl.arange(0, TRIALS)
    at = ((row * 2 * PASSES + number) * parts + part[:, None]) * TRIALS + trial[None, :]
    return tl.sum(tl.load(sums + at, mask=part[:, None] < parts, other=0.0), 0)


@triton.jit
def enough(sums, row, top_k, top_p, vocab, parts, KIND: tl.constexpr, PARTS: tl.constexpr):
    """What a threshold must keep: top_k tokens, or top_p of what the lowest threshold of top-p's first pass does."""
    if KIND == 0:
        return tl.minimum(top_k, vocab).to(tl.float32)
    lowest = tl.where(tl.arange(0, TRIALS) == 0, pass_sums(sums, row, PASSES, parts, PARTS), 0.0)
    return top_p * tl.sum(lowest)


@triton.jit
def after_pass(sums, found, row, number, shift, wanted, parts, PARTS: tl.constexpr):
    """The bits of the threshold that are known after pass `number`: the highest threshold that keeps `wanted`."""
    keeps = (pass_sums(sums, row, number, parts, PARTS) >= wanted).to(tl.int32)
    return tl.load(found + row * 2 * PASSES + number) + (tl.maximum(tl.sum(keeps) - 1, 0) << shift)


@triton.jit
def kept_by_top_k(sums, found, row, top_k, vocab, parts, PARTS: tl.constexpr):
    """The least number that top-k keeps, once all its passes are done."""
    least = 0
    if top_k > 0:
        wanted = enough(sums, row, top_k, 1.0, vocab, parts, 0, PARTS)
        least = after_pass(sums, found, row, PASSES - 1, 0, wanted, parts, PARTS)
    return least


@triton.jit(do_not_specialize=["number", "shift", "before", "parts", "each"])
def pass_kernel(
    logits,  # [rows, vocab] bf16, the last dimension contiguous
    tokens,  # [rows] int64: the most likely one of each row
    numbers,  # [rows, 2] float32: temperature, top_p
    whole,  # [rows, 2] int32: top_k, seed
    sums,  # [rows, 2 · PASSES, parts, TRIALS] float32: what each threshold keeps
    found,  # [rows, 2 · PASSES] int32: the bits that are known before each pass
    vocab,
    row_stride,
    parts,
    each,  # parts of a program
    number,
    shift,
    before,
    KIND: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Sum what the thresholds of one pass keep: how many tokens (top-k), or Σ e^((x - largest) / temperature) (top-p).

    number: of the pass, those of top-p from PASSES on. shift: of its bits. before: of those of the pass before, or -1.
    """
    row, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature, top_p = tl.load(numbers + 2 * row), tl.load(numbers + 2 * row + 1)
    top_k = tl.load(whole + 2 * row)
    asked = top_p < 1
    if KIND == 0:
        asked = top_k > 0
    if (temperature > 0) & asked:
        least, known, x_at = 0, 0, logits + row * row_stride
        if KIND == 1:
            least = kept_by_top_k(sums, found, row, top_k, vocab, parts, PARTS)
        if before >= 0:
            wanted = enough(sums, row, top_k, top_p, vocab, parts, KIND, PARTS)
            known = after_pass(sums, found, row, number - 1, before, wanted, parts, PARTS)
        tl.store(found + row * 2 * PASSES + number, known)  # by all programs of the row, the same
        largest = tl.load(x_at + tl.load(tokens + row)).to(tl.float32)
        trials = known + (tl.arange(0, TRIALS) << shift)
        for part in range(program * each, tl.minimum(program * each + each, parts)):
            total = tl.zeros([TRIALS, BLOCK], tl.float32)
            for start in range(0, SPAN, BLOCK):
                at = part * SPAN + start + tl.arange(0, BLOCK)
                x = tl.load(x_at + at, mask=at < vocab, other=float("-inf"))
                value = tl.where((ordered(x) >= least) & (at < vocab), 1.0, 0.0)
                if KIND == 1:
                    value *= tl.exp((x.to(tl.float32) - largest) * (1.0 / temperature))
                total += tl.where(ordered(x)[None, :] >= trials[:, None], value[None, :], 0.0)
            to = ((row * 2 * PASSES + number) * parts + part) * TRIALS + tl.arange(0, TRIALS)
            tl.store(sums + to, tl.sum(total, 1))


@triton.jit(do_not_specialize=["parts", "each"])
def race_kernel(
    logits,  # these as in pass_kernel
    positions,  # [rows] int32
    numbers,
    whole,
    sums,
    found,
    soonest,  # [rows, programs] float32: the logarithm of when the first token of a program finishes
    winners,  # [rows, programs] int32: that token
    vocab,
    row_stride,
    parts,
    each,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Let the tokens of a program's parts that top-k and top-p keep race each other (sampling.py)."""
    row, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature, top_p = tl.load(numbers + 2 * row), tl.load(numbers + 2 * row + 1)
    if temperature > 0:
        top_k, seed, x_at = tl.load(whole + 2 * row), tl.load(whole + 2 * row + 1), logits + row * row_stride
        least = kept_by_top_k(sums, found, row, top_k, vocab, parts, PARTS)
        if top_p < 1:
            wanted = enough(sums, row, top_k, top_p, vocab, parts, 1, PARTS)
            least = tl.maximum(least, after_pass(sums, found, row, 2 * PASSES - 1, 0, wanted, parts, PARTS))
        key = mixed(mixed(seed.to(tl.uint32)) ^ tl.load(positions + row).to(tl.uint32))
        first, token = float("inf"), 0
        begin, end = program * each * SPAN, tl.minimum((program * each + each) * SPAN, vocab)
        for start in range(begin, end, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(x_at + at, mask=at < vocab, other=float("-inf"))
            u = tl.minimum((hashed(key, at).to(tl.float32) + 0.5) * 2.3283064365386963e-10, 1 - 2.0**-24)
            wait = tl.log(tl.where(u < 1e-3, u + 0.5 * u * u, -tl.log(1 - u)))
            race = wait - x.to(tl.float32) * (1.0 / temperature)
            race = tl.where((ordered(x) >= least) & (at < vocab), race, float("inf"))
            best = tl.min(race)
            if best < first:
                first, token = best, start + tl.argmin(race, 0)
        tl.store(soonest + row * tl.num_programs(1) + program, first)
        tl.store(winners + row * tl.num_programs(1) + program, token)


@triton.jit(do_not_specialize=["programs"])
def winner_kernel(numbers, tokens, soonest, winners, programs, PROGRAMS: tl.constexpr):
    """Write the token that finishes first of all programs', in each row whose temperature is above 0."""
    row, program = tl.program_id(0).to(tl.int64), tl.arange(0, PROGRAMS)
    if tl.load(numbers + 2 * row) > 0:
        times = tl.load(soonest + row * programs + program, mask=program < programs, other=float("inf"))
        tl.store(tokens + row, tl.load(winners + row * programs + tl.argmin(times, 0)).to(tl.int64))


def sample(
    logits: Tensor,
    tokens: Tensor,
    rows: SamplingRows,
    positions: Tensor,
    span: int = SPAN,
    block: int = BLOCK,
    most: int = PROGRAMS,
) -> None:
    """As sampling_reference.sample(), of bf16 logits; tokens must be the most likely ones. Never synchronises.

    span, block: tokens of a part, and of one step of a program. most: programs, where a row may have several.
    """
    count, vocab = logits.shape
    parts, passes = triton.cdiv(vocab, span), 2 * len(SHIFTS)
    each = triton.cdiv(parts, max(1, min(parts, most // max(1, count))))
    programs = triton.cdiv(parts, each)
    sums, soonest = (
        logits.new_empty(count, *sizes, dtype=torch.float32) for sizes in ((passes, parts, 8), (programs,))
    )
    found, winners = (logits.new_empty(count, size, dtype=torch.int32) for size in (passes, programs))
    shape = {"vocab": vocab, "row_stride": logits.stride(0), "parts": parts, "each": each}
    constants = {"SPAN": span, "BLOCK": block, "PARTS": triton.next_power_of_2(parts), "num_warps": WARPS}
    shared = {"logits": logits, "numbers": rows.numbers, "whole": rows.whole, "sums": sums, "found": found}
    for kind in (TOP_K, TOP_P):
        for number, shift in enumerate(SHIFTS):
            pass_kernel[(count, programs)](
                **shared,
                **shape,
                **constants,
                tokens=tokens,
                number=number + kind * len(SHIFTS),
                shift=shift,
                before=SHIFTS[number - 1] if number else -1,
                KIND=kind,
            )
    race_kernel[(count, programs)](
        **shared, **shape, **constants, positions=positions, soonest=soonest, winners=winners
    )
    winner_kernel[(count,)](
        numbers=rows.numbers,
        tokens=tokens,
        soonest=soonest,
        winners=winners,
        programs=programs,
        PROGRAMS=triton.next_power_of_2(programs),
        num_warps=1,
    )
