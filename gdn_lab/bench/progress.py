"""A progress bar with the time left, on a terminal, in JupyterLab and in the log of a batch run."""

import sys

from tqdm import tqdm

_FORMAT = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} elapsed, {remaining} left{postfix}"


def progress(iterable=None, what: str = "", *, total: float | None = None) -> tqdm:
    """A tqdm bar over `iterable`, or one of `total` steps (fractions too) to move on with update().

    On a terminal it redraws in place. In a notebook, and wherever output goes to a log, it is plain ASCII and speaks at
    most every two seconds: papermill makes a line of each redraw.
    """
    notebook = type(sys.stdout).__module__.startswith("ipykernel")  # where standard error is shown as an error
    file = sys.stdout if notebook else sys.stderr
    terminal = file.isatty()
    if total is not None:
        total *= 1 + 1e-9  # fractions that add up to the total may pass it by a rounding error
    return tqdm(
        iterable, total=total, desc=what, file=file, ascii=None if terminal else " #", ncols=None if terminal else 90,
        dynamic_ncols=terminal, mininterval=0.1 if terminal else 2.0, miniters=0, bar_format=_FORMAT,
    )  # fmt: skip
