"""The program that `make sanitize` watches, here on the backend that needs no GPU."""

import sys

import pytest

from gdn_lab import ops
from gdn_lab.backends.registry import VARIANTS
from gdn_lab.cli.main import main


def test_every_call_of_a_backend(capsys):
    assert main(["smoke", "torch"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("Every kernel once, small: ") and "torch 2." in first
    phases = {("decode", "bfloat16"), ("decode", "float32"), ("verify", "bfloat16"), ("prefill", "bfloat16")}
    phases |= {("decode", "stochastic")}
    called = [line.split(":")[0].split() for line in lines]
    assert {(words[0], words[-1]) for words in called} == phases
    assert {words[1] for words in called if words[0] == "verify"} == {"update", "intermediate", "output"}
    assert all(": right, largest error" in line for line in lines)


def test_steps(capsys):
    assert main(["smoke", "step"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [["step", "torch"]] * 2
    assert all(": right, largest error" in line for line in lines)


@pytest.mark.parametrize("spoil", ["wrong", "raises"])
def test_what_is_not_right_fails(monkeypatch, capsys, spoil):
    right = ops.decode

    def spoilt(*arguments, **options):
        if spoil == "raises":
            raise RuntimeError("no such kernel")
        return right(*arguments, **options) + 1

    monkeypatch.setattr(ops, "decode", spoilt)
    assert main(["smoke", "torch"]) == 1
    printed = capsys.readouterr().out
    assert ("FAILED, RuntimeError: no such kernel" if spoil == "raises" else "WRONG, largest error") in printed


def test_an_unknown_backend(capsys):
    assert main(["smoke", "cuda"]) == 2
    assert "group: cuda unknown; choose some of " in capsys.readouterr().err


def test_the_server_s_kernels_need_a_gpu(capsys):
    """In Triton's interpreter they run: smoke_interpreter_cases.py."""
    assert main(["smoke", "server"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "server: its kernels need a GPU; on a CPU PyTorch takes their place"
    ]


def test_without_triton_the_server_s_kernels_are_left_out(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gdn_lab.backends.triton.device", None)  # cannot be imported
    assert main(["smoke", "server"]) == 0
    assert "server: its kernels need a GPU" in capsys.readouterr().out


def test_list_names_backends_with_kernels_step_and_server(capsys):
    assert main(["smoke", "--list"]) == 0
    groups = capsys.readouterr().out.split()
    assert groups[-2:] == ["step", "server"] and "torch" not in groups
    assert set(groups[:-2]) <= {v.backend for v in VARIANTS.values() if v.role != "eager"}


def test_a_new_backend_is_a_group(extra_backend, capsys):
    assert main(["smoke", "--list"]) == 0 and "extra" in capsys.readouterr().out.split()
    assert main(["smoke", "extra"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines and all(extra_backend in line and ": right, largest error" in line for line in lines)
