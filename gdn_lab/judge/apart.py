"""Judge a kernel in a process of its own, which it may crash or hang; read what that says until it ends."""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator

PATIENCE_S = 300  # without a message, after which the process is killed
TOOL = "compute-sanitizer"


def messages(request: dict, *, before: tuple[str, ...] = (), patience: float = PATIENCE_S) -> Iterator[dict]:
    """Start a process for a request (answers.py) and yield its messages.

    before: words to start it with, such as a sanitizer's. One that ends without having answered, or is silent for
    `patience` seconds, ends with {"died": sentence, "during": what it was at, "variant": of which}.
    """
    with Child(request, before=before) as child:
        yield from child.messages(patience)


class Child:
    """A process that judges; a context manager that ends it."""

    def __init__(self, request: dict, *, before: tuple[str, ...] = ()):
        read, write = os.pipe()
        words = [*before, sys.executable, "-m", f"{__package__}.child", json.dumps(request | {"fd": write})]
        self.process = subprocess.Popen(words, pass_fds=(write,), start_new_session=True)
        os.close(write)
        self.read, self.rest, self.at = read, b"", {"variant": "", "begin": "its start"}

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_) -> None:
        os.close(self.read)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def messages(self, patience: float = PATIENCE_S) -> Iterator[dict]:
        """Yield the messages of the process until it ends."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.read, selectors.EVENT_READ)
            while True:
                if not selector.select(patience):
                    yield self._died(f"gave no answer for {patience:.0f} s")
                    return
                found = self.received()
                yield from found
                if found and found[-1].get("done"):
                    return
                if not found and self.ended:
                    yield self._died(how_it_ended(self.process.wait()))
                    return

    ended = False

    def received(self) -> list[dict]:
        """Read what has come; set `ended` if nothing will come any more."""
        data = os.read(self.read, 1 << 16)
        self.ended = not data
        *lines, self.rest = (self.rest + data).split(b"\n")
        found = [json.loads(line) for line in lines]
        for message in found:
            if "begin" in message:
                self.at = message
        return found

    def _died(self, how: str) -> dict:
        return {"died": how, "during": self.at["begin"], "variant": self.at["variant"]}


def how_it_ended(status: int) -> str:
    """Say how a process ended: of a signal, or with a status."""
    if status >= 0:
        return f"the process ended with status {status}"
    try:
        return f"the process was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"the process was ended by signal {-status}"
