"""What one rank's process does: join the others, call the function, leave its value in the folder of ranks.start()."""

import ctypes
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..files import replacing

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


class Call(NamedTuple):
    """function(communicator, *arguments) on `device`, "cpu" or "cuda"."""

    function: Callable
    arguments: tuple
    device: str


def run_rank(call: Call, *, gather: bool = False):
    """Join the process group that the environment describes, call, and leave. gather: return all ranks' values."""
    import torch
    from torch import distributed

    from .communicator import Alone, Grouped

    size, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu")
    if call.device == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if size == 1:
        value = call.function(Alone(device), *call.arguments)
        return [value] if gather else value
    if device.type == "cuda":
        distributed.init_process_group("nccl", device_id=device)
    else:
        distributed.init_process_group("gloo")
    communicator = Grouped(device)
    value = call.function(communicator, *call.arguments)
    values = [communicator.broadcast_object(value, source) for source in range(size)] if gather else value
    communicator.barrier()
    distributed.destroy_process_group()
    return values


def folder_results(folder: Path, count: int) -> list:
    """The values that all ranks left."""
    return [pickle.loads((folder / f"value-{rank}").read_bytes()) for rank in range(count)]


def failures(folder: Path) -> dict[int, float]:
    """{rank: when it failed} of those that raised."""
    return {int(path.name.split("-")[1]): float(path.read_text(encoding="utf-8")) for path in folder.glob("failed-*")}


def _die_with(parent: int) -> None:
    """Have Linux kill this process when the one that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main(folder: Path, parent: int) -> None:
    """Run this rank. A failure's time is written before the others can notice, then the process ends at once."""
    _die_with(parent)
    rank = os.environ["RANK"]
    try:
        value = run_rank(pickle.loads((folder / "call.pickle").read_bytes()))
        with replacing(folder / f"value-{rank}") as path:
            path.write_bytes(pickle.dumps(value))
    except KeyboardInterrupt:  # the process that started this one says so
        sys.stdout.flush()
        os._exit(130)
    except BaseException:
        with replacing(folder / f"failed-{rank}") as path:
            path.write_text(str(time.time()), encoding="utf-8")
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
