"""Which GPUs a process may use and what is free on them, by NVML alone: a CUDA context would make a GPU look busy."""

import sys
from types import SimpleNamespace

import pytest
import torch

from gdn_lab.bench import free_memory
from gdn_lab.bench.visible_gpus import free_bytes, visible_gpus
from gdn_lab.cli.record_pieces import pieces
from gdn_lab.cli.sweep_jobs import Plan
from gdn_lab.cluster.request import Request


class NVMLError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch):
    """Four GPUs; number n has n GB free and the UUID GPU-<n>0ab."""

    def known(number):
        if number not in range(4):
            raise NVMLError
        return number

    made_up = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 4,
        nvmlDeviceGetHandleByIndex=known,
        nvmlDeviceGetHandleByUUID=lambda uuid: known({f"GPU-{number}0ab": number for number in range(4)}.get(uuid)),
        nvmlDeviceGetUUID=lambda number: f"GPU-{number}0ab",
        nvmlDeviceGetMemoryInfo=lambda number, version: SimpleNamespace(free=number * 10**9),
        nvmlMemory_v2=2,
        NVMLError=NVMLError,
    )
    monkeypatch.setitem(sys.modules, "pynvml", made_up)
    return made_up


@pytest.mark.parametrize(
    "named, gpus, free",
    [
        ("2,1", ["2", "1"], 2),
        (" 2 , 1", ["2", "1"], 2),
        ("GPU-30ab", ["GPU-30ab"], 3),
        ("GPU-3", ["GPU-3"], 3),
        ("GPU-", [], None),
        ("GPU-30ab1", [], None),
        ("GPU-of-others", [], None),
        ("-1", [], None),
        ("2,-1,1", ["2"], 2),
        ("1,7,2", ["1"], 1),
        ("1,,2", ["1"], 1),
        ("", [], None),
    ],
)
def test_the_first_gpu_that_is_named_is_asked(nvml, monkeypatch, named, gpus, free):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == gpus and free_bytes() == (free and free * 10**9)


def test_without_a_driver_there_are_none(nvml, monkeypatch):
    def fails():
        raise NVMLError("Driver Not Loaded")

    monkeypatch.setattr(nvml, "nvmlInit", fails)
    for named in ("0", "GPU-3", None):
        if named is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert visible_gpus() == [] and free_bytes() is None


def test_without_names_all_are_visible(nvml, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1", "2", "3"]


def test_drivers_of_records_and_sweeps_leave_no_context_on_a_gpu(monkeypatch):
    """They check parameters with torch.cuda.is_available() and device_count(), which make none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("_lazy_init", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: pytest.fail(f"torch.cuda.{name} makes a context"))
    monkeypatch.setattr(free_memory, "free_bytes", lambda: 10**11)
    jobs, refused = pieces("h200", "c0ffee" * 6)
    assert len(jobs) > 10 and not refused
    assert len(Plan(Request("02", {"tp": ["1", "2"]})).jobs("h200", "c0ffee" * 6)) == 2
