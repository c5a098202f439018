"""Clocks, power and temperature of the GPU: at one moment, and sampled while timers run."""

import statistics
import subprocess
import threading
import time
from contextlib import contextmanager

import torch

PERIOD_S = 0.05  # between two samples
_SAMPLED = ("sm_mhz", "memory_mhz", "temperature_c", "power_w")
_history: list[tuple[float, dict]] = []  # (time.monotonic(), readings) of this process, oldest first


def clocks(device=None) -> dict:
    """Return sm_mhz, memory_mhz, temperature_c and power_w of the GPU at this moment; {} without a GPU.

    Where neither NVML nor nvidia-smi answers, return {"clocks_error": why}.
    """
    found = readings(device)
    return {name: found[name] for name in (*_SAMPLED, "clocks_error") if name in found}


@contextmanager
def sampled(device=None):
    """Read the clocks of the GPU every PERIOD_S on a thread of its own while the block runs; summary() has them.

    The thread asks NVML and never touches a CUDA stream. Without a GPU, or without NVML, nothing is sampled.
    """
    read = _nvml_reader(device)
    if read is None:
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_sample, args=(read, done), name="clocks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def summary(since: float) -> dict:
    """Summarise what was sampled since a time of time.monotonic(): {} if nothing was.

    samples: how many. sm_mhz, memory_mhz, temperature_c, power_w: {"min", "median", "max"} of each.
    """
    rows = [row for when, row in _history if when >= since]
    if not rows:
        return {}
    columns = {name: [row[name] for row in rows] for name in _SAMPLED}
    found = {"samples": len(rows)}
    for name, values in columns.items():
        found[name] = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return found


def readings(device=None) -> dict:
    """Return driver, power_limit_w and what clocks() reports; {} without a GPU, {"clocks_error": why} if unreadable."""
    if not torch.cuda.is_available():
        return {}
    uuid, errors = _uuid(device), []
    for source in (_from_nvml, _from_nvidia_smi):
        try:
            return source(uuid)
        except Exception as error:  # each library has errors of its own; the message has all of them
            errors.append(f"{type(error).__name__}: {error}".replace(uuid, "GPU"))
    return {"clocks_error": f"clocks could not be read ({'; '.join(errors)}); install nvidia-ml-py or nvidia-smi"}


def cuda_device(device=None) -> torch.device:
    """Return `device` if it is a CUDA device, else the current one."""
    device = torch.device(device if device is not None else "cuda")
    return device if device.type == "cuda" else torch.device("cuda")


def _uuid(device) -> str:
    """Name a GPU as NVML does: CUDA's numbers need not be those of the tools."""
    return f"GPU-{torch.cuda.get_device_properties(cuda_device(device)).uuid}"


def _sample(read, done: threading.Event) -> None:
    while not done.wait(PERIOD_S):
        try:
            _history.append((time.monotonic(), read()))
        except Exception:  # a reading that fails once fails again: the summary then has fewer samples, which it counts
            return


def _nvml_reader(device):
    """Return a function that reads the clocks, or None without a GPU or NVML."""
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml as nvml

        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByUUID(_uuid(device))
        _nvml_clocks(nvml, gpu)
    except Exception:  # clocks() of the same run says why
        return None
    return lambda: _nvml_clocks(nvml, gpu)


def _nvml_clocks(nvml, gpu) -> dict:
    return {
        "sm_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "memory_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
        "temperature_c": nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        "power_w": nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    }


def _from_nvml(uuid: str) -> dict:
    import pynvml as nvml

    nvml.nvmlInit()
    try:
        gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
        driver = nvml.nvmlSystemGetDriverVersion()
        return {
            "driver": driver.decode() if isinstance(driver, bytes) else driver,
            "power_limit_w": nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
        } | _nvml_clocks(nvml, gpu)
    finally:
        nvml.nvmlShutdown()


def _from_nvidia_smi(uuid: str) -> dict:
    fields = "driver_version,enforced.power.limit,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    driver, *values = (value.strip() for value in line.split(","))
    names = ("power_limit_w", "sm_mhz", "memory_mhz", "temperature_c", "power_w")
    return {"driver": driver} | dict(zip(names, map(_number, values), strict=True))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]": this GPU does not report it
        return None
