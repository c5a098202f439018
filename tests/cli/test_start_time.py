"""How long a command takes that has little to do, in CPU time, which other programs on the machine do not lengthen."""

import os
import subprocess
import sys

import pytest

from gdn_lab.cli.run import ROOT

ADVISE = ("advise", "--model", "qwen3-next-80b-a3b", "--tp", "4", "--batch", "96")


@pytest.mark.parametrize(("seconds", "words"), [(0.5, ("--help",)), (0.5, ("run", "--help")), (2.0, ADVISE)])
def test_an_answer_does_not_keep_you_waiting(seconds, words):
    before = os.times()
    done = subprocess.run([sys.executable, "-m", "gdn_lab", *words], cwd=ROOT, capture_output=True, text=True)
    after = os.times()
    assert done.returncode == 0, done.stderr
    took = after.children_user - before.children_user + after.children_system - before.children_system
    assert took < seconds
