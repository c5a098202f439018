"""Notebooks that are executed one or two at a time, and what is printed of them; no kernel is started."""

import io
import threading
from pathlib import Path

import pytest

from gdn_lab.cli import run as batch
from gdn_lab.cli.errors import BatchError, Interrupted
from gdn_lab.cli.in_turn import Printed, in_turn
from gdn_lab.cli.stop import Stop
from gdn_lab.studies import studies

PATHS = [Path(f"{number}_of_three.ipynb") for number in (1, 2, 3)]


def lines(capsys):
    """What was printed, without times."""
    return [line.split(" in ")[0].split(", 0 s")[0] for line in capsys.readouterr().out.splitlines()]


def test_two_run_at_once_and_print_in_their_order(capsys):
    second_has_ended = threading.Event()

    def execute(path, stream):
        if path == PATHS[0]:
            stream.write("one\n")
            assert second_has_ended.wait(30)  # else they would not be together
            stream.write("one again\n")
        else:
            stream.write(f"{path.stem}\n")
            second_has_ended.set()
        return path.with_suffix(".html")

    in_turn(PATHS, execute, Stop(), at_once=2)
    assert lines(capsys) == [
        *("[1/3] 1_of_three", "    one", "    one again", "[1/3] 1_of_three: done"),
        *("[2/3] 2_of_three", "    2_of_three", "[2/3] 2_of_three: done"),
        *("[3/3] 3_of_three", "    3_of_three", "[3/3] 3_of_three: done"),
    ]


def test_one_at_a_time_each_ends_before_the_next_begins(capsys):
    running, most = [], []

    def execute(path, stream):
        running.append(path)
        most.append(len(running))
        running.remove(path)
        return path

    in_turn(PATHS, execute, Stop(), at_once=1)
    assert most == [1, 1, 1] and len(lines(capsys)) == 6


def test_what_runs_beside_a_failure_ends_and_no_further_one_begins(capsys):
    failed, done = threading.Event(), []

    def execute(path, stream):
        if path == PATHS[0]:
            failed.set()
            raise BatchError("1_of_three failed in cell 2.")
        assert path == PATHS[1] and failed.wait(30)
        done.append(path)
        return path

    with pytest.raises(BatchError, match="^1_of_three failed in cell 2.$"):
        in_turn([PATHS[1], PATHS[0], PATHS[2]], execute, Stop(), at_once=2)
    assert done == [PATHS[1]] and "[1/3] 2_of_three: done" in lines(capsys)


def test_each_that_is_interrupted_has_its_sentence():
    both, stop = threading.Barrier(2, timeout=30), Stop()

    def execute(path, stream):
        both.wait()
        stop.asked = 1
        raise Interrupted(f"{path.stem} was interrupted.")

    with pytest.raises(Interrupted, match="^1_of_three was interrupted. 2_of_three was interrupted.$"):
        in_turn(PATHS, execute, stop, at_once=2)


def test_a_signal_between_two_notebooks_stops_before_the_next(capsys):
    stop = Stop()

    def execute(path, stream):
        stop.asked = 1
        return path

    with pytest.raises(Interrupted, match="interrupted before 2_of_three; 1 of 3 notebooks are done"):
        in_turn(PATHS, execute, stop, at_once=1)
    assert len(lines(capsys)) == 2


def test_two_at_once_only_where_nothing_is_timed(monkeypatch):
    books = batch.find([])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert all(batch.times_nothing(path, {}) for path in books) and len(books) == len(studies())
    decode, trace = batch.find(["02", "04"])
    assert not batch.times_nothing(decode, {"samples": "3"})
    assert not batch.times_nothing(Path("my_own.ipynb"), {})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert not batch.times_nothing(trace, {})


def test_progress_bar_gets_lines_in_a_log_and_redraws_on_a_terminal():
    log = Printed(io.StringIO())
    log.go_on()
    log.write("one\n\r 10%\r 90%\ntwo")
    assert log.stream.getvalue() == "    one\n     10%\n     90%\n    two"
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    bar = Printed(terminal)
    bar.write("\r 10%\r")
    assert terminal.getvalue() == ""
    bar.go_on()
    bar.write(" 90%\n")
    assert terminal.getvalue() == "     10%\r     90%\n"
