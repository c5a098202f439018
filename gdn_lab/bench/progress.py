"""A progress bar with the time left, on a terminal, in JupyterLab and in the log of a batch run."""

import sys
from collections.abc import Callable

from tqdm import tqdm

_FORMAT = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} elapsed, {remaining} left{postfix}"


def progress_bar(iterable=None, what: str = "", *, total: float | None = None, show=True):
    """Make a tqdm bar over `iterable`, or one of `total` steps (fractions too) that update() advances.

    On a terminal it redraws in place. In a notebook, and wherever output goes to a log, it is plain ASCII and prints at
    most every two seconds, because papermill makes a line of each redraw. show: False prints nothing; a function of
    `total` returns a bar of its own, a context manager with update(amount) and set_postfix_str(text, refresh) whose
    KeyboardInterrupt stops what it is a bar of.
    """
    if callable(show):
        return show(total)
    notebook = type(sys.stdout).__module__.startswith("ipykernel")  # which shows standard error as an error
    file = sys.stdout if notebook else sys.stderr
    terminal = file.isatty()
    if total is not None:
        total *= 1 + 1e-9  # fractions that add up to the total may pass it by a rounding error
    return tqdm(
        iterable,
        total=total,
        desc=what,
        file=file,
        disable=not show,
        ascii=None if terminal else " #",
        ncols=None if terminal else 90,
        dynamic_ncols=terminal,
        mininterval=0.1 if terminal else 2.0,
        miniters=0,
        bar_format=_FORMAT,
    )


def part_of(bar: tqdm, amount: float) -> Callable[[float], None]:
    """Return a function that takes fractions adding up to 1 and advances the bar by `amount` in all."""
    return lambda fraction: bar.update(fraction * amount)
