"""The files that authors' kernels come from: --kernel, GDN_LAB_KERNELS, and the entry points of installed packages.

    gdn-lab run 02 --kernel my_kernel.py
    GDN_LAB_KERNELS=/path/to/my_kernel.py:/path/to/another.py
    [project.entry-points."gdn_lab.kernels"]        a module whose import registers kernels
    mine = "my_package.kernels"

Each file is executed once in a process. One that fails is listed as a backend that refuses, with the reason, and all
others go on.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from .. import clock, seals  # noqa: F401  bind clocks and note what no file may replace, before one is executed
from . import author, registry
from .base import NotInstalled

VARIABLE = "GDN_LAB_KERNELS"
ENTRY_POINTS = "gdn_lab.kernels"


class KernelFileError(ValueError):
    """A file cannot be imported or registers nothing. One sentence; `shown` is the traceback through the file."""

    def __init__(self, sentence: str, shown: str = ""):
        super().__init__(sentence)
        self.shown = shown


_loaded: dict[str, list[str] | KernelFileError] = {}  # by path or entry point: what it registered, or why it did not


def load(path) -> list[str]:
    """Execute a file, once in a process, and return the full names of the variants that it registers.

    Its folder joins the places that Python imports from. KernelFileError says what is wrong, from the file's exception.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise KernelFileError(f"there is no kernel file {path}; name a .py file that registers one with @variant")
    return _once(str(path), author.Origin(str(path)), lambda: _execute(path))


def load_named() -> None:
    """Load the files of GDN_LAB_KERNELS and the entry points of installed packages.

    What fails is listed as a backend that refuses with the reason.
    """
    for path in named_files():
        _listed(Path(path).stem, lambda path=path: load(path))
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        origin = author.Origin(entry.value, entry.dist.name if entry.dist else None)
        _listed(entry.name, lambda entry=entry, origin=origin: _once(entry.value, origin, entry.load))


def named_files() -> list[str]:
    """Return the paths in GDN_LAB_KERNELS."""
    return [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]


def name_files(paths) -> None:
    """Add files to GDN_LAB_KERNELS, so that notebooks and other processes that this one starts load them, too."""
    absolute = [str(Path(path).expanduser().absolute()) for path in paths]
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*named_files(), *absolute]))


def kernel_words() -> str:
    """Return the words of a command that name the files of GDN_LAB_KERNELS, without their folders, after a space."""
    return "".join(f" --kernel {shlex.quote(Path(path).name)}" for path in named_files())


def hashes() -> dict[str, str]:
    """Hash the files that were loaded, for run.json: {name of the file: 16 hexadecimal digits}."""
    files = [Path(key) for key, found in _loaded.items() if isinstance(found, list) and Path(key).is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def _listed(name: str, load_it: Callable) -> None:
    """Load something, or list it as what cannot be imported."""
    try:
        load_it()
    except KernelFileError as error:
        taken = registry.BACKENDS.get(name)
        name = name if taken is None or isinstance(taken, NotInstalled) else f"{name}.py"
        registry.add(NotInstalled(name, name, (), f"is left out: {error}"))


def _once(key: str, origin: author.Origin, execute: Callable) -> list[str]:
    """Execute what registers kernels unless that was done before, and return what it registered."""
    if key not in _loaded:
        _loaded[key] = []  # what it imports may load all that is named, itself among them
        _loaded[key] = _registered(origin, execute)
    if isinstance(_loaded[key], KernelFileError):
        raise _loaded[key]
    return _loaded[key]


def _registered(origin: author.Origin, execute: Callable) -> list[str] | KernelFileError:
    author.loading.append(origin)
    try:
        execute()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too
        for name in _of(origin):
            author.remove(name)
        return _failure(origin, error)
    finally:
        author.loading.pop()
    found = _of(origin)
    return found or KernelFileError(f"{origin.shown} registers no kernel; decorate one with @variant")


def _of(origin: author.Origin) -> list[str]:
    return [name for name in author.authors_variants() if author.origin_of(name) == origin]


def _failure(origin: author.Origin, error: BaseException) -> KernelFileError:
    """Say what went wrong and where, with the part of the traceback that is about the file."""
    here = traceback.TracebackException.from_exception(error)
    own = next((n for n, frame in enumerate(here.stack) if frame.filename == origin.place), None)
    at = ""
    if own is not None:
        del here.stack[:own]
        at = f", line {[frame.lineno for frame in here.stack if frame.filename == origin.place][-1]}"
    what = f"{type(error).__name__}: {error}".strip().rstrip(":.")
    failure = KernelFileError(f"{origin.shown}{at}: {what}", "".join(here.format()))
    failure.__cause__ = error
    return failure


def _execute(path: Path) -> None:
    if path.suffix == ".json":
        from .solution import load as load_solution

        load_solution(path)
        return
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    name = f"gdn_lab_kernel_{path.stem}_{len(_loaded)}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
