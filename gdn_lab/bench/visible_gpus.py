"""The GPUs that this process may use, as NVML sees them: asking NVML makes no CUDA context on a GPU."""

import os


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them or by number; [] where there are none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [word.strip() for word in named.split(",") if word.strip()]
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception:  # no library, no driver or no GPU: each is a class of its own, and all mean none
        return []
    try:
        return [str(number) for number in range(nvml.nvmlDeviceGetCount())]
    finally:
        nvml.nvmlShutdown()


def handle(nvml, gpu: str):
    """NVML's handle of a GPU. gpu: its number or its UUID."""
    return nvml.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(gpu)


def free_bytes() -> int | None:
    """Free memory of the first GPU that this process may use; None where NVML does not answer."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception:  # as in visible_gpus()
        return None
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle(nvml, visible_gpus()[0]), version=nvml.nvmlMemory_v2).free
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()
