"""Execute one notebook with papermill, stream what it prints, and interrupt its kernel when the user stops the run.

A run folder is runs/<UTC time>-<notebook>/ (bench/results.py). While a notebook runs, its outputs grow in
<notebook>.running.ipynb; at the end that file is renamed to <notebook>.ipynb, .failed.ipynb or .interrupted.ipynb, and
its page has the same name with .html.
"""

import os
from contextlib import suppress
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
from .errors import BatchError, Interrupted
from .run import ROOT, as_it_is, shown
from .stop import Stop

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


def execute(path: Path, given: dict, folder: Path, stop: Stop, stream) -> Path:
    """Execute one notebook into an empty folder and return its HTML page.

    given: {parameter: value}. stop: asked by the user. stream: takes what the notebook prints. BatchError if it fails,
    Interrupted if it was stopped: a notebook whose cells have all ended is complete, whatever came then.
    """
    running, raised = folder / f"{path.stem}.running.ipynb", None
    try:
        _papermill(path, running, given, folder, stop, stream)
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


def _papermill(path: Path, running: Path, given: dict, folder: Path, stop: Stop, stream) -> None:
    with stop.of_notebook() as cells:
        papermill.execute_notebook(
            as_it_is(path),
            as_it_is(running),
            given,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stdout_file=stream,
            coalesce_streams=True,
            kernel_manager_class=_kernel_class(cells, folder),
            on_cell_execute=cells.begins,
            on_cell_executed=cells.ended,
            extra_arguments=QUIET_KERNEL,
        )


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


def _kernel_class(cells, folder: Path) -> type[AsyncKernelManager]:
    """The class of the kernel of a notebook: cells gets its signals, and it writes its run into `folder`."""

    class Kernel(AsyncKernelManager):
        async def _async_pre_start_kernel(self, **kw):
            environment = os.environ | {RUN_FOLDER: str(folder)}
            return await super()._async_pre_start_kernel(**kw | {"env": environment, "cwd": str(ROOT)})

        async def _async_post_start_kernel(self, **kw) -> None:
            await super()._async_post_start_kernel(**kw)
            cells.kernel = self

        async def _async_interrupt_kernel(self) -> None:
            """Not before a shutdown, as jupyter_client does: an idle kernel would print that it was interrupted."""
            if not self.shutting_down:
                await super()._async_interrupt_kernel()

        def signal_group(self, number: int) -> None:
            """Send a signal to the kernel and what it started, which have a process group of their own."""
            with suppress(ProcessLookupError):
                if self.has_kernel:
                    os.killpg(self.provisioner.pgid, number)

    return Kernel
