"""Whether a GPU is quiet enough to time something on it, asked of NVML. No CUDA context is made."""

from ..bench.visible_gpus import handle
from ..names import gpu_short_name

IDLE_MIB = 1024  # of memory in use, beyond what the driver reserves
IDLE_PERCENT = 5  # of the SMs' time
# Bits of NVML's clocks event reasons that mean that something other than the load holds the clocks down.
THROTTLED = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


class GpuUnknown(RuntimeError):
    """NVML does not say what a GPU is. One sentence."""


def gpu_type(ids: list[str]) -> str:
    """ "h100" of the first of the GPUs; "cpu" where there are none. GpuUnknown where NVML does not answer."""
    if not ids:
        return "cpu"
    try:
        name = _name(ids[0])
    except Exception as error:  # no library, no driver or no such GPU: each is a class of its own
        raise GpuUnknown(
            f"GPU {ids[0]} cannot be asked for its name ({error}); `nvidia-smi -L` lists the GPUs that the driver sees"
        ) from error
    return gpu_short_name(name)


def _name(gpu: str) -> str:
    import pynvml as nvml

    nvml.nvmlInit()
    try:
        name = nvml.nvmlDeviceGetName(handle(nvml, gpu))
        return name.decode() if isinstance(name, bytes) else name
    finally:
        nvml.nvmlShutdown()


def hold_gpus() -> None:
    """Keep every GPU of this host initialised until this process ends; without GPUs do nothing.

    The driver shuts a GPU down once nothing holds it, unless its persistence mode is on: the next job waits one to
    three seconds for it (NVIDIA, Driver Persistence).
    """
    try:
        import pynvml as nvml

        nvml.nvmlInit()  # and no shutdown
        for number in range(nvml.nvmlDeviceGetCount()):
            nvml.nvmlDeviceGetHandleByIndex(number)
    except Exception:  # no library, no driver or no GPU: each is a class of its own
        return


def made_up_probe(gpu: str) -> None:
    """A GPU that is only a number is quiet."""


def probe(gpu: str) -> str | None:
    """None if a GPU is quiet, else one sentence on why it is not. gpu: its number, its UUID, or "cpu"."""
    return None if gpu == "cpu" else busy(gpu, state(gpu))


def busy(gpu: str, found: dict) -> str | None:
    """What state() found as one sentence; None if nothing speaks against timing."""
    if "error" in found:
        return f"GPU {gpu} cannot be asked whether it is busy ({found['error']})"
    if found["processes"]:
        others = "another process" if found["processes"] == 1 else f"{found['processes']} other processes"
        return f"GPU {gpu} is in use by {others}"
    if found["used_mib"] > IDLE_MIB:
        return f"GPU {gpu} has {found['used_mib']:.0f} MiB of its memory in use"
    if found["percent"] > IDLE_PERCENT:
        return f"GPU {gpu} is busy {found['percent']}% of the time"
    if held := [name for bit, name in THROTTLED.items() if found["clock_reasons"] & bit]:
        return f"GPU {gpu} runs at {found['sm_mhz']} MHz because of {', '.join(held)}"
    if found["ecc_errors"]:
        return f"GPU {gpu} has {found['ecc_errors']} uncorrected memory errors; reset it"
    limit, default = found["power_limit_w"], found["default_power_limit_w"]
    if limit < 0.99 * default:
        return f"GPU {gpu} is limited to {limit:.0f} W, its default is {default:.0f} W"
    return None


def state(gpu: str) -> dict:
    """processes, used_mib, percent, clock_reasons, sm_mhz, ecc_errors, power_limit_w and default_power_limit_w.

    {"error": why} where NVML does not answer. What a GPU does not report counts as quiet.
    """
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception as error:  # each of its failures is a class of its own
        return {"error": f"{type(error).__name__}: {error}"}
    try:
        return _state(nvml, handle(nvml, gpu))
    except nvml.NVMLError as error:
        return {"error": str(error)}
    finally:
        nvml.nvmlShutdown()


def _state(nvml, handle) -> dict:
    def ask(function, *arguments, default=0):
        try:
            return getattr(nvml, function)(handle, *arguments)
        except nvml.NVMLError_NotSupported:
            return default

    memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)  # without what is reserved
    load = ask("nvmlDeviceGetUtilizationRates", default=None)
    limit = ask("nvmlDeviceGetEnforcedPowerLimit") / 1000
    uncorrected, volatile = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    return {
        "processes": len(ask("nvmlDeviceGetComputeRunningProcesses", default=[])),
        "used_mib": memory.used / 2**20,
        "percent": load.gpu if load else 0,
        "clock_reasons": ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
        "sm_mhz": ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        "ecc_errors": ask("nvmlDeviceGetTotalEccErrors", uncorrected, volatile),
        "power_limit_w": limit,
        "default_power_limit_w": ask("nvmlDeviceGetPowerManagementDefaultLimit", default=1000 * limit) / 1000,
    }
