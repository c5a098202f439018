"""The GPUs that this process may use, as NVML sees them: asking NVML makes no CUDA context on a GPU."""

import os
from itertools import takewhile


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them or by number; [] where there are none.

    As in CUDA, the first name that is no GPU's ends the list: "0,-1,1" is GPU 0 alone.
    """
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception:  # no library, no driver or no GPU: each is a class of its own, and all mean none
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        if named is None:
            return [str(number) for number in range(nvml.nvmlDeviceGetCount())]
        return list(takewhile(lambda gpu: _known(nvml, gpu), map(str.strip, named.split(","))))
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def _known(nvml, gpu: str) -> bool:
    try:
        handle(nvml, gpu)
    except nvml.NVMLError:
        return False
    return True


def handle(nvml, gpu: str):
    """NVML's handle of a GPU. gpu: its number, its UUID, or a beginning of it that no other GPU shares, as in CUDA."""
    if gpu.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(gpu))
    if gpu.startswith("GPU-"):
        gpus = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        meant = [one for one in gpus if nvml.nvmlDeviceGetUUID(one).startswith(gpu)]
        if len(meant) == 1:
            return meant[0]
    return nvml.nvmlDeviceGetHandleByUUID(gpu)


def free_bytes() -> int | None:
    """Free memory of the first GPU that this process may use; None without one, or where NVML does not answer."""
    gpus = visible_gpus()
    if not gpus:
        return None
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception:  # as in visible_gpus()
        return None
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle(nvml, gpus[0]), version=nvml.nvmlMemory_v2).free
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()
