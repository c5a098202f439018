"""Ctrl-C, SIGTERM, SIGHUP and readers that go away: what a run leaves behind, on tiny notebooks."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import nbformat
import pytest

from gdn_lab.cli import errors, execute, in_turn, stop
from gdn_lab.cli import run as batch
from gdn_lab.cli.errors import Interrupted
from gdn_lab.cli.main import main

# What bench.results.Run leaves of a run that goes on, without the seconds that importing torch takes.
RUN = """
import os, pathlib, signal, time
folder = pathlib.Path(os.environ["GDN_LAB_RUN_FOLDER"])
(folder / "run.json").write_text('{"status": "running", "start_utc": "2026-11-28T08:15:00Z"}')
(folder / "rows.jsonl").write_text('{"status": "fact", "phase": "decode"}\\n')
"""
DEAF = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
NEVER = "raise SystemError('a cell after the interrupt ran')"


@pytest.fixture
def run_cells(tmp_path, capfd):
    """run_cells(*cells): runs a notebook of them; returns (exit status, files of the run, run.json, stdout, stderr)."""

    def do(*cells):
        # The cells send signals to this process, which must have a handler for them.
        assert threading.current_thread() is threading.main_thread()
        node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(node, tmp_path / "tiny.ipynb")
        runs = tmp_path / "runs"
        status = main(["run", str(tmp_path / "tiny.ipynb"), "--runs", str(runs)])
        (folder,) = [path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()]
        about = folder / "run.json"
        info = json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}
        return status, {path.name: path for path in folder.iterdir()}, info, *capfd.readouterr()

    return do


def send(number: str, then: str = "time.sleep(60)") -> str:
    return f"os.kill(os.getppid(), signal.{number})\n{then}"


def interrupted(status, files, info, err):
    assert status == 130
    assert {"tiny.interrupted.ipynb", "tiny.interrupted.html", "rows.jsonl", "run.json"} == set(files)
    nbformat.validate(nbformat.read(files["tiny.interrupted.ipynb"], as_version=4))
    assert info["status"] == "interrupted" and info["rows"] == 1 and info["end_utc"]
    assert "gdn-lab: tiny was interrupted; 1 row kept in" in err and "the page so far is tiny.interrupted.html" in err
    assert "Traceback" not in err and "ZMQ" not in err and "KeyboardInterrupt" not in err


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_in_a_cell_ends_it(run_cells, number):
    before = signal.getsignal(getattr(signal, number))
    began = time.monotonic()
    status, files, info, out, err = run_cells(RUN + send(number), NEVER)
    interrupted(status, files, info, err)
    assert "Interrupted: no further cell begins" in out and time.monotonic() - began < 55
    assert signal.getsignal(getattr(signal, number)) == before


def test_a_signal_that_a_cell_swallows_ends_the_run_before_the_next_cell(run_cells):
    status, files, info, _, err = run_cells(RUN + DEAF + send("SIGTERM", "time.sleep(0.3)"), NEVER)
    interrupted(status, files, info, err)


def test_a_second_signal_ends_a_cell_that_does_not_listen(run_cells):
    cell = RUN + DEAF + send("SIGINT", "time.sleep(0.3)\n") + send("SIGINT")
    status, files, info, _, err = run_cells(cell)
    interrupted(status, files, info, err)


def test_a_cell_that_does_not_listen_ends_in_time(run_cells, monkeypatch):
    """So does one whose answer was lost: the kernel is idle, and nobody else would end the run."""
    monkeypatch.setattr(stop, "GIVE_UP_S", 1)
    status, files, info, _, err = run_cells(RUN + DEAF + send("SIGTERM"))
    interrupted(status, files, info, err)


def test_a_kernel_that_is_killed_leaves_a_failed_run(run_cells):
    status, files, info, _, err = run_cells(RUN + "os.kill(os.getpid(), signal.SIGKILL)")
    assert status == 1 and "tiny failed: DeadKernelError: Kernel died; 1 row kept in" in err
    assert "tiny.failed.ipynb" in files and info["status"] == "failed" and info["rows"] == 1


def test_a_good_run_interrupts_no_kernel_and_ends_what_its_notebook_did_not_finish(run_cells, monkeypatch):
    sent = []
    monkeypatch.setattr(stop.Cells, "signal", lambda self, number: sent.append(number))
    status, files, info, _, err = run_cells(RUN)
    assert status == 0 and sent == [] and err == ""
    assert "tiny.ipynb" in files and info["status"] == "complete" and info["rows"] == 1


@pytest.mark.parametrize("write", ["pages.html", "index.write_index"])
def test_a_signal_after_the_last_cell_changes_nothing(run_cells, monkeypatch, write):
    """Everything that was asked for is done: the pages are written, and the run is complete."""
    module, name = write.split(".")
    module = importlib.import_module(f"gdn_lab.cli.{module}")
    before = getattr(module, name)

    def late(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return before(*arguments)

    monkeypatch.setattr(module, name, late)
    status, files, info, out, err = run_cells(RUN)
    assert status == 0 and err == "" and info["status"] == "complete" and "tiny: done in" in out
    assert {"tiny.ipynb", "tiny.html", "rows.jsonl", "run.json"} == set(files)


def test_a_cell_that_missed_the_first_interrupt_gets_another(monkeypatch):
    sent = []
    monkeypatch.setattr(stop.Cells, "signal", lambda self, number: sent.append(number))
    monkeypatch.setattr(stop, "RESEND_S", 0.01)
    handler = stop.Stop()
    with handler.of_notebook() as cells:
        cells.begins()
        handler()
        handler.later[0].join()
        handler.later[1].cancel()
        assert sent == [signal.SIGINT, signal.SIGINT]
        cells.ended()
        with pytest.raises(Interrupted):
            cells.begins()


def test_only_a_kernel_in_a_cell_is_interrupted_and_a_second_signal_kills_all(monkeypatch):
    sent = []
    monkeypatch.setattr(stop.Cells, "signal", lambda self, number: sent.append((self.kernel, number)))
    handler = stop.Stop()
    with handler.of_notebook() as one, handler.of_notebook() as other:
        one.kernel, other.kernel = "one", "other"
        one.begins()
        handler()
        assert sent == [("one", signal.SIGINT)]
        handler()
        assert sent[1:] == [("one", signal.SIGKILL), ("other", signal.SIGKILL)]
    for timer in handler.later:
        timer.cancel()


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop.Stop().on_signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert isinstance(signal.getsignal(signal.SIGTERM), stop.Stop)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_notebook_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(UnicodeEncodeError):
        execute._WholeFiles().write("\ud800", str(path))
    assert path.read_text(encoding="utf-8") == "{}" and [each.name for each in tmp_path.iterdir()] == ["a.ipynb"]


# ---- readers that go away


def test_head_is_no_failure():
    command = f"{sys.executable} -m gdn_lab list | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=batch.ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0" and done.stderr == ""


def test_a_reader_that_goes_away_is_no_failure_of_a_command_whose_failures_are_those_of_files(monkeypatch):
    def gone():
        raise BrokenPipeError

    monkeypatch.setattr(errors, "discard_output", lambda: None)
    assert errors.exit_status(gone, (ValueError, OSError)) == 0


def test_a_run_goes_on_when_nobody_reads_what_it_prints(monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        flush = isatty = lambda self: None

    discarded = []
    monkeypatch.setattr(in_turn, "discard_output", lambda: discarded.append("notebook"))
    monkeypatch.setattr(batch, "discard_output", lambda: discarded.append("say"))
    monkeypatch.setattr(sys, "stdout", Gone())
    printed = in_turn.Printed(sys.stdout)
    printed.go_on()
    printed.write("a line\n")
    batch.say("a line")
    assert discarded == ["notebook", "say"]


def test_what_is_printed_after_the_reader_has_gone_goes_nowhere():
    code = (
        "import os, sys; from gdn_lab.cli import errors, run\nsys.stdin.read(); run.say('lost'); run.say('lost'); "
        "print('kept', file=sys.stderr)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=batch.ROOT, text=True, stdin=-1, stdout=-1, stderr=-1, env=os.environ
    )
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == "kept\n" and process.wait() == 0


def test_a_locale_without_the_letter_gets_an_escape():
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    code = "from gdn_lab.cli.main import main; import sys; main(['list', '99']); print('5 \\xb5s')"
    done = subprocess.run([sys.executable, "-c", code], cwd=batch.ROOT, env=plain, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "5 \\xb5s\n"
    assert done.stderr.startswith("gdn-lab: there is no notebook '99'")


def test_ctrl_c_that_python_drops_ends_the_command(monkeypatch, tmp_path, capfd):
    """An exception in a __del__ is printed and forgotten, and imports run many of them."""

    class Dropping:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # the handler runs here

    monkeypatch.setattr(batch, "gpu_unseen", lambda: Dropping() and None)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    (tmp_path / "tiny.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook()))
    assert main(["run", str(tmp_path / "tiny.ipynb"), "--runs", str(tmp_path / "runs")]) == 130
    assert capfd.readouterr().err == "gdn-lab: interrupted\n"
    assert not list((tmp_path / "runs").glob("2*"))


def test_a_signal_while_python_ends_does_not_change_the_exit_status():
    """As a second SIGTERM does, when the sentence is printed already."""
    late = "import atexit, os, signal, sys, time; from gdn_lab.cli.main import main\n"
    late += "def again(): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1)\n"
    late += "atexit.register(again); sys.argv = ['gdn-lab', 'list', 'none-of-them']; sys.exit(main())"
    ended = subprocess.run([sys.executable, "-c", late], cwd=batch.ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("gdn-lab: ")
