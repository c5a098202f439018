"""Decay and beta as tensors, for prefill kernels that take them ready-made: one elementwise Triton kernel."""

import torch
import triton
import triton.language as tl

from .device import sigmoid, softplus

BLOCK = 1024
MIN_LOG = -87.0  # e^-87 is a normal float32: a kernel that takes the logarithm of g finds no zero


@triton.jit
def gates_kernel(
    a, b, A_log, dt_bias, g, beta, elements, a_row, b_row,
    HV: tl.constexpr, BLOCK: tl.constexpr, MIN_LOG: tl.constexpr,
):  # fmt: skip
    """Compute g, beta [tokens, HV] float32, contiguous, of a, b [tokens, HV] with the last dimension contiguous."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < elements
    token, head = i // HV, i % HV
    x = tl.load(a + token * a_row + head, mask=inside).to(tl.float32) + tl.load(dt_bias + head)
    sp = softplus(x)
    log_g = tl.maximum(-tl.exp(tl.load(A_log + head)) * sp, MIN_LOG)
    tl.store(g + i, tl.exp(log_g), mask=inside)
    tl.store(beta + i, sigmoid(tl.load(b + token * b_row + head, mask=inside).to(tl.float32)), mask=inside)


def gates(a, b, A_log, dt_bias):
    """Return (g, beta), both [tokens, HV] float32, contiguous, and each an allocation of its own.

    FlashInfer takes them at multiples of 16 bytes, where the second half of one buffer need not begin.
    """
    g, beta = (torch.empty(a.shape, dtype=torch.float32, device=a.device) for _ in range(2))
    if a.numel():
        gates_kernel[(triton.cdiv(a.numel(), BLOCK),)](
            *(a, b, A_log, dt_bias, g, beta),
            elements=a.numel(),
            a_row=a.stride(0),
            b_row=b.stride(0),
            HV=a.shape[1],
            BLOCK=BLOCK,
            MIN_LOG=MIN_LOG,
        )
    return g, beta
