"""Clocks of the GPU: read at one moment, sampled while timers run."""

import time
from types import SimpleNamespace

import pytest
import torch

from gdn_lab.bench import clocks
from gdn_lab.bench.timers import time_interleaved

READING = {"sm_mhz": 1980, "memory_mhz": 2619, "temperature_c": 35, "power_w": 300.5}


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12ab-34cd"))


def test_no_clocks_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert clocks.clocks() == {}
    since = time.monotonic()
    with clocks.sampled():
        time.sleep(0.01)
    assert clocks.summary(since) == {}


def test_nvidia_smi_is_read_where_nvml_is_not(gpu, monkeypatch):
    def no_nvml(uuid):
        raise ImportError("no pynvml")

    def run(command, **options):
        assert "--id=GPU-12ab-34cd" in command
        return SimpleNamespace(stdout="580.95, 700.00, 1980, 2619, 35, [N/A]\n")

    monkeypatch.setattr(clocks, "_from_nvml", no_nvml)
    monkeypatch.setattr(clocks.subprocess, "run", run)
    assert clocks.clocks() == READING | {"power_w": None}
    assert clocks.readings()["driver"] == "580.95" and clocks.readings()["power_limit_w"] == 700


def test_unreadable_clocks_are_said_so(gpu, monkeypatch):
    def no_nvml(uuid):
        raise RuntimeError(f"{uuid} not found")

    def run(command, **options):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(clocks, "_from_nvml", no_nvml)
    monkeypatch.setattr(clocks.subprocess, "run", run)
    found = clocks.clocks()
    assert list(found) == ["clocks_error"]
    assert found["clocks_error"].startswith("clocks could not be read (RuntimeError: GPU not found; FileNotFoundError")
    assert "12ab" not in found["clocks_error"]


def test_samples_while_a_block_runs(monkeypatch):
    readings = iter(READING | {"sm_mhz": mhz} for mhz in (1755, 1980, 1965))
    taken = []

    def read():
        taken.append(next(readings))
        return taken[-1]

    monkeypatch.setattr(clocks, "_nvml_reader", lambda device: read)
    monkeypatch.setattr(clocks, "PERIOD_S", 0.001)
    before = time.monotonic()
    with clocks.sampled():
        while len(taken) < 3:
            time.sleep(0.001)
        time.sleep(0.01)  # the fourth reading fails, which ends the thread and nothing else
    found = clocks.summary(before)
    assert found["samples"] == 3 and found["sm_mhz"] == {"min": 1755, "median": 1965, "max": 1980}
    assert found["power_w"] == {"min": 300.5, "median": 300.5, "max": 300.5}
    assert clocks.summary(time.monotonic()) == {}


@pytest.mark.gpu
def test_clocks_of_this_gpu():
    now = clocks.clocks()
    assert "clocks_error" not in now and now["sm_mhz"] > 0 and now["memory_mhz"] > 0
    x, since = torch.ones(1 << 26, device="cuda"), time.monotonic()
    time_interleaved({"a": [x.neg_] * 8}, timer="cuda_graph_replay", device="cuda", samples=300)
    found = clocks.summary(since)
    assert found["samples"] >= 1 and 0 < found["sm_mhz"]["min"] <= found["sm_mhz"]["max"]
