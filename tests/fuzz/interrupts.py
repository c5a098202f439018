"""Signals at random moments: to a process that writes rows or sweeps, and to `gdn-lab run` with a tiny notebook.

No row may be lost or cut, and run.json must say how the run ended and how many rows there are.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import nbformat
import torch

from gdn_lab import GDNShape
from gdn_lab.bench import results
from gdn_lab.bench.results import Run, load
from gdn_lab.bench.roof import Roof
from gdn_lab.studies.decode_kernels.sweep import decode_sweep
from gdn_lab.studies.prefill.sweep import prefill_sweep
from gdn_lab.studies.verify.sweep import verify_sweep

ROOT = Path(__file__).resolve().parents[2]
SHAPE = GDNShape(1, 2, 4, 4)
QUICK = dict(
    device="cpu", samples=1, roof=Roof(10.0, 9.0, 11.0, 20, 1 << 20, "of no device"), progress=False, variants=["torch"]
)
BEGUN, ROW = b"b", b"r"  # what the process says through its pipe
INTERRUPTED, LATE = 130, 131  # its exit statuses: in the run; after it
PATIENCE_S = 180  # of which a kernel that does not answer takes 30; importing torch may take as long on a busy machine


# ---- a process that measures ----------------------------------------------------------------------------------------


def _append(run: Run) -> None:
    for number in range(40):
        run.append({"status": "fact", "phase": "decode", "number": number, "text": "x" * (number * 997 % 5000)})


WORK = {
    "rows": _append,
    "decode sweep": lambda run: decode_sweep(SHAPE, [1, 2], run=run, **QUICK),
    "verify sweep": lambda run: verify_sweep(SHAPE, [1], [2], run=run, **QUICK),
    "prefill sweep": lambda run: prefill_sweep(SHAPE, [(1, 8)], run=run, **QUICK),
}


class Process:
    """A fork that makes a run under `root` and works; its pipe tells when the run has begun and each row it has kept.

    A handler turns `signals` into KeyboardInterrupt, as Python does with SIGINT.
    """

    def __init__(self, root: Path, work, signals):
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            os._exit(self._main(root, work, signals, writing))
        os.close(writing)
        self.pipe, self.began = reading, time.monotonic()

    @staticmethod
    def _main(root, work, signals, pipe) -> int:
        for number in signals:
            signal.signal(number, signal.default_int_handler)
        status = LATE
        try:
            with Run.create("tiny", {}, root=root) as run:
                append = run.append

                def told(row):
                    append(row)
                    os.write(pipe, ROW)

                run.append = told
                os.write(pipe, BEGUN)
                status = INTERRUPTED
                work(run)
                status = LATE
            for number in signals:
                signal.signal(number, signal.SIG_IGN)
            return 0
        except KeyboardInterrupt:
            return status

    def wait_until_begun(self) -> None:
        assert os.read(self.pipe, 1) == BEGUN

    def end(self) -> tuple[int, int]:
        """Wait for the end; return (exit status, rows that were told)."""
        told = b""
        while part := os.read(self.pipe, 4096):
            told += part
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), told.count(ROW)


@contextlib.contextmanager
def signals():
    """Yield one_case() for the kind "signals"; fork from a process with one thread."""
    threads, slow = torch.get_num_threads(), {name: getattr(results, name) for name in ("environment", "kernel_hashes")}
    torch.set_num_threads(1)
    for name, function in slow.items():  # which take half a second, before the run has begun
        setattr(results, name, functools.cache(function))
        getattr(results, name)()
    with tempfile.TemporaryDirectory() as folder:
        durations = {name: _duration(Path(folder) / "first", work) for name, work in WORK.items()}

        def one_case(seed: int, number: int) -> str:
            random = Random(f"{seed}:{number}")
            name = random.choice(list(WORK))
            return _one_signal(random, Path(folder) / str(number), name, durations[name])

        yield one_case
    torch.set_num_threads(threads)
    for name, function in slow.items():
        setattr(results, name, function)


def _duration(root: Path, work) -> float:
    """Seconds that the work takes after its run has begun, the longer of two."""
    seconds = []
    for _ in range(2):
        process = Process(root, work, ())
        process.wait_until_begun()
        began = time.monotonic()
        assert process.end()[0] == 0
        seconds.append(time.monotonic() - began)
    return max(seconds)


def _one_signal(random: Random, root: Path, name: str, duration: float) -> str:
    sent = random.choice([signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
    process = Process(root, WORK[name], (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    process.wait_until_begun()
    time.sleep(random.uniform(0, duration))
    os.kill(process.pid, sent)
    status, told = process.end()
    (folder,) = (path for path in root.iterdir() if path.name != "latest")
    info, rows = load(folder)
    assert told <= len(rows) <= told + 1, f"{told} rows were kept and {len(rows)} are there"
    assert (root / "latest").resolve() == folder.resolve()
    if sent == signal.SIGKILL:
        assert status in (-signal.SIGKILL, 0)
        return f"{name}, SIGKILL"
    assert (
        info["status"] in {0: ("complete",), INTERRUPTED: ("interrupted",), LATE: ("complete", "interrupted")}[status]
    ), f"exit status {status}, run.json says {info['status']}"
    assert info["rows"] == len(rows), f"run.json says {info['rows']} rows, {len(rows)} are there"
    return f"{name}, {sent.name}"


# ---- gdn-lab run ----------------------------------------------------------------------------------------------------

ROWS = 60
CELLS = (
    "tp: int = 8  # GPUs",
    "import time\nfrom gdn_lab.cli import notebook\nfrom gdn_lab.studies import study\n"
    'run = notebook.begin(study("01"), globals())',
    f"for number in range({ROWS}):\n    run.append(dict(status='fact', phase='decode', number=number))\n"
    "    time.sleep(0.01)",
    "total = sum(range(1000))",
    "time.sleep(0.3)",
    "run.finish()",
)
SENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COMMAND_S = 14  # about as long as it takes on two busy cores


@contextlib.contextmanager
def commands():
    """Yield one_case() for the kind "commands"."""
    with tempfile.TemporaryDirectory() as folder:
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
        book.cells[0].metadata["tags"] = ["parameters"]
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        tiny = Path(folder) / "tiny.ipynb"
        nbformat.write(book, tiny)
        yield lambda seed, number: _one_command(Random(f"{seed}:{number}"), tiny, Path(folder) / str(number))


def _one_command(random: Random, tiny: Path, root: Path) -> str:
    sent = random.choice(SENT)
    command = [sys.executable, "-m", "gdn_lab", "run", str(tiny), "--runs", str(root)]
    environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    _wait_for_the_run(process, root, random)
    process.send_signal(sent)
    if twice := random.random() < 0.2:
        time.sleep(random.uniform(0, 1))
        process.send_signal(sent)
    try:
        printed, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # prints where each thread is, with PYTHONFAULTHANDLER
        raise AssertionError(f"{sent.name}: no end in {PATIENCE_S} s\n{process.communicate()[0]}") from None
    assert "Traceback" not in printed and "ZMQ" not in printed, printed
    assert process.returncode in (0, INTERRUPTED), f"{sent.name}: exit status {process.returncode}\n{printed}"
    folders = list(root.glob("2*"))
    for folder in folders:
        (_judge_complete if process.returncode == 0 else _judge)(folder, printed)
    if process.returncode == 0:
        assert len(folders) == 1 and (root / "index.html").exists(), printed
        return "after the last cell"
    return f"{sent.name}{' twice' * twice}{'' if folders else ', before the run'}"


def _wait_for_the_run(process, root: Path, random: Random) -> None:
    """Wait until a random moment, mostly of the cells that measure, sometimes before or after them."""
    if random.random() < 0.2:
        return time.sleep(random.uniform(0.5, COMMAND_S))
    until = time.monotonic() + PATIENCE_S
    while not list(root.glob("2*/run.json")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1.5))


def _judge_complete(folder: Path, printed: str) -> None:
    info, rows = load(folder)
    assert info["status"] == "complete" and info["rows"] == len(rows) == ROWS, f"{info['status']}\n{printed}"
    assert {path.name for path in folder.glob("tiny*")} == {"tiny.ipynb", "tiny.html"}, printed
    assert "tiny: done in" in printed and "Read " in printed, printed


def _judge(folder: Path, printed: str) -> None:
    if not (folder / "run.json").exists():  # begin() had not come yet
        assert not (folder / "rows.jsonl").exists()
        return
    info, rows = load(folder)
    assert info["status"] == "interrupted", f"run.json says {info['status']}\n{printed}"
    assert info["rows"] == len(rows) and [row["number"] for row in rows] == list(range(len(rows))), printed
    books = [path.name for path in folder.glob("*.ipynb")]
    assert books == ["tiny.interrupted.ipynb"], f"{books}\n{printed}"
    nbformat.read(folder / books[0], as_version=4)
    assert "interrupted" in printed and f"{len(rows)} row" in printed, printed
