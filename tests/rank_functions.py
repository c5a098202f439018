"""What the tests of ranks run in each process."""

import os
import signal
import time
from pathlib import Path

import torch

from gdn_lab.engine.communicator_connect import connect


def collectives(communicator):
    """What each call of a communicator returns for rank-dependent inputs."""
    x = communicator.buffer(2, 4).fill_(communicator.rank + 1.0)
    gathered = communicator.all_gather(torch.arange(4.0).view(2, 2) + 10 * communicator.rank)
    words = communicator.broadcast_object(f"from {communicator.rank}", source=communicator.size - 1)
    communicator.barrier()
    return communicator.name, communicator.rank, communicator.all_reduce(x), gathered, words


def connected(communicator):
    """What each name connects to, and the sentence of one that is not here."""
    names = {name: connect(name, communicator, rows=4, hidden=128).name for name in ("gloo", "fastest")}
    try:
        connect("nccl", communicator, rows=4, hidden=128)
    except ValueError as error:
        return names, str(error)


def both(communicator):
    """What collectives() and connected() return."""
    return collectives(communicator), connected(communicator)


def raising(communicator):
    """Rank 1 raises; rank 0 waits for it."""
    print(f"rank {communicator.rank} works", flush=True)
    if communicator.rank == 1:
        raise ValueError("x: expected less, got more")
    communicator.barrier()


def killed(communicator):
    """Rank 0 is killed; rank 1 waits for it."""
    if communicator.rank == 0:
        print("about to add", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    communicator.barrier()


def sleeping(communicator, folder):
    """Leave the process id in `folder`, and sleep."""
    Path(folder, f"pid-{communicator.rank}").write_text(str(os.getpid()))
    time.sleep(600)
