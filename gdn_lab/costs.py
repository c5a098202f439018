"""Bytes that each operation must move and floating-point operations that it must make, each by a named formula.

HK, HV: query/key and value heads. K, V: their sizes. C: tokens of a chunk. What a kernel moves beyond these bytes, such
as scratch between its passes, does not count: it is part of what the time over the bandwidth shows.
"""

import torch

from .models import CONV_BYTES, CONV_WINDOW, GDNShape
from .rounding import FP8

DECODE_BYTES_FORMULA = "decode: state read + written, q k v a b read, o written, indices, A_log, dt_bias"
REPLAY_BYTES_FORMULA = (
    "deferred write-back: state read, written once in C + 1 steps, half a ring of C updates read, one update written, "
    "q k v a b read, o written, indices, A_log, dt_bias"
)
PREFILL_BYTES_FORMULA = (
    "prefill: state read + written for each sequence, q k v a b read, o written, indices, cu_seqlens, A_log, dt_bias"
)
PREFILL_FLOPS_FORMULA = "prefill in chunks of 64: per token and value head 6 K V + 2 C V, per token and key head 2 C K"
VERIFY_BYTES_FORMULA = {
    "update": "verify: state read + written, q k v a b of T tokens read, o written, indices, A_log, dt_bias",
    "intermediate": "verify: state read, T written, q k v a b of T tokens read, o written, indices, A_log, dt_bias",
    "output": "verify: state read, q k v a b of T tokens read, o written, indices, A_log, dt_bias",
}
COMMIT_BYTES_FORMULA = "commit: one state and one window read + written for each row that accepts, indices, counts"

INDEX_BYTES = 4  # of one entry of indices, cu_seqlens or accepted counts, each int32


def decode_bytes(shape: GDNShape, batch: int, state_dtype: torch.dtype, io_dtype: torch.dtype = torch.bfloat16) -> int:
    """Return the bytes that a decode step of `batch` rows must move (DECODE_BYTES_FORMULA).

    For each row the state, HV·V·K of state_dtype, is read and written; q, k [HK, K], v [HV, V], a, b [HV] of io_dtype
    are read, o [HV, V] is written; its index is 4 bytes. A_log and dt_bias, [HV] float32, are read once.
    """
    row = 2 * _state_bytes(shape, state_dtype) + _token_bytes(shape, io_dtype) + INDEX_BYTES
    return batch * row + _gate_bytes(shape)


def replay_bytes(
    shape: GDNShape,
    batch: int,
    updates: int,
    state_dtype: torch.dtype,
    io_dtype: torch.dtype = torch.bfloat16,
) -> float:
    """Return the bytes that a decode step with a ring of `updates` updates moves on average (REPLAY_BYTES_FORMULA).

    Of C + 1 steps, C read the state and the updates made so far, and one reads state and ring and writes the state. An
    update is k [HK, K] of io_dtype, u [HV, V] of bf16 (float32 for a float32 or float16 state) and a log decay [HV]
    float32. The rest as in decode_bytes(). With an FP8 state each of C steps reads the state and adds an update, and
    one of them then reads state and ring once more and writes the state.
    """
    HK, HV, K, V = shape.dims
    correction = 4 if state_dtype in (torch.float32, torch.float16) else 2
    update = HK * K * io_dtype.itemsize + HV * V * correction + HV * 4
    if state_dtype is FP8:
        states = 1 + 2 / updates
        ring = update * ((updates - 1) / 2 + 1 + 1)  # read: 0, 1, … C - 1 of them, and once in C steps all; one written
    else:
        states = 1 + 1 / (updates + 1)
        ring = update * (updates / 2 + updates / (updates + 1))  # read: 0, 1, … C of them; written: all but once
    row = _state_bytes(shape, state_dtype) * states + ring + _token_bytes(shape, io_dtype) + INDEX_BYTES
    return batch * row + _gate_bytes(shape)


def prefill_bytes(
    shape: GDNShape, tokens: int, sequences: int, state_dtype: torch.dtype, io_dtype: torch.dtype = torch.bfloat16
) -> int:
    """Return the bytes that a prefill of `tokens` tokens in `sequences` sequences must move (PREFILL_BYTES_FORMULA).

    As decode_bytes(), but the state is read and written once for each sequence, and cu_seqlens has sequences + 1
    entries of 4 bytes.
    """
    states = sequences * (2 * _state_bytes(shape, state_dtype) + INDEX_BYTES)
    return states + tokens * _token_bytes(shape, io_dtype) + INDEX_BYTES * (sequences + 1) + _gate_bytes(shape)


def prefill_flops(shape: GDNShape, tokens: int, chunk: int = 64) -> int:
    """Return multiplications and additions of the matrix products of a chunked prefill (PREFILL_FLOPS_FORMULA).

    S k, S q and u kᵀ take 2 K V each, per token and value head; T r and P u, triangular, C V each. k kᵀ and q kᵀ,
    triangular and shared by the value heads of a key head, take C K each. Inverting a chunk's triangular system for T
    adds about a tenth and does not count.
    """
    HK, HV, K, V = shape.dims
    return tokens * (HV * (6 * K * V + 2 * chunk * V) + HK * 2 * chunk * K)


def verify_bytes(
    shape: GDNShape,
    batch: int,
    tokens: int,
    mode: str,
    state_dtype: torch.dtype,
    io_dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Return the bytes that verifying `tokens` draft tokens of each of `batch` rows must move (VERIFY_BYTES_FORMULA).

    mode: the state is read, and written once ("update"), after each token ("intermediate") or not at all ("output").
    Inputs and output as in decode_bytes(), for each token.
    """
    states = 1 + {"update": 1, "intermediate": tokens, "output": 0}[mode]
    row = states * _state_bytes(shape, state_dtype) + tokens * _token_bytes(shape, io_dtype) + INDEX_BYTES
    return batch * row + _gate_bytes(shape)


def commit_bytes(shape: GDNShape, batch: int, state_dtype: torch.dtype) -> int:
    """Return the bytes that commit() must move for `batch` rows of which each accepts a token (COMMIT_BYTES_FORMULA).

    For each row one state and one convolution window, [conv_dim, 3] bf16, are read and written; its index and its
    number of accepted tokens are 4 bytes each.
    """
    window = shape.conv_dim * CONV_WINDOW * CONV_BYTES
    return batch * (2 * _state_bytes(shape, state_dtype) + 2 * window + 2 * INDEX_BYTES)


def _state_bytes(shape: GDNShape, state_dtype: torch.dtype) -> int:
    """Bytes of one slot's state, HV·V·K elements; of FP8 with its scales, HV·V float32."""
    scales = shape.num_v_heads * shape.head_v_dim * 4 if state_dtype is FP8 else 0
    return shape.state_elements * state_dtype.itemsize + scales


def _token_bytes(shape: GDNShape, io_dtype: torch.dtype) -> int:
    """Bytes of one token's q, k, v, a, b and o."""
    HK, HV, K, V = shape.dims
    return (2 * HK * K + 2 * HV * V + 2 * HV) * io_dtype.itemsize


def _gate_bytes(shape: GDNShape) -> int:
    """Bytes of A_log and dt_bias, float32."""
    return 2 * shape.num_v_heads * 4
