"""Assertions by gdn_lab/tolerances.py: half a unit in the last place, where sweeps allow a whole one.

Triton's interpreter cuts float32 to bf16 instead of rounding it, which is up to one whole unit in the last place.
"""

import torch

from gdn_lab.tolerances import ARITHMETIC, LAST_PLACE, ROUNDING, allowed

# Other libraries' prefill outside the tolerance on hard inputs: largest error of o relative to its head's largest
# element, measured on an H100 with the versions of requirements.txt. They lose outputs to cancellation in 16 bits.
OUTSIDE_TOLERANCE = {
    "flashinfer/vk": {"nearly parallel keys": 0.43, "q = k": 0.087},
    "fla/vk": {"nearly parallel keys": 0.24},
}


def assert_close(what, actual, expected, dtype, *, interpreted=False, extra=0.0):
    """actual, as stored in dtype, against expected from the reference (float64, on the CPU). AssertionError says where.

    extra: relative to the largest element, for arithmetic that rounds more than ARITHMETIC."""
    actual = actual.detach().to("cpu", torch.float64)
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    if not expected.numel():
        return
    assert torch.isfinite(expected).all(), f"{what}: the reference itself is not finite, the test says nothing"
    largest = expected.abs().max()
    rounding = ROUNDING | {torch.bfloat16: LAST_PLACE[torch.bfloat16]} if interpreted else ROUNDING
    most = allowed(expected, dtype, ARITHMETIC + extra, rounding)
    error = (actual - expected).abs()
    wrong = ~(error <= most)  # NaN is wrong
    if wrong.any():
        at = tuple((error - most).nan_to_num(nan=torch.inf).flatten().argmax().reshape(1).tolist())
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(at[0]), error.shape))
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements too far from the reference; worst at {list(at)}: "
            f"{actual[at]:.6g}, expected {expected[at]:.6g} within {most[at]:.2g} (largest element {largest:.3g})"
        )
