"""Communicators: of one rank here, of two processes with gloo, and the arithmetic of add_norm after an all-reduce."""

import torch

from gdn_lab.engine.communicator import Alone
from gdn_lab.layer import layer_reference


def test_alone_sends_nothing():
    alone = Alone()
    x = alone.buffer(3, 8, torch.float32).fill_(2.0)
    assert alone.all_reduce(x) is x and alone.all_gather(x) is x
    assert alone.broadcast_object("words") == "words"
    assert (alone.rank, alone.size) == (0, 1)


def test_add_norm_runs_after_the_all_reduce():
    x, residual, weight = torch.randn(3, 3, 256).bfloat16().unbind()
    expected = [torch.empty_like(x) for _ in range(2)]
    got = [torch.empty_like(x) for _ in range(2)]
    layer_reference.add_norm(x, residual, weight[0], *expected)
    Alone().all_reduce_add_norm(x, residual, weight[0], *got, add_norm=layer_reference.add_norm)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
