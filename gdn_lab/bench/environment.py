"""Where a measurement was made: GPU, driver, versions, commit. Nothing that names a machine, a user or a path."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from ..backends.registry import BACKENDS
from .clocks import cuda_device, readings

# Names in run.json of the backends' distributions; a backend that is not among them goes by its own name.
DISTRIBUTIONS = {
    "triton": "triton",
    "flashinfer": "flashinfer-python",
    "cutlass_dsl": "nvidia-cutlass-dsl",
    "fla": "fla-core",
}


def environment(device=None) -> dict:
    """Describe the GPU, the software and the code that a run measures, for run.json.

    device: the GPU (default: the current one). gpu_name, compute_capability ("9.0"), sm_count, l2_bytes, memory_bytes,
    driver, power_limit_w (None without a GPU); cuda (what torch was built for), python, torch, triton, flashinfer,
    cutlass_dsl, fla (None: not installed) and versions of further backends; cpu, cpu_count, platform; git_commit,
    git_dirty (None outside a checkout); utc.
    """
    facts = dict.fromkeys(("gpu_name", "compute_capability", "sm_count", "l2_bytes", "memory_bytes"))
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(cuda_device(device))
        facts |= {
            "gpu_name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "sm_count": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
        }
    found = readings(device)
    facts |= {name: found.get(name) for name in ("driver", "power_limit_w")}
    facts |= {"cuda": torch.version.cuda, "python": platform.python_version(), "torch": torch.__version__}
    facts |= {name: _version(distribution) for name, distribution in _distributions().items()}
    # The release of the kernel is left out of platform: it may carry the name of whoever runs the machine.
    facts |= {"cpu": _cpu(), "cpu_count": os.cpu_count(), "platform": f"{platform.system()} {platform.machine()}"}
    facts |= _git()
    return facts | {"utc": utc()}


def utc() -> str:
    """Return the time now as 2026-11-22T08:15:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _distributions() -> dict[str, str]:
    known = {"torch", "", *DISTRIBUTIONS.values()}  # "": of kernels in files of their authors
    others = {name: backend.distribution for name, backend in BACKENDS.items() if backend.distribution not in known}
    return DISTRIBUTIONS | others


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """Return the processor's name, on Linux from /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git() -> dict:
    """Return git_commit and git_dirty of the checkout that this code runs from, or None for both outside of one.

    For a copy of a checkout without its .git, the environment variable GDN_LAB_COMMIT names the commit, with "-dirty"
    after it if there were changes (git describe --always --dirty --abbrev=40 --exclude '*').
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
