"""Where a measurement was made: GPU, driver, versions, clocks. Nothing that names a machine, a user or a path."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

DISTRIBUTIONS = {
    "triton": "triton", "flashinfer": "flashinfer-python", "cutlass_dsl": "nvidia-cutlass-dsl", "fla": "fla-core",
}  # fmt: skip


def environment(device=None) -> dict:
    """GPU, software and code that a run measures, for run.json. Fields of a GPU are None without one.

    device: the GPU (default: the current one). gpu_name, compute_capability ("9.0"), sm_count, l2_bytes, memory_bytes,
    driver, power_limit_w; cuda (what torch was built for), python, torch, triton, flashinfer, cutlass_dsl, fla (None:
    not installed); cpu, cpu_count, platform; git_commit, git_dirty (None outside a checkout); utc.
    """
    facts = dict.fromkeys(("gpu_name", "compute_capability", "sm_count", "l2_bytes", "memory_bytes"))
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(_cuda(device))
        facts |= {
            "gpu_name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "sm_count": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
        }
    readings = _readings(device)
    facts |= {name: readings.get(name) for name in ("driver", "power_limit_w")}
    facts |= {"cuda": torch.version.cuda, "python": platform.python_version(), "torch": torch.__version__}
    facts |= {name: _version(distribution) for name, distribution in DISTRIBUTIONS.items()}
    # The release of the kernel is left out of platform: it may carry the name of whoever runs the machine.
    facts |= {"cpu": _cpu(), "cpu_count": os.cpu_count(), "platform": f"{platform.system()} {platform.machine()}"}
    facts |= _git()
    return facts | {"utc": utc()}


def clocks(device=None) -> dict:
    """sm_mhz, memory_mhz, temperature_c, power_w of the GPU at this moment; {} without a GPU.

    Where neither NVML nor nvidia-smi answers, {"clocks_error": why}.
    """
    readings = _readings(device)
    names = ("sm_mhz", "memory_mhz", "temperature_c", "power_w", "clocks_error")
    return {name: readings[name] for name in names if name in readings}


def utc() -> str:
    """Now, as 2026-11-22T08:15:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cuda(device) -> torch.device:
    """`device` if it is a CUDA device, else the current one."""
    device = torch.device(device if device is not None else "cuda")
    return device if device.type == "cuda" else torch.device("cuda")


def _readings(device) -> dict:
    """driver, power_limit_w and what clocks() reports; {} without a GPU, {"clocks_error": why} if unreadable."""
    if not torch.cuda.is_available():
        return {}
    # By UUID, because CUDA's numbering need not be that of the tools.
    uuid = f"GPU-{torch.cuda.get_device_properties(_cuda(device)).uuid}"
    errors = []
    for source in (_from_nvml, _from_nvidia_smi):
        try:
            return source(uuid)
        except Exception as error:  # each library has errors of its own; all are told together
            errors.append(f"{type(error).__name__}: {error}".replace(uuid, "GPU"))
    return {"clocks_error": f"clocks could not be read ({'; '.join(errors)}); install nvidia-ml-py or nvidia-smi"}


def _from_nvml(uuid: str) -> dict:
    import pynvml as nvml

    nvml.nvmlInit()
    try:
        gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
        driver = nvml.nvmlSystemGetDriverVersion()
        return {
            "driver": driver.decode() if isinstance(driver, bytes) else driver,
            "power_limit_w": nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
            "sm_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
            "memory_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
            "temperature_c": nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
            "power_w": nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        }
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


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name, on Linux from /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git() -> dict:
    """git_commit and git_dirty of the checkout that this code runs from; None where it is none.

    A copy of a checkout without its .git says what it is a copy of in GDN_LAB_COMMIT: a commit, with "-dirty" behind it
    if there were changes (git describe --always --dirty --abbrev=40 --exclude '*').
    """
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        # A package installed inside someone else's checkout is not that checkout's code.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        commit = os.environ.get("GDN_LAB_COMMIT")
        return {
            "git_commit": commit.removesuffix("-dirty") if commit else None,
            "git_dirty": commit.endswith("-dirty") if commit else None,
        }
