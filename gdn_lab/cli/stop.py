"""Ctrl-C, SIGTERM or SIGHUP while notebooks run: the first stops their cells, a second their kernels.

The first interrupts every kernel that is in a cell, which closes its run, and no further cell begins. The second, or
GIVE_UP_S without an answer, kills the kernels. Nothing is raised where the signal comes, which may be in the middle of
anything: what is being written is written whole, and a notebook whose cells have all ended is complete.
"""

import signal
import threading
from contextlib import contextmanager, suppress

from .errors import Interrupted, as_ctrl_c
from .run import say

RESEND_S = 1.5  # a kernel ignores Ctrl-C until it has begun the cell: one that is still in it then gets another
GIVE_UP_S = 30  # a kernel that is interrupted while it answers never does; nor does a cell that ignores Ctrl-C


class Cells:
    """The cells of a notebook that runs. kernel: its kernel, once it has started; in_cell: whether it is in a cell."""

    def __init__(self, stop: "Stop"):
        self.stop, self.kernel, self.in_cell = stop, None, False

    def begins(self, **_) -> None:
        self.in_cell = True  # before asking: a signal after the question interrupts the cell
        if self.stop.asked:
            self.in_cell = False
            raise Interrupted

    def ended(self, **_) -> None:
        self.in_cell = False

    def signal(self, number: int) -> None:
        if self.kernel:
            self.kernel.signal_group(number)


class Stop:
    """The handler of these signals. asked: how many came."""

    def __init__(self):
        self.asked, self.running, self.later = 0, [], []

    @contextmanager
    def on_signals(self):
        """Be the handler of the signals."""
        try:
            with as_ctrl_c(self):
                yield self
        finally:
            for timer in self.later:
                timer.cancel()

    @contextmanager
    def of_notebook(self):
        """Yield the Cells of a notebook, which are stopped with the others until the block ends."""
        cells = Cells(self)
        self.running.append(cells)
        try:
            yield cells
        finally:
            self.running.remove(cells)

    def __call__(self, *_):
        self.asked += 1
        if self.asked > 1:
            self._signal(signal.SIGKILL)
            return
        with suppress(RuntimeError):  # the signal came while a line was being printed
            say("\nInterrupted: no further cell begins, rows are kept (Ctrl-C again stops at once).")
        if any(cells.in_cell for cells in list(self.running)):
            self._signal_cells(signal.SIGINT)
            self._later(RESEND_S, signal.SIGINT)
            self._later(GIVE_UP_S, signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for cells in list(self.running):
            cells.signal(number)

    def _signal_cells(self, number: int) -> None:
        """Send the kernels a signal that are in a cell."""
        for cells in list(self.running):
            if cells.in_cell:
                cells.signal(number)

    def _later(self, seconds: float, number: int) -> None:
        timer = threading.Timer(seconds, self._signal_cells, [number])
        timer.daemon = True
        timer.start()
        self.later.append(timer)
