"""Measured bandwidth: how many bytes a second this device moves at best; and the datasheet's peak."""

from dataclasses import dataclass

import torch

from .timers import time_interleaved


@dataclass(frozen=True)
class Roof:
    """Measured bandwidth: GB/s (1e9 bytes) read and written by the fastest in-place stream.

    Median, 20th and 80th percentile of `count` samples. nbytes: size of the buffer. method: which kernel was fastest,
    and what it was compared with.
    """

    gb_per_s: float
    p20_gb_per_s: float
    p80_gb_per_s: float
    count: int
    nbytes: int
    method: str


def measure_roof(device, nbytes: int | None = None, samples: int | None = None) -> Roof:
    """Measure the bandwidth of `device`: a buffer of `nbytes` (2 GiB; on a CPU 256 MiB) read and written in place.

    On a GPU two kernels, PyTorch's neg_ and a Triton one, are timed by CUDA-graph replay, and the faster counts. A copy
    would not do: captured in a graph it becomes a memcpy node, which is slower than a kernel. On a CPU it is neg_ by
    host clock. samples: default 20, on a CPU 5. Raises ValueError if the GPU has not that much memory free.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    nbytes = nbytes or (2 << 30 if on_gpu else 256 << 20)
    samples = samples or (20 if on_gpu else 5)
    if nbytes < 1 or nbytes % 16384:
        raise ValueError(f"nbytes: expected a positive multiple of 16384, got {nbytes}")
    if on_gpu and (free := torch.cuda.mem_get_info(device)[0]) < nbytes:
        raise ValueError(
            f"nbytes: expected at most the {free >> 20} MiB that {device} has free, got {nbytes >> 20} MiB"
        )
    buffer = torch.ones(nbytes // 4, dtype=torch.float32, device=device)
    if on_gpu:
        buffer.normal_()
    kernels = {"torch neg_": buffer.neg_}
    if stream := _stream_kernel() if on_gpu else None:
        kernels["triton negate_"] = lambda: stream(buffer)
    timings = time_interleaved(
        {name: [kernel] * (4 if on_gpu else 1) for name, kernel in kernels.items()},
        timer="cuda_graph_replay" if on_gpu else "host_clock",
        device=device,
        samples=samples,
    )
    best = min(timings, key=lambda name: timings[name].median_us)
    slower = [f"{2 * nbytes / timings[name].median_us / 1e3:.0f} by {name}" for name in timings if name != best]
    note = "".join(f" ({text})" for text in slower) or (" (Triton is not installed)" if on_gpu else "")
    timing = timings[best]
    return Roof(
        gb_per_s=2 * nbytes / timing.median_us / 1e3,
        p20_gb_per_s=2 * nbytes / timing.p80_us / 1e3,
        p80_gb_per_s=2 * nbytes / timing.p20_us / 1e3,
        count=timing.count,
        nbytes=nbytes,
        method=f"{best} in place on {nbytes >> 20} MiB of float32{note}",
    )


def _stream_kernel():
    """Return the Triton kernel's launch, or None without Triton."""
    try:
        from .stream_kernel import negate_
    except ImportError:
        return None
    return negate_


# The datasheet's peak, GB/s, by the name that nvidia-smi gives, without "NVIDIA". Source: NVIDIA's datasheet or product
# page of each GPU. A GPU that is sold with several memories (GH200) has an entry for each name.
# fmt: off
DATASHEET_GB_PER_S = {
    "H100 80GB HBM3": 3350, "H100 SXM5 80GB": 3350, "H100 PCIe": 2000, "H100 NVL": 3900,
    "H200": 4800, "H200 NVL": 4800, "GH200 480GB": 4000, "GH200 144G HBM3e": 4900, "H20": 4000, "H800": 3350,
    "B200": 8000, "GB200": 8000, "B300 SXM6 AC": 8000, "GB300": 8000,
    "A100-SXM4-40GB": 1555, "A100-PCIE-40GB": 1555, "A100-SXM4-80GB": 2039, "A100 80GB PCIe": 1935,
    "L4": 300, "L40": 864, "L40S": 864, "A10": 600, "A10G": 600, "A40": 696, "RTX A6000": 768,
    "RTX 6000 Ada Generation": 960, "RTX PRO 6000 Blackwell Server Edition": 1597,
    "RTX PRO 6000 Blackwell Workstation Edition": 1792,
    "GeForce RTX 3090": 936, "GeForce RTX 3090 Ti": 1008, "GeForce RTX 4080": 717, "GeForce RTX 4090": 1008,
    "GeForce RTX 5080": 960, "GeForce RTX 5090": 1792,
    "Tesla V100-SXM2-16GB": 900, "Tesla V100-SXM2-32GB": 900, "Tesla T4": 320,
}
# fmt: on


def datasheet_gb_per_s(gpu_name: str | None) -> float | None:
    """Return the datasheet's peak memory bandwidth, GB/s, of a GPU of this name; None if it is not in the table."""
    peak = DATASHEET_GB_PER_S.get((gpu_name or "").removeprefix("NVIDIA ").strip())
    return None if peak is None else float(peak)


def l2_bytes(device) -> int | None:
    """Return the bytes of the GPU's L2 cache; None on a CPU, whose caches this workbook does not control."""
    device = torch.device(device)
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else None
