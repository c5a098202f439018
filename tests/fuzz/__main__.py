"""Run random cases for as long as asked: python -m fuzz --seconds 600 --seed 0, with tests/ on PYTHONPATH (make fuzz).

A case is a kind and a number ("calls:123"); the seed and the number decide everything in it. A case that fails is
printed with the command that repeats it alone, and the others go on.
"""

import argparse
import faulthandler
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from .kinds import KINDS

USUAL = list(KINDS)
SHOWN = 5  # failures of a kind that are printed whole


def main(arguments=None) -> int:
    """Run the kinds one after the other, each in a process of its own; return 1 if a case has failed."""
    options = parsed(arguments)
    if options.case:
        return run_kind(*options.case.split(":"), options)
    if options.worker:
        return run_kind(options.only[0], None, options)
    print(f"seed {options.seed}", flush=True)
    return max([run_apart(kind, options) for kind in options.only])


def parsed(arguments):
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Random calls, interrupts and damaged traces.")
    parser.add_argument("--seconds", type=float, default=600, help="for all kinds together (default 600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=USUAL, help=f"kinds of cases: {', '.join(KINDS)}")
    parser.add_argument("--number", type=int, help="cases of each kind, however long they take")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", help="one case alone, such as calls:123")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # where the number of the case is kept
    return parser.parse_args(arguments)


def run_apart(kind: str, options) -> int:
    """Run a kind in a process of its own; if that dies, say in which case."""
    with tempfile.NamedTemporaryFile() as at:
        seconds = options.seconds / len(options.only)
        command = [sys.executable, "-m", "fuzz", "--worker", at.name, "--only", kind, "--seed", str(options.seed)]
        command += ["--seconds", str(seconds), "--first", str(options.first)]
        command += [] if options.number is None else ["--number", str(options.number)]
        status = subprocess.run(command, env=os.environ | KINDS[kind].environment).returncode
        if status not in (0, 1):
            print(f"{kind}: the process ended with {status}; {repeat(kind, at.read().decode(), options)}")
    return int(status != 0)


def run_kind(kind: str, number: str | None, options) -> int:
    """Run cases of a kind in this process: one, or until the time or the number is used up."""
    faulthandler.enable()
    missing = {name: value for name, value in KINDS[kind].environment.items() if os.environ.get(name) != value}
    if missing:
        os.execve(sys.executable, [sys.executable, "-m", "fuzz", *sys.argv[1:]], os.environ | missing)
    with KINDS[kind].cases() as one_case:
        if number is not None:
            print(one_case(options.seed, int(number)))
            return 0
        return run_many(kind, one_case, options)


def run_many(kind: str, one_case, options) -> int:
    counts, failed, began = Counter(), 0, time.monotonic()
    with open(options.worker, "w") as at:
        for done in range(options.number or sys.maxsize):
            if options.number is None and time.monotonic() - began > options.seconds:
                break
            number = options.first + done
            os.pwrite(at.fileno(), f"{number}".encode(), 0)
            try:
                counts[one_case(options.seed, number)] += 1
            except Exception:
                failed += 1
                if failed <= SHOWN:
                    traceback.print_exc()
                print(f"{kind}: case {number} failed; {repeat(kind, number, options)}", flush=True)
    total, parts = sum(counts.values()) + failed, ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items()))
    print(f"{kind}: {total:,} cases in {time.monotonic() - began:.0f} s, {failed:,} failed ({parts})", flush=True)
    return int(failed > 0)


def repeat(kind: str, number, options) -> str:
    return f"repeat it with: make fuzz SEED={options.seed} CASE={kind}:{number}"


if __name__ == "__main__":
    sys.exit(main())
