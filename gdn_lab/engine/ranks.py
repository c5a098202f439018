"""Start a process for each tensor-parallel rank, and end all of them when one fails.

values = ranks.start(2, measure, "qwen3.5-27b")     # measure(communicator, "qwen3.5-27b") in two processes

Under torchrun, which has started the processes already, start() calls the function in this one.
"""

import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from .rank_process import Call, failures, folder_results, run_rank

KEPT_LINES = 40
INTERRUPT_S = 10.0  # after which ranks that Ctrl-C did not end, as a busy machine may need, are killed
GRACE_S = 0.5  # within which other ranks fail because one did
# No multicast, in torch's symmetric memory and in NCCL; gloo talks to this host alone.
ENVIRONMENT = {
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NCCL_NVLS_ENABLE": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONUNBUFFERED": "1",
}


class RankError(RuntimeError):
    """A rank failed, or took too long: one sentence that names it and has its last line. The others were ended."""


def start(count: int, function: Callable, *arguments, device: str = "auto", timeout_s=None, on_line=print) -> list:
    """Call function(communicator, *arguments) in `count` processes and return each rank's value, in the order of ranks.

    function, arguments and values are pickled: the function is one of a module. The communicator is Alone, or a Grouped
    of all ranks. device: "cpu", "cuda" (rank i gets GPU i), or "auto": "cuda" if there is one. on_line: called with
    each line that rank 0 prints. RankError, one sentence: a rank raised, was killed, or ran longer than timeout_s. No
    process outlives the call, also after Ctrl-C and when this process is killed.
    ValueError: a count that this machine has no GPUs for, or that torchrun was not started with.
    """
    device = _device(count, device)
    call = Call(function, arguments, device)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if count != int(os.environ["WORLD_SIZE"]):
            raise ValueError(f"ranks: torchrun started {os.environ['WORLD_SIZE']} processes, got {count}")
        os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
        return run_rank(call, gather=True)
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        return _Processes(count, call, Path(folder), on_line).values(timeout_s)


def _device(count: int, device: str) -> str:
    import torch

    gpus = torch.cuda.device_count()
    if type(count) is not int or count < 1:
        raise ValueError(f"ranks: expected a positive int, got {count!r}")
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and count > gpus:
        raise ValueError(f"ranks: this machine has {gpus} GPUs, got {count}; each rank needs one of its own")
    return device


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class _Processes:
    """The processes of one start(). Each leads a session of its own, so Ctrl-C reaches the starting process alone."""

    def __init__(self, count: int, call: Call, folder: Path, on_line: Callable):
        self.count, self.call, self.folder, self.on_line = count, call, folder, on_line
        self.lines = [deque(maxlen=KEPT_LINES) for _ in range(count)]
        self.ended: queue.Queue[int] = queue.Queue()
        self.processes: list[subprocess.Popen] = []
        self.readers: list[threading.Thread] = []

    def values(self, timeout_s: float | None) -> list:
        """Run to the end and return what the ranks returned."""
        try:
            (self.folder / "call.pickle").write_bytes(pickle.dumps(self.call))
        except (pickle.PicklingError, AttributeError) as error:
            raise ValueError(f"function: expected one of a module, with arguments that pickle: {error}") from None
        try:
            port = _free_port()
            for rank in range(self.count):
                self._start(rank, port)
            self._wait(None if timeout_s is None else time.monotonic() + timeout_s, timeout_s)
        except KeyboardInterrupt:
            self._interrupt()
            raise
        finally:
            self._kill()
        return folder_results(self.folder, self.count)

    def _start(self, rank: int, port: int) -> None:
        environment = os.environ | ENVIRONMENT
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        environment |= {"WORLD_SIZE": str(self.count), "LOCAL_WORLD_SIZE": str(self.count)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        process = subprocess.Popen(
            [sys.executable, "-m", "gdn_lab.engine.rank_process", str(self.folder), str(os.getpid())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self.processes.append(process)
        self.readers.append(threading.Thread(target=self._read, args=(rank, process), daemon=True))
        self.readers[-1].start()
        threading.Thread(target=self._notice, args=(rank, process), daemon=True).start()

    def _read(self, rank: int, process: subprocess.Popen) -> None:
        for line in process.stdout:
            if line.strip():
                self.lines[rank].append(line.strip())
            if rank == 0:
                self.on_line(line.rstrip("\n"))

    def _notice(self, rank: int, process: subprocess.Popen) -> None:
        process.wait()
        self.ended.put(rank)

    def _wait(self, deadline: float | None, timeout_s: float | None) -> None:
        for _ in range(self.count):
            try:
                rank = self.ended.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise RankError(self._too_long(timeout_s)) from None
            if self.processes[rank].returncode:
                raise RankError(self._failure())

    def _too_long(self, timeout_s: float) -> str:
        late = [rank for rank, process in enumerate(self.processes) if process.poll() is None]
        which = f"rank {late[0]}" if len(late) == 1 else f"ranks {', '.join(map(str, late))}"
        return f"{which} of {self.count} had not ended after {timeout_s:g} s and were stopped{self._last(late[0])}"

    def _failure(self) -> str:
        """Which rank failed first: one that was killed, else the first to say so."""
        end = time.monotonic() + GRACE_S
        while time.monotonic() < end and any(process.poll() is None for process in self.processes):
            try:
                self.ended.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
        codes = {rank: process.poll() for rank, process in enumerate(self.processes)}
        dead = [rank for rank, code in codes.items() if code]
        killed = [rank for rank in dead if codes[rank] < 0]
        times = failures(self.folder)
        rank = min(killed or dead, key=lambda rank: times.get(rank, float("inf")))
        how = f"was killed by {signal.Signals(-codes[rank]).name}" if codes[rank] < 0 else "failed"
        others = "" if self.count == 1 else "; the other ranks were stopped"
        return f"rank {rank} of {self.count} {how}{others}{self._last(rank)}"

    def _last(self, rank: int) -> str:
        self.readers[rank].join(GRACE_S)
        return f". Last line of rank {rank}: {self.lines[rank][-1]}" if self.lines[rank] else ""

    def _interrupt(self) -> None:
        """Pass Ctrl-C on, and give the ranks time to write what they have."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        end = time.monotonic() + INTERRUPT_S
        while time.monotonic() < end and any(process.poll() is None for process in self.processes):
            time.sleep(0.01)

    def _kill(self) -> None:
        """End what still runs, with what it started."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for process in self.processes:
            process.wait()
