"""Execute one notebook with papermill, stream what it prints, and pass Ctrl-C and its like on to its kernel.

A run folder is runs/<UTC time>-<notebook>/ (bench/results.py). While a notebook runs, its outputs grow in
<notebook>.running.ipynb; at the end that file is renamed to <notebook>.ipynb, .failed.ipynb or .interrupted.ipynb, and
its page has the same name with .html.
"""

import os
import re
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import papermill
from jupyter_client import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io

from ..bench import results
from ..bench.run_folder import count_rows
from ..files import replacing
from . import pages
from .errors import BatchError, Interrupted, as_ctrl_c, discard_output
from .run import ROOT, as_it_is, say, shown

RESEND_S = 1.5  # a kernel ignores Ctrl-C until it has begun the cell: one that is still in it then gets another
GIVE_UP_S = 30  # a kernel that is interrupted while it answers never does; nor does a cell that ignores Ctrl-C
ENDED = {  # how a notebook ended: (its file's suffix, the status of its run)
    None: (".ipynb", None),
    BatchError: (".failed.ipynb", "failed"),
    Interrupted: (".interrupted.ipynb", "interrupted"),
}
QUIET_KERNEL = [
    "--log-level=ERROR",  # it warns that loopback traffic is not encrypted
    # A signal that comes while the kernel answers is logged with its traceback, though the cell ends as it should.
    '--IPKernelApp.logging_config={"loggers": {"tornado.general": {"level": "CRITICAL"}}}',
]
RUN_FOLDER = "GDN_LAB_RUN_FOLDER"  # the kernel inherits it, and notebook.begin() reads it there


def execute(path: Path, given: dict, folder: Path) -> Path:
    """Execute one notebook into an empty folder and return its HTML page.

    given: {parameter: value}. BatchError if it fails, Interrupted if the user stopped it.
    """
    with _signals() as stop:
        running, raised = folder / f"{path.stem}.running.ipynb", None
        try:
            _papermill(path, running, given, folder, stop)
        except (KeyboardInterrupt, Exception) as error:
            raised = _what_happened(error, stop.asked > 0, running)
        suffix, status = ENDED[raised and type(raised)]
        notebook = folder / f"{path.stem}{suffix}"
        if running.exists():
            running.rename(notebook)
        with suppress(OSError):  # a full disk: the run stays as it was and reads "died"
            results.settle(folder, status)
        page = to_html(notebook) if notebook.exists() else None
    if raised is None:
        return page
    count = count_rows(folder)
    kept = f"{count} row{'s' * (count != 1)} kept in {shown(folder)}"
    so_far = f", the page so far is {page.name} there" if page else ""
    raise type(raised)(f"{path.stem} {raised}; {kept}{so_far}.") from raised


def _papermill(path: Path, running: Path, given: dict, folder: Path, stop: "_Stop") -> None:
    os.environ[RUN_FOLDER] = str(folder)
    try:
        papermill.execute_notebook(
            as_it_is(path),
            as_it_is(running),
            given,
            kernel_name="python3",
            language="python",
            cwd=ROOT,
            progress_bar=False,
            stdout_file=_Indented(sys.stdout),
            coalesce_streams=True,
            kernel_manager_class=_Kernel,
            on_cell_execute=stop.cell_begins,
            on_cell_executed=stop.cell_ended,
            extra_arguments=QUIET_KERNEL,
        )
        stop.if_asked()
    finally:
        del os.environ[RUN_FOLDER]


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


class _WholeFiles(LocalHandler):
    """papermill's access to local files, which leaves a notebook whole or as it was, whatever stops it."""

    def write(self, buf: str, path: str) -> None:
        with replacing(path) as partial:
            partial.write_text(buf, encoding="utf-8")


papermill_io.register("/", _WholeFiles())


class _Kernel(AsyncKernelManager):
    """Remember the newest kernel, so that signals can be passed on to it: kernels have a process group of their own."""

    newest = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _Kernel.newest = self

    @classmethod
    def signal_newest(cls, number: int) -> None:
        """Send a signal to the newest kernel and what it started."""
        with suppress(ProcessLookupError):
            if cls.newest and cls.newest.has_kernel:
                os.killpg(cls.newest.provisioner.pgid, number)

    async def _async_interrupt_kernel(self) -> None:
        """Not before a shutdown, as jupyter_client does: an idle kernel would print that it was interrupted."""
        if not self.shutting_down:
            await super()._async_interrupt_kernel()


class _Stop:
    """Ctrl-C, SIGTERM or SIGHUP during a notebook: the first stops the cell, a second the notebook.

    The first interrupts the kernel if it is in a cell, which closes the run, and no further cell begins. The second, or
    GIVE_UP_S without an answer, kills the kernel. Nothing is raised where the signal comes, which may be in the
    middle of anything.
    """

    def __init__(self):
        self.asked, self.in_cell, self.later = 0, False, []

    def __call__(self, *_):
        self.asked += 1
        if self.asked > 1:
            _Kernel.signal_newest(signal.SIGKILL)
            return
        with suppress(RuntimeError):  # the signal came while a line was being printed
            say("\nInterrupted: stopping the notebook, rows are kept (Ctrl-C again stops it at once).")
        if self.in_cell:
            _Kernel.signal_newest(signal.SIGINT)
            self._later(RESEND_S, signal.SIGINT)
            self._later(GIVE_UP_S, signal.SIGKILL)

    def _later(self, seconds: float, number: int) -> None:
        """Send the kernel a signal in so many seconds if it is in a cell then."""
        timer = threading.Timer(seconds, lambda: self.in_cell and _Kernel.signal_newest(number))
        timer.daemon = True
        timer.start()
        self.later.append(timer)

    def if_asked(self) -> None:
        if self.asked:
            raise Interrupted

    def cell_begins(self, **_) -> None:
        self.in_cell = True  # before asking: a signal after the question interrupts the cell
        if self.asked:
            self.in_cell = False
            raise Interrupted

    def cell_ended(self, **_) -> None:
        self.in_cell = False


@contextmanager
def _signals():
    stop = _Stop()
    try:
        with as_ctrl_c(stop):
            yield stop
    finally:
        for timer in stop.later:
            timer.cancel()


class _Indented:
    """A text stream that indents what a notebook prints, to tell it from this command's own lines.

    A progress bar redraws itself in place after a carriage return; in a log each redraw gets a line.
    """

    def __init__(self, stream):
        self.stream = stream
        self.return_means = "\r" if stream.isatty() else "\n"
        self.at_line_start = True

    def write(self, text: str) -> None:
        try:
            self._write(text)
        except OSError:  # whoever read it has gone
            discard_output()

    def _write(self, text: str) -> None:
        for piece in re.findall(r"[^\r\n]+|[\r\n]", text):
            if piece == "\r":
                self.stream.write("" if self.at_line_start else self.return_means)
            else:
                self.stream.write(("    " if self.at_line_start and piece != "\n" else "") + piece)
            self.at_line_start = piece in "\r\n"

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            discard_output()
