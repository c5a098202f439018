"""The small model on an FP8 state, in Triton's interpreter, next to the same model on a float32 state.

Run by test_triton_interpreter.py in a process of its own, under TRITON_INTERPRET=1.
"""

import torch
from small_network import network_and_model

from gdn_lab.backends.triton.backend import INTERPRETED
from gdn_lab.studies.accuracy.accuracy_cases import FP8, STOCHASTIC, Case
from gdn_lab.trained import inference
from gdn_lab.trained.inference import Kernels, Requests

assert INTERPRETED, "run under TRITON_INTERPRET=1"

STEPS = 6
LEFT = 3  # of the ring, before the first step: the state is folded once


def test_an_fp8_state_gives_nearly_the_logits_of_float32(tmp_path, monkeypatch):
    """Prompt through prefill(), decode() over a fold, then verify() and commit()."""
    whole = inference.prefill

    def wide(*inputs, **options):  # the interpreter gets Triton's prefill wrong in bf16
        return whole(*(x.float() for x in inputs), **options).bfloat16()

    _, model = network_and_model(tmp_path)
    tokens = torch.randint(300, (2, 30), generator=torch.Generator().manual_seed(0))
    kernels = Case("decode", "triton/replay-fp8", FP8, "", 30, STOCHASTIC).kernels()
    given = []
    for chosen in (kernels, Kernels("torch", "torch", "torch")):
        monkeypatch.setattr(inference, "prefill", wide if chosen is kernels else whole)
        requests = Requests(model, 2, chosen)
        logits = [requests.prefill(tokens[:, :8])]
        pools = requests.pools.values() if chosen is kernels else ()
        for pool in pools:
            pool.ring.span[1:] = pool.ring.updates - LEFT
        logits += [requests.decode(tokens[:, 8 + t, None]) for t in range(STEPS)]
        assert all(pool.launch_state.rounding.steps[1:].tolist() == [1, 1] for pool in pools)
        logits.append(requests.verify(tokens[:, -4:], torch.tensor([True, True])))
        requests.commit(torch.tensor([4, 2]))
        logits.append(requests.decode(tokens[:, :1]))
        given.append(torch.cat(logits, 1))
    fp8, float32 = given
    error = (fp8 - float32).std() / float32.std()
    assert 1e-4 < error < 0.05
