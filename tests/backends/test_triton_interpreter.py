"""Runs cases under TRITON_INTERPRET=1, which Triton reads on import: in two processes of their own."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="there is no Triton for this operating system")

TESTS = Path(__file__).parents[1]
# {files of a process: the fewest cases that each must have}
PROCESSES = {
    "decode, prefill and layer": {
        "interpreter_cases.py": 40,
        "stochastic_interpreter_cases.py": 10,
        "prefill_interpreter_cases.py": 10,
        "layer_interpreter_cases.py": 22,
        "experts_interpreter_cases.py": 30,
        "attention_interpreter_cases.py": 6,
    },
    "verify, replay and several ranks": {
        "verify_interpreter_cases.py": 45,
        "replay_interpreter_cases.py": 15,
        "replay_fp8_interpreter_cases.py": 20,
        "all_reduce_interpreter_cases.py": 16,
        "model_interpreter_cases.py": 2,
        "small_model_interpreter_cases.py": 1,
        "served_model_interpreter_cases.py": 1,
        "sampling_interpreter_cases.py": 2,
        "smoke_interpreter_cases.py": 3,
    },
}


@pytest.mark.parametrize("process", PROCESSES)
def test_every_kernel_in_the_interpreter(process, tmp_path):
    report, files = tmp_path / "report.xml", PROCESSES[process]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [f"--junitxml={report}", *(str(TESTS / name) for name in files)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True)
    print(run.stdout, run.stderr)
    assert run.returncode == 0, run.stdout[-5000:]
    cases = [case for case in ElementTree.parse(report).iter("testcase") if not len(case)]
    passed = Counter(case.get("classname") for case in cases)
    for name, fewest in files.items():
        assert passed[f"tests.{name.removesuffix('.py')}"] >= fewest, f"cases of {name} are missing"


def test_every_file_of_cases_is_run():
    run = [name for files in PROCESSES.values() for name in files]
    assert sorted(run) == sorted(path.name for path in TESTS.glob("*interpreter_cases.py"))
