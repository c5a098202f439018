"""Energy that a GPU has used, from NVML's counter."""

import torch


def energy_j(device: torch.device) -> float | None:
    """Joules that the GPU has used since its driver was loaded; None on a CPU or where NVML does not count them.

    NVML counts from Volta on and updates every 20 to 100 ms, so only differences over seconds mean something.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml as nvml

        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3
    except Exception:  # without NVML, or on a GPU that it does not know, nothing is measured
        return None
