"""Kernels for the tests of notebooks, forked from one process that has imported what every notebook imports.

That takes four of the eight seconds of a small notebook. A forked kernel is otherwise a new process: it has its own
session, and the environment, folder and output of the process that jupyter_client started for it. That one is a relay:

    jupyter_client  ->  relay (this file, run)  ->  guardian (fork of the server)  ->  kernel (fork of the guardian)

The relay passes signals on and ends as the kernel does. Where it is killed, the guardian kills the kernel; where
jupyter_client's process is gone, it ends.
"""

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
SERVE = "import forked_kernels, sys; forked_kernels.serve(int(sys.argv[1]))"
PASSED_ON = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def forking():
    """Have a process that forks kernels; yield a folder for JUPYTER_PATH, with a kernel named "forked"."""
    with tempfile.TemporaryDirectory() as folder:
        at, kernel = f"{folder}/socket", Path(folder) / "kernels" / "forked"
        spec = {"display_name": "forked", "language": "python"}
        spec["argv"] = [sys.executable, "-S", str(TESTS / "forked_kernels.py"), at, "-f", "{connection_file}"]
        kernel.mkdir(parents=True)
        (kernel / "kernel.json").write_text(json.dumps(spec))
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "JPY_PARENT_PID": "1"}  # ipykernel then watches no parent
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(at)
            listener.listen()
            command, fd = [sys.executable, "-c", SERVE, str(listener.fileno())], listener.fileno()
            server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, pass_fds=[fd])
        with server:  # closes its standard input, and waits for it
            yield folder


def kernel_in(folder: str | None, monkeypatch) -> str:
    """Have jupyter_client look into a folder of forking(), and return its kernel's name; without one, the usual."""
    if folder is None:
        return "python3"
    monkeypatch.setenv("JUPYTER_PATH", folder)
    return "forked"


# ---- the process that forks


def serve(fd: int) -> None:
    """Fork a guardian for each relay that connects, until standard input is closed."""
    import ipykernel.kernelapp  # noqa: F401
    import torch  # noqa: F401

    from gdn_lab.cli import notebook  # noqa: F401

    listener, guardians = socket.socket(fileno=fd), []
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        relay, _ = listener.accept()
        guardians.append(os.fork())
        if guardians[-1] == 0:
            listener.close()
            guard(relay)
        relay.close()
    for guardian in guardians:
        os.waitpid(guardian, 0)


def guard(relay: socket.socket) -> None:
    """Fork a kernel as the relay asks, pass on its signals, and answer with how the kernel ended."""
    words, fds, _, _ = socket.recv_fds(relay, 1 << 20, 3)
    while not words.endswith(b"\n"):
        words += relay.recv(1 << 20)
    if (kernel := os.fork()) == 0:
        relay.close()
        become_kernel(json.loads(words), fds)
    asked = None
    while (ended := os.waitpid(kernel, os.WNOHANG))[0] == 0:
        if relay in select.select([relay], [], [], 0.02)[0]:
            asked = relay.recv(1)
            with contextlib.suppress(ProcessLookupError):  # before it has a session
                os.killpg(kernel, asked[0] if asked else signal.SIGKILL)
    if asked != b"":
        relay.sendall(str(os.waitstatus_to_exitcode(ended[1])).encode())
    os._exit(0)


def become_kernel(asked: dict, fds: list[int]) -> None:
    """Be the kernel that the relay was started to be. Does not return."""
    os.setsid()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    from ipykernel.kernelapp import IPKernelApp

    random.seed()
    sys.argv = ["ipykernel_launcher", *asked["words"]]
    sys.path.remove(str(TESTS))
    code = 1
    try:
        IPKernelApp.launch_instance(asked["words"])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ---- the process that jupyter_client starts


def relay(at: str, words: list[str]) -> int:
    """Ask for a kernel with these words, pass on signals, and return how it ended."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(at)
    asked = {"words": words, "environment": dict(os.environ), "folder": os.getcwd()}
    socket.send_fds(server, [json.dumps(asked).encode() + b"\n"], [0, 1, 2])
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: server.sendall(bytes([number])))
    parent = os.getppid()
    while not select.select([server], [], [], 1)[0]:
        if os.getppid() != parent:
            return 1
    return int(server.recv(100) or 1)


if __name__ == "__main__":
    code = relay(sys.argv[1], sys.argv[2:])
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
