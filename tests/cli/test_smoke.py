"""The program that `make sanitize` watches, here on the backend that needs no GPU."""

import pytest

from gdn_lab import ops
from gdn_lab.cli import smoke


def test_every_call_of_a_backend(capsys):
    assert smoke.main(["torch"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("Every kernel once, small: ") and "torch 2." in first
    phases = {("decode", "bfloat16"), ("decode", "float32"), ("verify", "bfloat16"), ("prefill", "bfloat16")}
    called = [line.split(":")[0].split() for line in lines]
    assert {(words[0], words[-1]) for words in called} == phases
    assert {words[1] for words in called if words[0] == "verify"} == {"update", "intermediate", "output"}
    assert all(": right, largest error" in line for line in lines)


def test_steps(capsys):
    assert smoke.main(["step"]) == 0
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
    assert smoke.main(["torch"]) == 1
    said = capsys.readouterr().out
    assert ("FAILED, RuntimeError: no such kernel" if spoil == "raises" else "WRONG, largest error") in said


def test_an_unknown_backend(capsys):
    assert smoke.main(["cuda"]) == 2
    assert "backend: cuda unknown" in capsys.readouterr().err
