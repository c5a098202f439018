"""The sampler's Triton kernel on the CPU, in the interpreter, against plain PyTorch.

Run by test_triton_interpreter.py in a process of its own, under TRITON_INTERPRET=1.
"""

import pytest
import torch

from gdn_lab.backends.triton.backend import INTERPRETED
from gdn_lab.engine import sampling_kernels, sampling_reference
from gdn_lab.engine.sampling import GREEDY, Sampling, sampling_rows

assert INTERPRETED, "run under TRITON_INTERPRET=1"

WAYS = [GREEDY, Sampling(1.0), Sampling(0.7, 5), Sampling(1.3, 0, 0.8), Sampling(1.0, 40, 0.5), Sampling(0.1, 9999)]


@pytest.mark.parametrize("vocab, span", [(100, 1024), (5000, 2048)])  # less than a block; parts of several blocks
def test_the_kernel_draws_what_the_reference_draws(vocab, span):
    torch.manual_seed(vocab)
    each = [one._replace(seed=17 * number) for number, one in enumerate(WAYS)]
    padded = torch.randn(len(each), vocab + 5).bfloat16()
    padded[:, 1] = padded[:, 2] = padded.amax(1)  # equal logits
    logits, positions = padded[:, :vocab], torch.arange(len(each), dtype=torch.int32) * 1000
    likely = logits.argmax(1)
    found, expected = likely.clone(), likely.clone()
    sampling_kernels.sample(logits, found, sampling_rows(each), positions, span=span, block=1024)
    for most in (1, 2 * len(each)):  # all parts in one program; two programs
        again = likely.clone()
        sampling_kernels.sample(logits, again, sampling_rows(each), positions, span=span, block=1024, most=most)
        assert again.tolist() == found.tolist()
    sampling_reference.sample(logits, expected, sampling_rows(each), positions)
    assert found.tolist() == expected.tolist() and found[0] == likely[0] and (found[1:] != likely[1:]).any()
