"""Runs cases under TRITON_INTERPRET=1: Triton reads it on import, so each file takes a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="there is no Triton for this operating system")


@pytest.mark.parametrize(
    "name, fewest",
    [
        ("interpreter_cases.py", 40),
        ("stochastic_interpreter_cases.py", 10),
        ("replay_interpreter_cases.py", 15),
        ("replay_fp8_interpreter_cases.py", 3),
        ("verify_interpreter_cases.py", 40),
        ("prefill_interpreter_cases.py", 10),
        ("layer_interpreter_cases.py", 22),
        ("fused_gdn_interpreter_cases.py", 3),
        ("experts_interpreter_cases.py", 30),
        ("all_reduce_interpreter_cases.py", 16),
        ("attention_interpreter_cases.py", 6),
        ("model_interpreter_cases.py", 1),
    ],
)
def test_every_kernel_in_the_interpreter(name, fewest):
    cases = Path(__file__).parents[1] / name
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(cases)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=environment, cwd=cases.parent.parent, capture_output=True, text=True)
    print(run.stdout, run.stderr)
    assert run.returncode == 0, run.stdout[-5000:]
    passed = int(re.search(r"(\d+) passed", run.stdout)[1])
    assert passed >= fewest, "cases are missing"
