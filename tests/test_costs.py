"""Bytes and floating-point operations by formula, against sums made by hand."""

import torch

from gdn_lab import GDNShape
from gdn_lab.costs import DECODE_BYTES_FORMULA, commit_bytes, decode_bytes, prefill_bytes, prefill_flops, verify_bytes


def test_decode_bytes_by_hand():
    # HK 1, HV 2, K 3, V 5; state 2 * 5 * 3 = 30 elements of 4 bytes, read and written: 240
    # q, k 6, v 10, a, b 4, o 10 elements of 2 bytes: 60; index 4; A_log, dt_bias 16
    assert decode_bytes(GDNShape(1, 2, 3, 5), 1, torch.float32) == 240 + 60 + 4 + 16
    assert decode_bytes(GDNShape(1, 2, 3, 5), 10, torch.float32) == 10 * (240 + 60 + 4) + 16
    assert decode_bytes(GDNShape(1, 2, 3, 5), 1, torch.bfloat16, torch.float32) == 120 + 120 + 4 + 16
    assert "state read + written" in DECODE_BYTES_FORMULA


def test_the_state_is_nearly_all_of_it():
    shape = GDNShape.from_model("qwen3.5-397b-a17b")
    state = 2 * 512 * 64 * 128 * 128 * 2  # 2.147 GB at B = 512
    assert state < decode_bytes(shape, 512, torch.bfloat16) < 1.02 * state


def test_verify_counts_the_state_as_often_as_the_mode_moves_it():
    shape = GDNShape(1, 2, 16, 8)
    state, io = shape.state_elements * 2, (2 * 16 + 2 * 2 * 8 + 2 * 2) * 2
    for mode, times in (("output", 1), ("update", 2), ("intermediate", 5)):
        assert verify_bytes(shape, 3, 4, mode, torch.bfloat16) == 3 * (times * state + 4 * io + 4) + 2 * 2 * 4


def test_commit_bytes_by_hand():
    # HK 1, HV 2, K 3, V 5; state 30 elements of 4 bytes, window 16 channels of 3 elements of 2 bytes: each read and
    # written; index and count 4 each
    assert commit_bytes(GDNShape(1, 2, 3, 5), 7, torch.float32) == 7 * (2 * 120 + 2 * 96 + 4 + 4)


def test_prefill_bytes_and_products_by_hand():
    # 2 sequences of 3 tokens, HK 2, HV 4, K 16, V 32, bf16
    shape = GDNShape(2, 4, 16, 32)
    token = (2 * 2 * 16 + 2 * 4 * 32 + 2 * 4) * 2
    assert prefill_bytes(shape, 6, 2, torch.bfloat16) == 2 * (2 * 4 * 32 * 16 * 2 + 4) + 6 * token + 3 * 4 + 2 * 4 * 4
    assert prefill_flops(shape, 6) == 6 * (4 * (6 * 16 * 32 + 2 * 64 * 32) + 2 * 2 * 64 * 16)
