"""Kernels and Python programs, forked from one process that has imported what every notebook imports.

That takes four of the eight seconds of a small notebook, and two of the three of a rank. A forked kernel is otherwise a
new process: it has its own session, and the environment, folder and files of the process that jupyter_client started
for it. That one is a relay:

    jupyter_client  ->  relay (this file, run)  ->  guardian (fork of the server)  ->  kernel (fork of the guardian)

The relay passes signals on and ends as the kernel does. Where it is killed, the guardian kills the kernel; where
jupyter_client's process is gone, it ends. The same for `python -m` and `python -c`, which import gdn_lab anew.
"""

import contextlib
import fcntl
import json
import os
import random
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import types
from pathlib import Path

TESTS = Path(__file__).parent
SERVE = "import forked_kernels, sys; forked_kernels.serve(int(sys.argv[1]))"
PASSED_ON = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def forking():
    """Have a process that forks; yield a folder for JUPYTER_PATH, whose kernels "forked" and "python3" are forked.

    And a program "python" in it, which takes -m or -c.
    """
    with tempfile.TemporaryDirectory() as folder:
        at, words = f"{folder}/socket", [sys.executable, "-S", str(TESTS / "forked_kernels.py")]
        spec = {"display_name": "forked", "language": "python", "argv": [*words, at, "-f", "{connection_file}"]}
        for name in ("forked", "python3"):
            kernel = Path(folder) / "kernels" / name
            kernel.mkdir(parents=True)
            (kernel / "kernel.json").write_text(json.dumps(spec))
        python = Path(folder) / "python"
        python.write_text(f'#!/bin/sh\nexec {shlex.join([*words, at])} "$@"\n')
        python.chmod(0o755)
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
    """Have jupyter_client look into a folder of forking(), and return a kernel's name; without one, the usual."""
    if folder is None:
        return "python3"
    monkeypatch.setenv("JUPYTER_PATH", folder)
    return "forked"


def python_in(folder: str | None, monkeypatch) -> None:
    """Have what this process starts by sys.executable forked by a folder of forking(); without one, started."""
    if folder is not None:
        monkeypatch.setattr(sys, "executable", f"{folder}/python")


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
    words, fds, _, _ = socket.recv_fds(relay, 1 << 20, 100)
    while not words.endswith(b"\n"):
        words += relay.recv(1 << 20)
    if (kernel := os.fork()) == 0:
        relay.close()
        become(json.loads(words), fds)
    asked = None
    while (ended := os.waitpid(kernel, os.WNOHANG))[0] == 0:
        if relay in select.select([relay], [], [], 0.02)[0]:
            asked = relay.recv(1)
            with contextlib.suppress(ProcessLookupError):  # before it has a session
                os.killpg(kernel, asked[0] if asked else signal.SIGKILL)
    if asked != b"":
        relay.sendall(str(os.waitstatus_to_exitcode(ended[1])).encode())
    os._exit(0)


def become(asked: dict, fds: list[int]) -> None:
    """Be the process that the relay was started to be. Does not return."""
    os.setsid()
    apart = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200) for fd in fds]
    os.closerange(3, 200)
    for fd, number in zip(apart, asked["files"], strict=True):
        os.dup2(fd, number)
        os.close(fd)
    of_server = ["", *os.environ["PYTHONPATH"].split(os.pathsep)]
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    random.seed()
    code = 1
    try:
        be_python(asked, of_server) if asked["words"][0] in ("-m", "-c") else be_kernel(asked["words"])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def be_kernel(words: list[str]) -> None:
    from ipykernel.kernelapp import IPKernelApp

    sys.argv = ["ipykernel_launcher", *words]
    sys.path.remove(str(TESTS))
    IPKernelApp.launch_instance(words)


def be_python(asked: dict, of_server: list[str]) -> None:
    """`python -m module words` or `python -c code words`, as if started by the process that started the relay.

    of_server: what sys.path begins with here, and does not there.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "gdn_lab"]:
        del sys.modules[name]
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path = [os.getcwd(), *given, *(path for path in sys.path if path not in of_server)]
    os.getppid = lambda: asked["parent"]
    # New ones: those of the server know whether its own files can be sought.
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")
    sys.stdout.reconfigure(write_through=bool(os.environ.get("PYTHONUNBUFFERED")))
    how, what, *words = asked["words"]
    sys.argv = [how, *words]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(sys.modules["__main__"]))


# ---- the process that is started


def inherited() -> list[int]:
    """The files that this process was started with."""
    found = []
    for number in sorted(map(int, os.listdir("/dev/fd"))):
        with contextlib.suppress(OSError):  # the folder's own
            found += [number] if os.get_inheritable(number) else []
    return found


def relay(at: str, words: list[str]) -> int:
    """Ask for a process with these words, pass on signals, and return how it ended."""
    parent, files = os.getppid(), inherited()
    server = socket.socket(socket.AF_UNIX)
    server.connect(at)
    asked = {"words": words, "environment": dict(os.environ), "folder": os.getcwd(), "files": files, "parent": parent}
    socket.send_fds(server, [json.dumps(asked).encode() + b"\n"], files)
    for number in files[3:]:
        os.close(number)
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: server.sendall(bytes([number])))
    while not select.select([server], [], [], 1)[0]:
        if os.getppid() != parent:
            return 1
    return int(server.recv(100) or 1)


if __name__ == "__main__":
    code = relay(sys.argv[1], sys.argv[2:])
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
