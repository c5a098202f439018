"""Processes of ranks: values in order, one sentence when one fails, none left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rank_functions
import torch
from forked_kernels import python_in

from gdn_lab.engine import ranks

TESTS = Path(__file__).parents[1]
CPU = {"device": "cpu"}


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(folder: Path, count: int) -> list[int]:
    """Process ids that sleeping ranks leave, once all have."""
    deadline = time.monotonic() + 180
    while len(found := [path for path in folder.glob("pid-*") if path.read_text()]) < count:
        assert time.monotonic() < deadline, "ranks do not start"
        time.sleep(0.05)
    return [int(path.read_text()) for path in found]


def assert_ended(processes: list[int]):
    deadline = time.monotonic() + 10
    while any(map(alive, processes)):
        assert time.monotonic() < deadline, "a rank is left behind"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def of_two():
    """What both() returned on each of two ranks."""
    return ranks.start(2, rank_functions.both, **CPU)


@pytest.fixture(scope="module")
def of_one(folder_of_kernels):
    """What both() returned on a rank that is alone."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        python_in(folder_of_kernels, monkeypatch)
        return ranks.start(1, rank_functions.both, **CPU)


def test_two_ranks_with_gloo(of_two):
    for rank, ((name, own, total, gathered, words), _) in enumerate(of_two):
        assert (name, own, words) == ("gloo", rank, "from 1")
        assert torch.equal(total, torch.full((2, 4), 3.0, dtype=torch.bfloat16))
        assert torch.equal(gathered, torch.tensor([[0.0, 1, 10, 11], [2, 3, 12, 13]]))


def test_a_variant_is_connected_by_name(of_two, of_one):
    sentence = "communicator: 'nccl' is not one of gloo and fastest, which are here"
    assert [connected for _, connected in of_two] == [({"gloo": "gloo", "fastest": "gloo"}, sentence)] * 2
    assert [connected for _, connected in of_one] == [({"gloo": "alone", "fastest": "alone"}, sentence)]


def test_one_rank_is_alone(of_one):
    [((name, _, total, _, words), _)] = of_one
    assert (name, words) == ("alone", "from 0") and (total == 1).all()


def test_a_rank_that_raises_ends_all(forked_python):
    lines = []
    message = r"rank 1 of 2 failed; the other ranks were stopped\. .*: ValueError: x: expected less, got more$"
    with pytest.raises(ranks.RankError, match=message):
        ranks.start(2, rank_functions.raising, **CPU, on_line=lines.append)
    assert "rank 0 works" in lines and "rank 1 works" not in lines


def test_a_rank_that_is_killed_ends_all(forked_python):
    message = r"rank 0 of 2 was killed by SIGKILL; the other ranks were stopped\. Last line of rank 0: about to add$"
    with pytest.raises(ranks.RankError, match=message):
        ranks.start(2, rank_functions.killed, **CPU)


def test_ranks_that_take_too_long_are_stopped(tmp_path, forked_python):
    with pytest.raises(ranks.RankError, match="ranks 0, 1 of 2 had not ended after 1.5 s and were stopped"):
        ranks.start(2, rank_functions.sleeping, str(tmp_path), **CPU, timeout_s=1.5)


@pytest.mark.parametrize(
    "sent, code",
    [
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.exhaustive),  # a server's ranks get one in make test, too
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_no_rank_outlives_the_process_that_started_it(tmp_path, sent, code):
    """Ctrl-C, which a rank's own session keeps away from it, and the end of the starting process."""
    words = f"ranks.start(2, rank_functions.sleeping, {str(tmp_path)!r}, device='cpu')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, "-c", f"import rank_functions; from gdn_lab.engine import ranks; {words}"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as starter:
        try:
            processes = pids(tmp_path, 2)
            assert all(map(alive, processes))
            starter.send_signal(sent)
            errors = starter.communicate(timeout=60)[1]
        finally:
            starter.kill()  # or a failure would wait for it
    assert ("KeyboardInterrupt" in errors) == (sent is signal.SIGINT)
    assert starter.returncode in (code, -sent)
    assert_ended(processes)


def test_under_torchrun_the_processes_are_torchruns(forked_python):
    words = "print([value[1:3:2] + value[4:] for value in ranks.start(2, rank_functions.collectives, device='cpu')])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    script = f"import rank_functions; from gdn_lab.engine import ranks; {words}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command += [sys.executable, "-c", script]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.stdout.count("[(0, 'from 1'), (1, 'from 1')]") == 2, run.stderr[-2000:]


def test_refusals():
    with pytest.raises(ValueError, match="ranks: expected a positive int, got 0"):
        ranks.start(0, rank_functions.collectives)
    with pytest.raises(ValueError, match=r"ranks: this machine has \d+ GPUs, got 99; each rank needs one of its own"):
        ranks.start(99, rank_functions.collectives, device="cuda")
    with pytest.raises(ValueError, match="function: expected one of a module"):
        ranks.start(1, lambda communicator: None, device="cpu")
