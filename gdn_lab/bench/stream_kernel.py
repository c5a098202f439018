"""An in-place stream: every element is read, negated and written. roof.py imports it only where there is a GPU."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # float32 elements of one program: 128 threads with 8 loads of 16 bytes each in flight


@triton.jit
def negate_kernel(x, BLOCK: tl.constexpr):
    """Negate BLOCK consecutive elements of x in each program. Offsets are 64-bit."""
    elements = x + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(elements, -tl.load(elements))


def negate_(x: Tensor) -> None:
    """Negate x in place: contiguous float32 with a multiple of BLOCK elements."""
    negate_kernel[(x.numel() // BLOCK,)](x, BLOCK, num_warps=4)
