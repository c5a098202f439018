"""Full attention over a paged cache on the CPU, in Triton's interpreter, against PyTorch in float64.

Run by test_triton_interpreter.py in a process of its own, under TRITON_INTERPRET=1.
"""

from unittest import mock

import pytest
import torch
from attention_against_reference import check_attention, scene

from gdn_lab.backends.triton.backend import INTERPRETED
from gdn_lab.engine import attention_kernels

assert INTERPRETED, "run under TRITON_INTERPRET=1"


@pytest.mark.parametrize("quantize", [False, True])
def test_one_token_of_each_request_and_a_padding_row(quantize):
    check_attention(scene([(70, 1), None, (1, 1)], heads=(4, 1, 128)), attention_kernels, quantize=quantize)


def test_programs_share_a_long_request():
    with mock.patch.object(attention_kernels, "KEYS", 16):
        made = scene([(130, 1), (3, 1)], heads=(4, 2, 128), max_length=256)
        assert attention_kernels.tiling(2, 2, 2, 256)[0] == 4
        check_attention(made, attention_kernels)


def test_draft_tokens():
    check_attention(scene([(40, 3), (5, 3)], heads=(6, 2, 128)), attention_kernels)


def test_pieces_of_prompts_of_several_lengths():
    check_attention(scene([(20, 20), None, (75, 9), (1, 1)], heads=(4, 2, 128), padding=3), attention_kernels)


def test_channels_that_do_not_turn_stay():
    made = scene([(9, 2)], heads=(2, 1, 128))
    check_attention(made, attention_kernels)
    assert made.table[0].shape[1] * 2 < 128
    torch.testing.assert_close(made.table[0][0], torch.ones(16))
