"""What `make sanitize` watches of the server, and of a state in FP8, in Triton's interpreter.

Run by test_triton_interpreter.py in a process of its own, under TRITON_INTERPRET=1.
"""

import pytest
import torch

from gdn_lab.backends.triton.backend import INTERPRETED
from gdn_lab.cli import smoke, smoke_server

assert INTERPRETED, "run under TRITON_INTERPRET=1"

CPU = torch.device("cpu")


def test_the_server_s_kernels():
    found = {what: call() for what, call in smoke_server.calls(CPU) if "attention prompts" not in what}
    assert len(found) == 7 and all(right for right, _ in found.values()), found


@pytest.mark.parametrize("spoilt", ["attend", "conv_sequences"])
def test_a_wrong_kernel_is_found(spoilt, monkeypatch):
    from gdn_lab.engine import attention_kernels
    from gdn_lab.layer.kernels import elementwise

    module = attention_kernels if spoilt == "attend" else elementwise
    right = getattr(module, spoilt)

    def wrong(*arguments, **options):
        right(*arguments, **options)
        arguments[5 if spoilt == "attend" else 6][0, 0] += 1

    monkeypatch.setattr(module, spoilt, wrong)
    found = {
        what: call()
        for what, call in smoke_server.calls(CPU)
        if what in ("attention decode bf16", "convolution of prompts")
    }
    assert sorted(right for right, _ in found.values()) == [False, True], found


def test_an_fp8_state_is_taken_as_it_is():
    found = {what: call() for what, call in smoke.calls(["triton"]) if "verify update triton/replay-fp8" in what}
    assert list(found) == ["verify update triton/replay-fp8 float8_e4m3fn"] and all(
        right for right, _ in found.values()
    )
