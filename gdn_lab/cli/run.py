"""Runs notebooks from end to end: papermill executes each one into a run folder of its own, pages.py makes its HTML.

A run folder is runs/<UTC time>-<notebook>/ (results.py). While a notebook runs, its outputs grow in
<notebook>.running.ipynb; at the end that file is renamed to <notebook>.ipynb, .failed.ipynb or .interrupted.ipynb.
"""

import difflib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import nbformat
import papermill
import torch
from jupyter_client import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError

from ..bench import results
from . import pages

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
RUNS = ROOT / "runs"
NEEDED_BYTES = 64 << 20  # an executed notebook, its HTML, its figures and rows, with room to spare


class UsageError(Exception):
    """The command names something that is not there. One sentence: what, and the choices."""


class BatchError(Exception):
    """A run could not be made or did not finish. One sentence: what happened, and where to look."""


class Interrupted(Exception):
    """The user stopped a run. One sentence: what is kept, and where."""


def exit_status(do: Callable[[], None], failures: tuple[type[Exception], ...]) -> int:
    """Does what a command is for, says what went wrong in one line, and returns the command's exit status: 0, 1 failed
    (with one of `failures`), 2 wrongly asked, 130 interrupted."""
    try:
        do()
    except UsageError as error:
        status, sentence = 2, error
    except failures as error:
        status, sentence = 1, error
    except Interrupted as error:
        status, sentence = 130, error
    except KeyboardInterrupt:
        status, sentence = 130, "interrupted"
    else:
        return 0
    print(f"gdn_lab: {sentence}", file=sys.stderr)
    return status


def find(names: list[str], folder: Path = NOTEBOOKS) -> list[Path]:
    """The notebooks that `names` mean, in that order; all of `folder`, in its order, when there are no names.

    A name is the path of an .ipynb file, a notebook of `folder` ("02_decode_kernels") or the beginning of one ("02").
    UsageError names the one that is not there, and the choices.
    """
    known = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    if not names and not known:
        raise UsageError(f"there are no notebooks in {shown(folder)}")
    return [_find_one(name, known) for name in names] or list(known.values())


def _find_one(name: str, known: dict[str, Path]) -> Path:
    if Path(name).suffix == ".ipynb" and Path(name).is_file():
        return Path(name).resolve()
    stem = Path(name).name.removesuffix(".ipynb")
    begins = [known[stem]] if stem in known else [path for other, path in known.items() if other.startswith(stem)]
    if len(begins) == 1:
        return begins[0]
    if begins:
        raise UsageError(f"{name!r} begins several notebooks: {', '.join(path.stem for path in begins)}")
    raise UsageError(f"there is no notebook {name!r}{_nearest(stem, known)}; there are: {', '.join(known)}")


def parameters(path: Path) -> dict[str, dict]:
    """A notebook's declared parameters by name: dicts of name, inferred_type_name, default, help, all text."""
    return papermill.inspect_notebook(path)


def typed(text: str) -> bool | int | float | str | None:
    """The value that a word of the command line means, as papermill's own -p reads it."""
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def values(path: Path, given: dict[str, str]) -> dict:
    """The words given for a notebook's parameters as values; one declared str keeps its word ("64" for batches).

    UsageError if the notebook does not declare one: papermill alone would warn and run without it.
    """
    declared = parameters(path)
    for name in given:
        if name not in declared:
            raise UsageError(
                f"{path.stem} has no parameter {name!r}{_nearest(name, declared)}; "
                f"it has: {', '.join(declared) or 'none'}"
            )
    return {
        name: word if declared[name]["inferred_type_name"] == "str" else typed(word) for name, word in given.items()
    }


