"""Seals on what measures and judges: functions of time, torch, NumPy and this package that no kernel file may replace.

Importing this module notes what the functions are; author_files.py imports it before it executes a stranger's file.
broken() says which are others now. It is no defence against a program that wants to deceive at any price: it catches
the patched timer, the patched comparison and the patched reference.
"""

import inspect
import os
import sys
import sysconfig
import time
from pathlib import Path

import numpy
import torch

PACKAGE = Path(__file__).resolve().parent
# Where libraries are: Python's folders, torch's, and those of PYTHONPATH that do not hold this checkout.
_FOLDERS = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_FOLDERS |= {str(Path(torch.__file__).parents[1])}
_FOLDERS |= {path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path.startswith("/")}
_TRUSTED = (*{path for path in _FOLDERS if not PACKAGE.is_relative_to(path)}, str(PACKAGE))
_SEALED = (  # modules and classes whose functions are noted
    time,
    torch,
    torch.Tensor,
    torch.nn.functional,
    torch.cuda,
    torch.cuda.Event,
    torch.cuda.CUDAGraph,
    torch.cuda.Stream,
    torch.cuda.graphs,
    numpy,
)


def _functions(owner) -> dict:
    """Return the functions of a module, or of a class and those that it inherits from."""
    found = {}
    for one in reversed(owner.__mro__) if inspect.isclass(owner) else (owner,):
        found |= {name: value for name, value in vars(one).items() if callable(value)}
    return found


_noted = [(owner, _functions(owner)) for owner in _SEALED]


def broken() -> str | None:
    """Name a function that was replaced by one that is neither Python's, nor a library's, nor this package's."""
    for owner, functions in _noted:
        now = _functions(owner)
        for name, value in functions.items():
            if now.get(name) is not value and not _trusted(now.get(name)):
                return f"{_name(owner)}.{name} was replaced{_by(now.get(name))}"
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(f"{__package__}."):
            found = _strange(module, module_name)
            if found:
                return found
    return None


def _strange(owner, where: str) -> str | None:
    """Name a function of one of this package's modules, or of their classes, whose code is elsewhere."""
    for name, value in list(vars(owner).items()):
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if inspect.isfunction(function) and not _trusted(function):
            return f"{where}.{name} was replaced{_by(function)}"
        if inspect.isclass(value) and value.__module__ == where and not inspect.isclass(owner):
            found = _strange(value, f"{where}.{name}")
            if found:
                return found
    return None


def _trusted(value) -> bool:
    """Tell whether a function or class is defined in Python's, a library's or this package's files."""
    if inspect.isclass(value):
        module = sys.modules.get(value.__module__)
        return module is not None and _inside(getattr(module, "__file__", None) or "")
    return inspect.isfunction(value) and _inside(value.__code__.co_filename)


def _inside(path: str) -> bool:
    return path.startswith(("<", *_TRUSTED)) and not path.startswith(("<ipython", "<stdin"))  # "<string>": dataclasses


def _by(value) -> str:
    code = getattr(value, "__code__", None)
    return f" by a function of {Path(code.co_filename).name}, line {code.co_firstlineno}" if code else ""


def _name(owner) -> str:
    return f"{owner.__module__}.{owner.__qualname__}" if inspect.isclass(owner) else owner.__name__
