"""The sampler in Triton: one program for each row, which returns at once where the row is greedy.

Logits are bf16, so that a row has at most 65,536 different ones: a number of 16 bits orders them, and the least one
that top-k or top-p keeps is found exactly, bit by bit, in 16 passes over the row.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..backends.triton.stochastic import hashed, mixed
from .sampling import SamplingRows

BLOCK, WARPS = 8192, 16


@triton.jit
def ordered(x):
    """A number from 0 to 65,535 that orders bf16, int32."""
    bits = x.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return tl.where(bits >= 0x8000, 0xFFFF - bits, bits | 0x8000)


@triton.jit
def mass(row, vocab, least, largest, scale, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Σ e^((x - largest) · scale) of the tokens from `least` on, or how many there are."""
    found = 0.0
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < vocab, other=float("-inf"))
        inside = (ordered(x) >= least) & (at < vocab)
        value = 1.0 if COUNT else tl.exp((x.to(tl.float32) - largest) * scale)
        found += tl.sum(tl.where(inside, value, 0.0))
    return found


@triton.jit
def sample_kernel(
    logits,  # [rows, vocab] bf16, the last dimension contiguous
    numbers,  # [rows, 2] float32: temperature, top_p
    whole,  # [rows, 2] int32: top_k, seed
    positions,  # [rows] int32
    tokens,  # [rows] int64, overwritten where the temperature is above 0
    vocab,
    row_stride,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    temperature, top_p = tl.load(numbers + 2 * place), tl.load(numbers + 2 * place + 1)
    if temperature > 0:
        top_k, seed = tl.load(whole + 2 * place), tl.load(whole + 2 * place + 1)
        row, scale = logits + place * row_stride, 1.0 / temperature
        largest = float("-inf")
        for start in range(0, vocab, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(row + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
            largest = tl.maximum(largest, tl.max(x))
        least = 0
        if top_k > 0:
            for bit in range(16):
                trial = least | (0x8000 >> bit)
                if mass(row, vocab, trial, largest, scale, True, BLOCK) >= tl.minimum(top_k, vocab):
                    least = trial
        if top_p < 1:
            enough, found = top_p * mass(row, vocab, least, largest, scale, False, BLOCK), 0
            for bit in range(16):
                trial = found | (0x8000 >> bit)
                if mass(row, vocab, tl.maximum(trial, least), largest, scale, False, BLOCK) >= enough:
                    found = trial
            least = tl.maximum(least, found)
        key = mixed(mixed(seed.to(tl.uint32)) ^ tl.load(positions + place).to(tl.uint32))
        first, token = float("inf"), 0
        for start in range(0, vocab, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(row + at, mask=at < vocab, other=float("-inf"))
            u = tl.minimum((hashed(key, at).to(tl.float32) + 0.5) * 2.3283064365386963e-10, 1 - 2.0**-24)
            wait = tl.log(tl.where(u < 1e-3, u + 0.5 * u * u, -tl.log(1 - u)))
            race = tl.where((ordered(x) >= least) & (at < vocab), wait - x.to(tl.float32) * scale, float("inf"))
            soonest = tl.min(race)
            if soonest < first:
                first, token = soonest, start + tl.argmin(race, 0)
        tl.store(tokens + place, token)


def sample(logits: Tensor, tokens: Tensor, rows: SamplingRows, positions: Tensor) -> None:
    """As sampling_reference.sample(), of bf16 logits; never synchronises, allocates nothing."""
    sample_kernel[(len(logits),)](
        logits=logits,
        numbers=rows.numbers,
        whole=rows.whole,
        positions=positions,
        tokens=tokens,
        vocab=logits.shape[1],
        row_stride=logits.stride(0),
        BLOCK=min(BLOCK, triton.next_power_of_2(logits.shape[1])),
        num_warps=WARPS,
    )