def _nearest(name: str, choices) -> str:
    near = difflib.get_close_matches(name, choices, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def check_writable(root: Path) -> None:
    """BatchError if run folders cannot be made under `root`, or if its disk is full; asked before anything runs."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=root):
            pass
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise BatchError(
            f"cannot write to the output folder {shown(root)}: {error.strerror}; name another with --runs FOLDER"
        ) from error
    if free < NEEDED_BYTES:
        raise BatchError(
            f"the disk of the output folder {shown(root)} is full: {free >> 20} MiB are free, a run needs "
            f"{NEEDED_BYTES >> 20}; make room or name another with --runs FOLDER"
        )


def gpu_unseen() -> str | None:
    """A sentence if this machine has an NVIDIA GPU that torch cannot use: the times to come would be the CPU's."""
    if torch.cuda.is_available() or not shutil.which("nvidia-smi"):
        return None
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    if listed.returncode or not listed.stdout.startswith("GPU"):
        return None
    gpu = listed.stdout.splitlines()[0].split(" (UUID")[0]
    why = f"built for CUDA {torch.version.cuda}: is the driver older?" if torch.version.cuda else "a CPU build"
    return f"nvidia-smi lists {gpu}, but torch {torch.__version__} cannot use it ({why}). What follows runs on the CPU."


def run(paths: list[Path], given: dict[str, str], root: Path = RUNS) -> None:
    """Executes notebooks one after the other with the words `given` for parameters, each into a new folder of `root`.

    UsageError or BatchError before anything runs, if a parameter is not declared or `root` cannot be written.
    BatchError when a notebook fails, Interrupted on Ctrl-C: rows already measured stay, later notebooks are not run.
    """
    parameters_of = {path: values(path, given) for path in paths}
    check_writable(root)
    if unseen := gpu_unseen():
        say(unseen)
    began = time.monotonic()
    for number, path in enumerate(paths, 1):
        say(f"[{number}/{len(paths)}] {path.stem}" + (f", {seconds(began)} since the start" if number > 1 else ""))
        started = time.monotonic()
        page = execute(path, parameters_of[path], root)
        say(f"[{number}/{len(paths)}] {path.stem}: done in {seconds(started)}: {shown(page)}")
    if len(paths) > 1:
        say(f"{len(paths)} notebooks in {seconds(began)}.")


def execute(path: Path, given: dict, root: Path) -> Path:
    """Executes one notebook into a new folder under `root` and returns its HTML page. Raises as run() does."""
    folder = results._new_folder(root, path.stem)
    running = folder / f"{path.stem}.running.ipynb"
    ended = {None: ".ipynb", BatchError: ".failed.ipynb", Interrupted: ".interrupted.ipynb"}
    raised = None
    try:
        os.environ["GDN_LAB_RUN_FOLDER"] = str(folder)  # the kernel inherits it, and notebook.begin() reads it there
        with _ctrl_c() as interrupt:
            papermill.execute_notebook(
                path, running, given, kernel_name="python3", language="python", cwd=ROOT,
                progress_bar=False, stdout_file=_Indented(sys.stdout), coalesce_streams=True,
                kernel_manager_class=_Kernel, on_cell_start=interrupt.stop_if_asked,
                extra_arguments=["--log-level=ERROR"],  # it warns that loopback traffic is not encrypted
            )  # fmt: skip
            interrupt.stop_if_asked()
    except (KeyboardInterrupt, Exception) as error:
        raised = _what_happened(error, interrupt.asked)
    finally:
        del os.environ["GDN_LAB_RUN_FOLDER"]
    notebook = folder / f"{path.stem}{ended[raised and type(raised)]}"
    if running.exists():
        running.rename(notebook)
    if raised:
        rows = folder / "rows.jsonl"
        count = len(rows.read_text().splitlines()) if rows.exists() else 0
        kept = f"{count} row{'s' * (count != 1)} kept in {shown(folder)}"
        raise type(raised)(f"{path.stem} {raised}; {kept}, the notebook so far is {notebook.name} there.") from raised
    return to_html(notebook)


def _what_happened(error: BaseException, asked: bool) -> BatchError | Interrupted:
    if asked or isinstance(error, KeyboardInterrupt):
        return Interrupted("was interrupted")
    if isinstance(error, PapermillExecutionError):
        first = str(error.evalue).strip().split("\n")[0].rstrip(".")
        return BatchError(f"failed in cell {error.exec_count}: {error.ename}: {first}")
    return BatchError(f"failed: {type(error).__name__}: {str(error).strip().rstrip('.')}")


def to_html(notebook: Path) -> Path:
    """Writes an executed notebook as <name>.html beside it, and returns that path."""
    body = pages.html(notebook)
    page = notebook.with_suffix(".html")
    beside = page.with_suffix(".html.part")
    try:
        beside.write_text(body, encoding="utf-8")
        beside.rename(page)
    except OSError as error:
        raise BatchError(f"cannot write {shown(page)}: {error.strerror}; the notebook and its rows are kept") from error
    return page


class _Kernel(AsyncKernelManager):
    """Remembers the newest kernel, so that Ctrl-C can be passed on to it: kernels have a process group of their own."""

    newest = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _Kernel.newest = self

    @classmethod
    def interrupt_newest(cls) -> None:
        if cls.newest and cls.newest.has_kernel:
            os.killpg(cls.newest.provisioner.pgid, signal.SIGINT)


class _Interrupt:
    """Ctrl-C during a notebook: the first stops the cell, which closes its run in good order; a second ends at once."""

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
    """A text stream that sets what a notebook prints apart from this command's own lines.

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


def describe(path: Path) -> str:
    """A notebook in a few lines: its name, its first heading, and each parameter with type, default and meaning."""
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    heading = re.search(r"^#+ +(.*)$", prose, re.MULTILINE)
    lines = [f"{path.stem}: {heading.group(1) if heading else 'no heading'}"]
    for name, parameter in parameters(path).items():
        kind = parameter["inferred_type_name"]
        definition = (name if kind == "None" else f"{name}: {kind}") + f" = {parameter['default']}"
        lines.append(f"    {definition:<44}  {parameter['help']}".rstrip())
    return "\n".join(lines)


def say(line: str) -> None:
    print(line, flush=True)


def seconds(since: float) -> str:
    """Time since a time.monotonic(), for people: "42 s", "3 min 05 s"."""
    minutes, rest = divmod(round(time.monotonic() - since), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def shown(path: Path) -> str:
    """A path as the user would type it: relative to the current folder where it lies under it."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
