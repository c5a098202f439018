"""What run.json says of the machine, and what it must not say."""

import getpass
import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gdn_lab.bench.environment import clocks, environment
from gdn_lab.bench.environment import environment as environment_function

module = sys.modules[environment_function.__module__]

FIELDS = set(
    "gpu_name compute_capability sm_count l2_bytes memory_bytes driver power_limit_w cuda python torch triton "
    "flashinfer cutlass_dsl fla cpu cpu_count platform git_commit git_dirty utc".split()
)


def test_fields():
    facts = environment()
    assert set(facts) == FIELDS
    assert facts["torch"] == torch.__version__ and facts["python"].startswith("3.")
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_it_names_no_machine_user_or_path(monkeypatch):
    monkeypatch.setenv("GDN_LAB_TEST_SECRET", "hunter2-of-the-environment")
    text = json.dumps([environment(), clocks()]).lower()
    for secret in (socket.gethostname(), str(Path.home()), os.getcwd(), "hunter2", os.uname().release):
        assert len(secret) < 4 or secret.lower() not in text
    user = getpass.getuser()
    assert len(user) < 4 or user not in text.split('"')


def test_no_clocks_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert clocks() == {}
    assert environment()["gpu_name"] is None and environment()["driver"] is None


def test_missing_package_is_none():
    assert module._version("no-such-distribution-of-gdn-lab") is None


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12ab-34cd"))


def test_nvidia_smi_is_read_where_nvml_is_not(gpu, monkeypatch):
    def no_nvml(uuid):
        raise ImportError("no pynvml")

    def run(command, **options):
        assert "--id=GPU-12ab-34cd" in command
        return SimpleNamespace(stdout="580.95, 700.00, 1980, 2619, 35, [N/A]\n")

    monkeypatch.setattr(module, "_from_nvml", no_nvml)
    monkeypatch.setattr(module.subprocess, "run", run)
    assert clocks() == {"sm_mhz": 1980, "memory_mhz": 2619, "temperature_c": 35, "power_w": None}
    assert module._readings(None)["driver"] == "580.95" and module._readings(None)["power_limit_w"] == 700


def test_unreadable_clocks_are_said_so(gpu, monkeypatch):
    def no_nvml(uuid):
        raise RuntimeError(f"{uuid} not found")

    def run(command, **options):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(module, "_from_nvml", no_nvml)
    monkeypatch.setattr(module.subprocess, "run", run)
    said = clocks()
    assert list(said) == ["clocks_error"]
    assert said["clocks_error"].startswith("clocks could not be read (RuntimeError: GPU not found; FileNotFoundError")
    assert "12ab" not in said["clocks_error"]


def test_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "environment.py"))
    assert module._git() == {"git_commit": None, "git_dirty": None}


@pytest.mark.gpu
def test_of_this_gpu():
    facts = environment()
    assert facts["gpu_name"] == torch.cuda.get_device_name()
    assert facts["sm_count"] > 0 and facts["l2_bytes"] > 0 and facts["driver"] and facts["power_limit_w"] > 0
    now = clocks()
    assert "clocks_error" not in now and now["sm_mhz"] > 0 and now["memory_mhz"] > 0


@pytest.mark.parametrize("said, commit, dirty", [(None, None, None), ("abc", "abc", False), ("abc-dirty", "abc", True)])
def test_a_copy_without_git_says_its_commit(monkeypatch, said, commit, dirty):
    def no_git(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(module.subprocess, "run", no_git)
    monkeypatch.delenv("GDN_LAB_COMMIT", raising=False)
    if said:
        monkeypatch.setenv("GDN_LAB_COMMIT", said)
    facts = module._git()
    assert (facts["git_commit"], facts["git_dirty"]) == (commit, dirty)
