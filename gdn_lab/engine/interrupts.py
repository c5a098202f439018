"""Ctrl-C at a place where nothing is half done."""

import signal
import threading
from contextlib import contextmanager


class Interrupt:
    """came: whether the user has asked to stop."""

    came = False


@contextmanager
def held_interrupts():
    """Note the first Ctrl-C, or SIGTERM where that counts as one, instead of raising; yields the Interrupt to look at.

    A second one raises KeyboardInterrupt at once. Outside of the main thread, which gets no signals, nothing changes.
    """
    found, before = Interrupt(), {}

    def note(number, frame):
        if found.came:
            raise KeyboardInterrupt
        found.came = True

    if threading.current_thread() is threading.main_thread():
        own = signal.getsignal(signal.SIGINT)
        before = {number: own for number in (signal.SIGINT, signal.SIGTERM) if own and signal.getsignal(number) is own}
    for number in before:
        signal.signal(number, note)
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
