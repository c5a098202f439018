"""Execute one notebook with papermill, stream what it prints, and pass Ctrl-C on to its kernel.

A run folder is runs/<UTC time>-<notebook>/ (bench/results.py). While a notebook runs, its outputs grow in
<notebook>.running.ipynb; at the end that file is renamed to <notebook>.ipynb, .failed.ipynb or .interrupted.ipynb, and
its page has the same name with .html.
"""

import os
import re
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import nbformat
import papermill
from jupyter_client import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError

from ..files import replacing
from . import pages
from .errors import BatchError, Interrupted
from .run import ROOT, say, shown

RUN_FOLDER = "GDN_LAB_RUN_FOLDER"  # the kernel inherits it, and notebook.begin() reads it there


def execute(path: Path, given: dict, folder: Path) -> Path:
    """Execute one notebook into an empty folder and return its HTML page.

    given: {parameter: value}. BatchError if it fails, Interrupted if the user stopped it.
    """
    running = folder / f"{path.stem}.running.ipynb"
    ended = {None: ".ipynb", BatchError: ".failed.ipynb", Interrupted: ".interrupted.ipynb"}
    raised = None
    try:
        os.environ[RUN_FOLDER] = str(folder)
        with _ctrl_c() as interrupt:
            papermill.execute_notebook(
                path,
                running,
                given,
                kernel_name="python3",
                language="python",
                cwd=ROOT,
                progress_bar=False,
                stdout_file=_Indented(sys.stdout),
                coalesce_streams=True,
                kernel_manager_class=_Kernel,
                on_cell_start=interrupt.stop_if_asked,
                extra_arguments=["--log-level=ERROR"],  # it warns that loopback traffic is not encrypted
            )
            interrupt.stop_if_asked()
    except (KeyboardInterrupt, Exception) as error:
        raised = _what_happened(error, interrupt.asked, running)
    finally:
        del os.environ[RUN_FOLDER]
    notebook = folder / f"{path.stem}{ended[raised and type(raised)]}"
    if running.exists():
        running.rename(notebook)
    if raised is None:
        return to_html(notebook)
    read = to_html(notebook) if notebook.exists() else folder
    rows = folder / "rows.jsonl"
    count = len(rows.read_text().splitlines()) if rows.exists() else 0
    kept = f"{count} row{'s' * (count != 1)} kept in {shown(folder)}, the page so far is {read.name} there"
    raise type(raised)(f"{path.stem} {raised}; {kept}.") from raised


def _what_happened(error: BaseException, asked: bool, notebook: Path) -> BatchError | Interrupted:
    if asked or isinstance(error, KeyboardInterrupt):
        return Interrupted("was interrupted")
    if isinstance(error, PapermillExecutionError):
        first = str(error.evalue).strip().split("\n")[0].rstrip(".")
        number, _ = pages.failed_cell(nbformat.read(notebook, as_version=4)) or (error.exec_count, "")
        return BatchError(f"failed in cell {number}: {error.ename}: {first}")
    return BatchError(f"failed: {type(error).__name__}: {str(error).strip().rstrip('.')}")


def to_html(notebook: Path) -> Path:
    """Write an executed notebook as <name>.html in its folder and return that path."""
    body = pages.html(notebook)
    page = notebook.with_suffix(".html")
    try:
        with replacing(page) as partial:
            partial.write_text(body, encoding="utf-8")
    except OSError as error:
        raise BatchError(f"cannot write {shown(page)}: {error.strerror}; the notebook and its rows are kept") from error
    return page


class _Kernel(AsyncKernelManager):
    """Remember the newest kernel, so that Ctrl-C can be passed on to it: kernels have a process group of their own."""

    newest = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _Kernel.newest = self

    @classmethod
    def interrupt_newest(cls) -> None:
        if cls.newest and cls.newest.has_kernel:
            os.killpg(cls.newest.provisioner.pgid, signal.SIGINT)


class _Interrupt:
    """Ctrl-C during a notebook: the first stops the cell, which closes its run; a second ends at once."""

    def __init__(self):
        self.asked = False

    def __call__(self, *_):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("\nInterrupted: stopping the notebook, rows are kept (Ctrl-C again stops it at once).")
        _Kernel.interrupt_newest()

    def stop_if_asked(self, **_):
        """Called before each cell: a kernel between two cells ignores the signal."""
        if self.asked:
            raise Interrupted


@contextmanager
def _ctrl_c():
    interrupt = _Interrupt()
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


class _Indented:
    """A text stream that indents what a notebook prints, to tell it from this command's own lines.

    A progress bar redraws itself in place after a carriage return; in a log each redraw gets a line.
    """

    def __init__(self, stream):
        self.stream = stream
        self.return_means = "\r" if stream.isatty() else "\n"
        self.at_line_start = True

    def write(self, text: str) -> None:
        for piece in re.findall(r"[^\r\n]+|[\r\n]", text):
            if piece == "\r":
                self.stream.write("" if self.at_line_start else self.return_means)
            else:
                self.stream.write(("    " if self.at_line_start and piece != "\n" else "") + piece)
            self.at_line_start = piece in "\r\n"

    def flush(self) -> None:
        self.stream.flush()
