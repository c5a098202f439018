"""The short form of make fuzz: a few cases of each kind, and what it says of one that fails."""

import os
import subprocess
import sys
from pathlib import Path

from fuzz import __main__ as program
from fuzz.kinds import KINDS, random_of


def fuzz(*arguments):
    command = [sys.executable, "-m", "fuzz", *arguments]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300)


def test_calls():
    with KINDS["calls"].cases() as one_case:
        names = {one_case(0, number) for number in range(60)}
    assert names >= {"decode", "verify", "verify and commit", "prefill"}


def test_a_case_is_its_seed_and_its_number():
    assert random_of(1, 23).random() == random_of(1, 23).random()
    assert len({random_of(seed, number).random() for seed in range(5) for number in range(5)}) == 25


def test_a_failing_case_is_printed_with_the_command_that_repeats_it(tmp_path, capsys):
    def one_case(seed, number):
        assert number != 8, "eight"
        return "a case"

    options = program.parsed(["--seed", "3", "--first", "6", "--number", "4", "--worker", str(tmp_path / "at")])
    assert program.run_many("calls", one_case, options) == 1
    told = capsys.readouterr()
    assert "calls: case 8 failed; repeat it with: make fuzz SEED=3 CASE=calls:8\n" in told.out
    assert "4 cases in" in told.out and "1 failed (a case 3)" in told.out and "AssertionError: eight" in told.err
    assert (tmp_path / "at").read_text() == "9"


def test_the_seed_is_printed_and_one_case_can_be_repeated(forked_python):
    done = fuzz("--only", "calls", "--number", "2", "--seed", "7")
    assert done.returncode == 0 and done.stdout.startswith("seed 7\n") and "calls: 2 cases" in done.stdout, done
    assert fuzz("--seed", "7", "--case", "calls:1").returncode == 0


def test_a_process_that_dies_is_told_with_its_case(monkeypatch, capsys):
    def died(command, env):
        Path(command[command.index("--worker") + 1]).write_text("41")
        return subprocess.CompletedProcess(command, -11)

    monkeypatch.setattr(program.subprocess, "run", died)
    assert program.run_apart("calls", program.parsed(["--seed", "2"])) == 1
    assert "the process ended with -11; repeat it with: make fuzz SEED=2 CASE=calls:41" in capsys.readouterr().out


def test_traces():
    with KINDS["traces"].cases() as one_case:
        names = [one_case(0, number) for number in range(11, 35)]
    assert len({name.split()[0] for name in names}) == 10 and sum(name.endswith("refused") for name in names) > 12
