"""What commands raise, and the exit status and the line on stderr that follow."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class UsageError(Exception):
    """The command names something that is not there. One sentence: what, and the choices."""


class BatchError(Exception):
    """A run could not be made or did not finish. One sentence: what happened, and where to look."""


class Interrupted(Exception):
    """The user stopped a run. One sentence: what is kept, and where."""


def exit_status(do: Callable[[], int | None], failures: tuple[type[Exception], ...] = ()) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 usage error, 130 interrupted.

    do: the command; what it returns is its status, None is 0. failures: exceptions other than BatchError and
    OutputFolderError whose message is one sentence for the user. What went wrong is printed on stderr in one line; any
    other exception is a bug and passes through.
    """
    try:
        status = do() or 0
        sys.stdout.flush()
        return status
    except UsageError as error:
        status, sentence = 2, error
    except BrokenPipeError:  # the reader of our output has gone, as `gdn-lab list | head -1` does
        discard_output()
        return 0
    except (BatchError, *failures, *_cannot_write()) as error:
        status, sentence = 1, error
    except Interrupted as error:
        status, sentence = 130, error
    except KeyboardInterrupt:
        status, sentence = 130, "interrupted"
    with suppress(OSError):  # a closed terminal
        print(f"gdn-lab: {sentence}", file=sys.stderr)
    return status


def _cannot_write() -> tuple[type[Exception], ...]:
    """(OutputFolderError,), or () where its module, which takes seconds to import, is not imported."""
    found = getattr(sys.modules.get("gdn_lab.bench.results"), "OutputFolderError", None)
    return (found,) if found else ()


def discard_output() -> None:
    """Send what is printed from now on nowhere: whoever read it, such as `head -1` or a terminal, has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class _CtrlC:
    """Raise KeyboardInterrupt, as Python does, and remember that: Python drops what is raised while a __del__ runs."""

    came = False

    def __call__(self, *_):
        self.came = True
        raise KeyboardInterrupt

    def if_it_came(self) -> None:
        if self.came:
            raise KeyboardInterrupt


ctrl_c = _CtrlC()


@contextmanager
def as_ctrl_c(handler=ctrl_c, signals=SIGNALS):
    """Have SIGTERM (timeout, Slurm, docker stop) and SIGHUP (a closed terminal) handled as Ctrl-C is.

    One that is ignored, as nohup has SIGHUP ignored, stays so. Nothing changes outside of the main thread.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in signals}
    before = {number: old for number, old in before.items() if old != signal.SIG_IGN or number == signal.SIGINT}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def ignore_signals() -> None:
    """Ignore what as_ctrl_c() handles: a second SIGTERM while Python ends would replace the exit status."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
