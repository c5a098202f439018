"""What run.json says of the machine, and what it must not say."""

import getpass
import json
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from gdn_lab.bench import environment as module
from gdn_lab.bench.clocks import clocks
from gdn_lab.bench.environment import environment

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


def test_nothing_of_a_gpu_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment()["gpu_name"] is None and environment()["driver"] is None


def test_a_backend_dropped_in_has_its_version_recorded(monkeypatch):
    @dataclass
    class Dropped:
        distribution: str = "numpy"

    monkeypatch.setitem(module.BACKENDS, "dropped", Dropped())
    assert environment()["dropped"] == module.importlib.metadata.version("numpy")


def test_missing_package_is_none():
    assert module._version("no-such-distribution-of-gdn-lab") is None


def test_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "environment.py"))
    assert module._git() == {"git_commit": None, "git_dirty": None}


def test_a_changed_file_makes_the_checkout_dirty(tmp_path, monkeypatch):
    def git(*arguments):
        author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", "-C", tmp_path, *author, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    file = tmp_path / "environment.py"
    file.write_text("here = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "a commit")
    monkeypatch.setattr(module, "__file__", str(file))
    monkeypatch.setenv("GDN_LAB_COMMIT", "of no copy")
    commit = git("rev-parse", "HEAD")
    assert module._git() == {"git_commit": commit, "git_dirty": False}
    file.write_text("here = 2\n")
    assert module._git() == {"git_commit": commit, "git_dirty": True}
    git("commit", "-qam", "another")
    (tmp_path / "new").touch()
    assert module._git() == {"git_commit": git("rev-parse", "HEAD"), "git_dirty": True}


@pytest.mark.gpu
def test_of_this_gpu():
    facts = environment()
    assert facts["gpu_name"] == torch.cuda.get_device_name()
    assert facts["sm_count"] > 0 and facts["l2_bytes"] > 0 and facts["driver"] and facts["power_limit_w"] > 0


@pytest.mark.parametrize(
    "described, commit, dirty", [(None, None, None), ("abc", "abc", False), ("abc-dirty", "abc", True)]
)
def test_a_copy_without_git_says_its_commit(monkeypatch, described, commit, dirty):
    def no_git(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(module.subprocess, "run", no_git)
    monkeypatch.delenv("GDN_LAB_COMMIT", raising=False)
    if described:
        monkeypatch.setenv("GDN_LAB_COMMIT", described)
    facts = module._git()
    assert (facts["git_commit"], facts["git_dirty"]) == (commit, dirty)
