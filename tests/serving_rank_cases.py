"""What the processes of tests/engine/test_serve_on_ranks.py do: serve a fake model whose steps sum over ranks."""

import os
import signal
import threading
import time
import types

import torch
from fake_served_model import VOCAB, FakeModel

from gdn_lab.engine import serve_ranks

__all__ = ["serve_fake"]


class SummedModel(FakeModel):
    def __init__(self, communicator, dies_at, waits_at, **arguments):
        super().__init__(**arguments)
        self.communicator, self.dies_at, self.waits_at, self.decodes = communicator, dies_at, waits_at, 0

    def decode(self, batch):
        assert self.communicator.all_reduce(torch.ones(1, 1)).item() == self.communicator.size
        self.decodes += 1
        if self.communicator.rank == 0 and self.decodes == self.waits_at:
            wait_for_ctrl_c()
        if self.communicator.rank == 1 and self.decodes == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decode(batch)


def wait_for_ctrl_c():
    """Say so, and return once SIGINT has come and was handled as it would have been."""
    before, came = signal.getsignal(signal.SIGINT), threading.Event()

    def handle(*arguments):
        came.set()
        before(*arguments)

    signal.signal(signal.SIGINT, handle)
    print("waiting for Ctrl-C", flush=True)
    while not came.is_set():
        time.sleep(0.01)
    signal.signal(signal.SIGINT, before)


def serve_fake(communicator, plan, folder, dies_at=None, waits_at=None):
    """serve_on_rank() with a fake model.

    dies_at: decode step in which rank 1 is killed. waits_at: one in which rank 0 waits for Ctrl-C.
    """

    def model(weights, name, *, communicator, max_batch, slots, pages, page_size, max_length, batch_sizes, **_):
        sizes = {"max_batch": max_batch, "slots": slots, "pages": pages, "max_length": max_length}
        return SummedModel(communicator, dies_at, waits_at, **sizes, page_size=page_size, sizes=batch_sizes)

    sizes = types.SimpleNamespace(vocab=VOCAB, step=types.SimpleNamespace(hidden=8))
    serve_ranks.ModelWeights = types.SimpleNamespace(random=lambda *_, **__: types.SimpleNamespace(sizes=sizes))
    serve_ranks.ServedModel = model
    return serve_ranks.serve_on_rank(communicator, plan, folder)
