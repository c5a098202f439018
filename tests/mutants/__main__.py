"""Run the mutants: python -m mutants, with tests/ on PYTHONPATH (make mutants). Takes about half an hour on two cores.

The checkout stays as it is: a copy is changed, one mutant after the other, and its tests run in a fork of this process,
which has imported what takes long. Before each group of mutants their tests must
pass.
"""

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from .mutant import Mutant
from .table import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("gdn_lab", "tests")  # the rest of the checkout is linked
TIMEOUT_S = 300
PASSED, FAILED, BROKEN = 0, 1, 2  # pytest's: tests passed; some failed; their files cannot be imported


def main(arguments=None) -> int:
    """Print what became of each mutant; return 1 if one survives that is not equivalent, or cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m mutants", description="Do the tests notice wrong code?")
    parser.add_argument("--only", default="", help="mutants of the files whose path contains this")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.file]
    _import_what_takes_long()
    with tempfile.TemporaryDirectory() as folder:
        copy = checkout(Path(folder))
        counts = dict.fromkeys(("killed", "survives", "equivalent", "not made"), 0)
        for tests in dict.fromkeys(mutant.tests for mutant in chosen):
            began = time.monotonic()
            passes = outcome(copy, tests) == PASSED
            print(f"{tests}: {'pass' if passes else 'DO NOT PASS'} without a mutant, {time.monotonic() - began:.0f} s")
            for mutant in chosen:
                if mutant.tests == tests:
                    became = run_one(copy, mutant) if passes else "not made"
                    counts[became] += 1
    print(f"{len(chosen)} mutants: " + ", ".join(f"{count} {became}" for became, count in counts.items()))
    return int(counts["survives"] + counts["not made"] > 0)


def run_one(copy: Path, mutant: Mutant) -> str:
    """Print and return what became of a mutant."""
    began = time.monotonic()
    became = fate(copy, mutant)
    change = " -> ".join(repr(" ".join(text.split())[:50]) for text in (mutant.old, mutant.new))
    print(f"    {became:10} {time.monotonic() - began:4.0f} s  {mutant.file}: {change}", flush=True)
    return became


def fate(copy: Path, mutant: Mutant) -> str:
    """Run a mutant's tests in the copy; return "killed", "survives", "equivalent" or "not made"."""
    path = copy / "gdn_lab" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        return "not made"
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        status = outcome(copy, mutant.tests)
    finally:
        path.write_text(text)
    if status in (FAILED, BROKEN) or status < 0:  # of a signal: a read outside of memory, or no end
        return "killed"
    if status != PASSED:
        return "not made"
    return "equivalent" if mutant.equivalent else "survives"


def checkout(folder: Path) -> Path:
    """Make a copy of the checkout whose code can be changed."""
    copy = folder / "checkout"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.name in COPIED:
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.name not in ("runs", ".git"):
            (copy / path.name).symlink_to(path)
    return copy


def outcome(copy: Path, tests: str) -> int:
    """Run tests of the copy in a fork and return pytest's exit status, or minus the signal that ended them.

    SIGKILL does after TIMEOUT_S."""
    child = os.fork()
    if child == 0:
        try:
            _run_tests(copy, tests)
        finally:
            os._exit(70)
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_tests(copy: Path, tests: str) -> None:
    """Run pytest in the copy and leave the process with its status. What tests print goes nowhere."""
    import pytest

    os.setsid()
    os.chdir(copy)
    sys.path[:] = [
        str(copy),
        *(path for path in sys.path if not path.startswith(str(ROOT / "tests")) and path != str(ROOT)),
    ]
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    if "interpreter_cases" in tests:
        os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    sys.dont_write_bytecode = True
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    paths = [
        f"tests/{word}" if word.endswith(".py") or (copy / "tests" / word).is_dir() else word
        for word in shlex.split(tests)
    ]
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not gpu", *paths]))


def _import_what_takes_long() -> None:
    import hypothesis  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import nbformat  # noqa: F401
    import pandas  # noqa: F401
    import papermill  # noqa: F401
    import torch

    torch.set_num_threads(1)  # a fork must not inherit the threads of a pool


if __name__ == "__main__":
    sys.exit(main())
