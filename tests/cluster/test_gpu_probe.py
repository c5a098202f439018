"""Which GPUs are quiet, and that they stay initialised."""

import sys
from types import SimpleNamespace

import pytest

from gdn_lab.cluster.gpu_probe import GpuUnknown, busy, gpu_type, hold_gpus, probe
from gdn_lab.names import gpu_short_name

QUIET = {
    "processes": 0,
    "used_mib": 3.0,
    "percent": 0,
    "clock_reasons": 0x1,  # idle
    "sm_mhz": 345,
    "ecc_errors": 0,
    "power_limit_w": 700.0,
    "default_power_limit_w": 700.0,
}


@pytest.mark.parametrize(
    "found, sentence",
    [
        ({}, None),
        ({"clock_reasons": 0x4}, None),  # at its power limit: that is its load
        ({"processes": 1}, "in use by another process"),
        ({"processes": 2}, "in use by 2 other processes"),
        ({"used_mib": 5000.0}, "5000 MiB of its memory in use"),
        ({"percent": 60}, "busy 60% of the time"),
        ({"clock_reasons": 0x41, "sm_mhz": 900}, "runs at 900 MHz because of hardware thermal slowdown"),
        ({"ecc_errors": 1}, "1 uncorrected memory errors"),
        ({"power_limit_w": 350.0}, "limited to 350 W, its default is 700 W"),
    ],
)
def test_a_gpu_that_is_not_quiet_is_refused_in_a_sentence(found, sentence):
    said = busy("3", QUIET | found)
    assert said is None if sentence is None else said.startswith("GPU 3 ") and sentence in said


def test_all_gpus_of_a_host_are_held_open(monkeypatch):
    """NVML counts who has asked for it: without a shutdown the GPUs whose handles it gave stay open."""
    asked = []
    nvml = SimpleNamespace(
        nvmlInit=lambda: asked.append("init"),
        nvmlShutdown=lambda: asked.append("shutdown"),
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=asked.append,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    hold_gpus()
    assert asked == ["init", 0, 1]
    monkeypatch.setitem(sys.modules, "pynvml", None)  # cannot be imported
    hold_gpus()


def test_a_machine_without_gpus_is_one_place_for_jobs():
    assert gpu_type([]) == "cpu" and probe("cpu") is None


@pytest.mark.parametrize("gpu", ["7", "-1"])
def test_a_gpu_that_is_not_there_is_unknown_in_a_sentence(monkeypatch, gpu):
    def fails(*_):
        raise OSError("Not Found")

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=fails,
        nvmlDeviceGetHandleByUUID=fails,
        nvmlDeviceGetName=str,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with pytest.raises(GpuUnknown, match=f"GPU {gpu} cannot be asked for its name .Not Found.; `nvidia-smi -L`"):
        gpu_type([gpu])
    monkeypatch.setitem(sys.modules, "pynvml", None)  # cannot be imported
    with pytest.raises(GpuUnknown, match="cannot be asked"):
        gpu_type([gpu])


@pytest.mark.parametrize(
    "name, short",
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
    ],
)
def test_gpus_are_named_as_recorded_data_is(name, short):
    assert gpu_short_name(name) == short


@pytest.mark.gpu
def test_a_gpu_in_front_of_us_can_be_asked():
    assert gpu_type(["0"]) and (probe("0") is None or probe("0").startswith("GPU 0 "))
