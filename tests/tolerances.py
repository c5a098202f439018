"""How far a result may lie from the float64 oracle: stated here once, for every backend and every dtype.

The oracle gets the very inputs and state that the backend gets, already rounded to their dtypes. So two errors remain:

  rounding     The backend computes in float32 and rounds once when it stores: half a unit in the last place of the
               stored element. bf16 has 8 significant bits, fp16 11, float32 24, so relative to the element 2^-8, 2^-11
               and 2^-24; and never less than half the spacing of fp16's subnormal numbers, 2^-25.
  arithmetic   Float32 sums of 128 products and the GPU's approximate exp, log and rsqrt: relative to the largest
               element of the result, since terms of that size cancel. 1e-4 leaves an order of magnitude to spare.

Triton's interpreter cuts float32 to bf16 instead of rounding it, which is up to one whole unit in the last place.
"""

import torch

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
ROUNDING_INTERPRETED = ROUNDING | {torch.bfloat16: 2.0**-7}
SUBNORMAL = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 2.0**-25}
ARITHMETIC = 1e-4


def assert_close(what, actual, expected, dtype, *, interpreted=False, extra=0.0):
    """actual, as stored in dtype, against expected from the oracle (float64, on the CPU). AssertionError says where.

    extra: relative to the largest element, for arithmetic that rounds more than this file says (prefill's)."""
    rounding = (ROUNDING_INTERPRETED if interpreted else ROUNDING)[dtype]
    actual = actual.detach().to("cpu", torch.float64)
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    if not expected.numel():
        return
    assert torch.isfinite(expected).all(), f"{what}: the oracle itself is not finite, the test says nothing"
    largest = expected.abs().max()
    allowed = rounding * expected.abs() + SUBNORMAL[dtype] + (ARITHMETIC + extra) * largest
    error = (actual - expected).abs()
    wrong = ~(error <= allowed)  # NaN is wrong
    if wrong.any():
        at = tuple((error - allowed).nan_to_num(nan=torch.inf).flatten().argmax().reshape(1).tolist())
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(at[0]), error.shape))
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements too far from the oracle; worst at {list(at)}: "
            f"{actual[at]:.6g}, expected {expected[at]:.6g} within {allowed[at]:.2g} (largest element {largest:.3g})"
        )
