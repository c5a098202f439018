"""Bytes and floating-point operations that each operation must move and make, by named formula."""

import torch

from .models import GDNShape

DECODE_BYTES_FORMULA = "decode: state read + written, q k v a b read, o written, indices, A_log, dt_bias"


def decode_bytes(shape: GDNShape, batch: int, state_dtype: torch.dtype, io_dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes that a decode step of `batch` rows must move, whatever the kernel (DECODE_BYTES_FORMULA).

    For each row the state, HV·V·K of state_dtype, is read and written; q, k [HK, K], v [HV, V], a, b [HV] of io_dtype
    are read, o [HV, V] is written; its index is 4 bytes. A_log and dt_bias, [HV] float32, are read once.
    """
    HK, HV, K, V = shape.num_k_heads, shape.num_v_heads, shape.head_k_dim, shape.head_v_dim
    state = 2 * shape.state_elements * state_dtype.itemsize
    inputs_and_output = (2 * HK * K + 2 * HV * V + 2 * HV) * io_dtype.itemsize
    return batch * (state + inputs_and_output + 4) + 2 * HV * 4


PREFILL_BYTES_FORMULA = (
    "prefill: state read + written for each sequence, q k v a b read, o written, indices, cu_seqlens, A_log, dt_bias"
)


def prefill_bytes(
    shape: GDNShape, tokens: int, sequences: int, state_dtype: torch.dtype, io_dtype: torch.dtype = torch.bfloat16
) -> int:
    """Bytes that a prefill of `tokens` tokens in `sequences` sequences must move, whatever the kernel
    (PREFILL_BYTES_FORMULA): as decode_bytes, but the state once for each sequence, and 4 bytes for each of the
    sequences + 1 entries of cu_seqlens. What a kernel keeps between its passes does not count.
    """
    HK, HV, K, V = shape.num_k_heads, shape.num_v_heads, shape.head_k_dim, shape.head_v_dim
    state = 2 * shape.state_elements * state_dtype.itemsize
    inputs_and_output = (2 * HK * K + 2 * HV * V + 2 * HV) * io_dtype.itemsize
    return sequences * (state + 4) + tokens * inputs_and_output + 4 * (sequences + 1) + 2 * HV * 4


PREFILL_FLOPS_FORMULA = "prefill in chunks of 64: per token and value head 6 K V + 2 C V, per token and key head 2 C K"


def prefill_flops(shape: GDNShape, tokens: int, chunk: int = 64) -> int:
    """Multiplications and additions of the matrix products of a chunked prefill (PREFILL_FLOPS_FORMULA).

    S k, S q and u kᵀ: 2 K V each, per token and value head. T r and P u, triangular: C V each. k kᵀ and q kᵀ,
    triangular, shared by the value heads of a key head: C K each. The inverse that T is adds about a tenth.
    """
    HK, HV, K, V = shape.num_k_heads, shape.num_v_heads, shape.head_k_dim, shape.head_v_dim
    return tokens * (HV * (6 * K * V + 2 * chunk * V) + HK * 2 * chunk * K)


VERIFY_BYTES_FORMULA = {
    "update": "verify: state read + written, q k v a b of T tokens read, o written, indices, A_log, dt_bias",
    "intermediate": "verify: state read, T written, q k v a b of T tokens read, o written, indices, A_log, dt_bias",
    "output": "verify: state read, q k v a b of T tokens read, o written, indices, A_log, dt_bias",
}


def verify_bytes(
    shape: GDNShape, batch: int, tokens: int, mode: str, state_dtype: torch.dtype,
    io_dtype: torch.dtype = torch.bfloat16,
) -> int:  # fmt: skip
    """Bytes that verifying `tokens` draft tokens of each of `batch` rows must move, whatever the kernel.

    mode, a key of VERIFY_BYTES_FORMULA: the state is read, and written once ("update"), for each token
    ("intermediate") or not at all ("output"). Inputs and output as in decode_bytes, for each token.
    """
    HK, HV, K, V = shape.num_k_heads, shape.num_v_heads, shape.head_k_dim, shape.head_v_dim
    states = 1 + {"update": 1, "intermediate": tokens, "output": 0}[mode]
    inputs_and_output = tokens * (2 * HK * K + 2 * HV * V + 2 * HV) * io_dtype.itemsize
    return batch * (states * shape.state_elements * state_dtype.itemsize + inputs_and_output + 4) + 2 * HV * 4


COMMIT_BYTES_FORMULA = "commit: one state and one window read + written for each row that accepts, indices, counts"


def commit_bytes(shape: GDNShape, batch: int, state_dtype: torch.dtype) -> int:
    """Bytes that commit() must move for `batch` rows with something accepted (COMMIT_BYTES_FORMULA)."""
    return batch * (2 * shape.state_elements * state_dtype.itemsize + 2 * shape.conv_dim * 3 * 2 + 8)
