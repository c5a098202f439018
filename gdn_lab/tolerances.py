"""How far a result may lie from the float64 reference: stated here once, for tests, sweeps and every dtype.

The reference gets the very inputs and state that a kernel gets, already rounded to their dtypes. Two errors remain:

  rounding     A kernel computes in float32 and rounds once when it stores: half a unit in the last place of the stored
               element. bf16 has 8 significant bits, fp16 11, float32 24, so relative to the element 2^-8, 2^-11 and
               2^-24; and never less than half the spacing of fp16's subnormal numbers, 2^-25.
  arithmetic   What happens before that, relative to the largest element of the result, since terms of that size cancel.
               It depends on what is computed: see each constant.
"""

from typing import NamedTuple

import torch

from .rounding import FP8

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, FP8: 2.0**-4}
SUBNORMAL = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 2.0**-25, FP8: 0.0}  # FP8: FP8_STATE_SUBNORMAL
# A whole unit: what sweeps allow, whose kernels may round twice, and Triton's interpreter, which truncates.
LAST_PLACE = {dtype: 2 * half for dtype, half in ROUNDING.items()}

# Float32 sums of 128 products and the GPU's approximate exp, log and rsqrt; leaves an order of magnitude to spare.
ARITHMETIC = 1e-4

# Prefill, a chunk of 64 tokens at a time. Logarithms: a chunk's sum of 64 log g, each at least -90, reaches 5760, where
# float32's spacing is 5e-4; a decay is the exponential of a difference of two such sums. Operands: the tensor cores
# take bf16 or fp16: S, r, u, T, M and Q (backends/triton/prefill.py) are rounded once each where they enter a product,
# half a unit of 2^-8 or 2^-11, and some errors pass through T, whose rows may add them up. Four such units, and of fp16
# eight, because T is found with products of fp16 whatever the inputs. Twice that for kernels that round the normalised
# q and k, too.
LOGARITHMS = 1e-3
OPERANDS = {torch.float32: 0.0, torch.bfloat16: 4 * 2.0**-8, torch.float16: 8 * 2.0**-11}
PREFILL = 2 * OPERANDS[torch.bfloat16] + LOGARITHMS  # what sweeps allow every kernel

# Deferred write-back keeps u of a bf16 state in bf16: its update is off by half a unit of 2^-8 of its largest element,
# which the state's own largest element may be smaller than, by at most a factor of two on the inputs that are checked.
CORRECTIONS = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 0.0, FP8: 2.0**-8}

# Products with thousands of terms in the tensor cores, which in FP8 keep 14 bits and truncate the rest (Hopper): up
# to 4 truncations in each 128 terms, which add up over the terms.
PRODUCT = 2.0**-9

# An FP8 element: half a unit in its last place, and half the spacing of its subnormal numbers, in scales.
E4M3, E4M3_SUBNORMAL = 2.0**-4, 2.0**-10

# Experts in FP8 round each one's hidden row to bf16 and then to e4m3, where half a unit decides between neighbours an
# eighth apart. One large element decided otherwise changes a whole row of the output a little: by at most this much of
# the largest element, and by far less on average over the row.
EXPERTS, EXPERTS_MEAN = 2.0**-4, 2.0**-7


# S k and S q of an FP8 state are FP8 sums of the tensor cores over K = 128: up to 4 truncations at 14 bits of a partial
# sum. Relative to the longest row of S, since terms may cancel: with nearly parallel keys the output is far smaller.
FP8_READ = 2.0**-10
# A fold of an FP8 state (e4m3.py) rounds stochastically, to either neighbour: off by up to a unit, 2^-3 of the element,
# or 2^-9 scales where numbers are subnormal. A scale is 1/448 of the row's largest element.
FP8_STATE, FP8_STATE_SUBNORMAL = 2.0**-3, 2.0**-9 / 448


def fp8_allowed(S: torch.Tensor) -> torch.Tensor:
    """The most that one stochastic rounding of S [.., V, K] to FP8 with a scale for each row may be off."""
    return FP8_STATE * S.abs() + FP8_STATE_SUBNORMAL * S.abs().amax(-1, keepdim=True)


def fp8_step_allowed(old: torch.Tensor, new: torch.Tensor, folds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a step on an FP8 state with a ring may be off besides: in S k or S q, and in the state, both where `new` is.

    old, new: the state before and after, [n, HV, V, K]. folds, bool [n]: rows whose state this step rounds to FP8. k
    and q are no longer than 1, so that the sum of the magnitudes is at most the longest row of S.
    """
    of_read = FP8_READ * old.double().norm(dim=-1).max().to(new.device)
    of_ring = CORRECTIONS[FP8] * new.abs().max()
    return of_read, of_ring + of_read + fp8_allowed(new) * folds.to(new.device)[:, None, None, None]


def sum_allowed(magnitudes: torch.Tensor, terms: int, dtype: torch.dtype) -> torch.Tensor:
    """The largest allowed error of a sum of `terms` over ranks; magnitudes: the sum of the terms' magnitudes, float64.

    A library may round each partial sum to the dtype of the terms, by half a unit in the last place of what it then
    has, and larger terms may follow that cancel it.
    """
    return terms * ROUNDING[dtype] * magnitudes


def allowed(expected: torch.Tensor, dtype: torch.dtype, arithmetic: float = ARITHMETIC, rounding=None) -> torch.Tensor:
    """The largest allowed error of each element of `expected`, float64 as it is, for a result stored in dtype.

    arithmetic: relative to the largest element. rounding: {dtype: relative to the element}, default LAST_PLACE.
    """
    rounding = (rounding or LAST_PLACE)[dtype]
    return rounding * expected.abs() + SUBNORMAL[dtype] + arithmetic * expected.abs().max()


def distance(actual, expected, dtype, arithmetic=ARITHMETIC, more=0.0) -> tuple[bool, float | None]:
    """(every element near enough, the largest error or None if some is not finite). more: allowed besides."""
    error = (actual.double() - expected).abs()
    finite = bool(torch.isfinite(error).all())
    return bool((error <= allowed(expected, dtype, arithmetic) + more).all()), error.max().item() if finite else None


class Check(NamedTuple):
    """The result of checking one case: largest errors of o and of the new state, None where they are not finite.

    relative_error, relative_error_state: the same, relative to the largest element, where relative() has set them.
    """

    right: bool
    max_abs_error: float | None
    max_abs_error_state: float | None
    relative_error: float | None = None
    relative_error_state: float | None = None


def relative(check: Check, o: torch.Tensor, states: torch.Tensor) -> Check:
    """Set a check's relative errors; o, states: what was expected."""
    errors = ((check.max_abs_error, o), (check.max_abs_error_state, states))
    o_error, state_error = (
        None if error is None else error / max(expected.abs().max().item(), 1e-30) for error, expected in errors
    )
    return check._replace(relative_error=o_error, relative_error_state=state_error)


def worse(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else max(a, b)


def merged(part_checks: list[Check]) -> Check:
    """Merge the checks of the parts of one call: right if all are, with the largest errors; wrong if there are none."""
    right, error_o, error_state = bool(part_checks), 0.0, 0.0
    for check in part_checks:
        right = right and check.right
        error_o, error_state = worse(error_o, check.max_abs_error), worse(error_state, check.max_abs_error_state)
    return Check(right, error_o, error_state)
