"""gdn_lab: a workbook for Gated Delta Network inference kernels. What an engine needs is here.

Names are imported when they are first used, so that a command that needs no torch does not wait for it.
"""

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import backends, reference
    from .backends.author import variant
    from .models import GDNShape
    from .ops import checks, decode, prefill, verify
    from .pool import StatePool

os.environ.setdefault("FLASHINFER_LOGGING_LEVEL", "warning")  # else each kernel that it compiles is a line of a page

__version__ = "0.2.0"  # pyproject.toml reads it here

__all__ = ["GDNShape", "StatePool", "backends", "checks", "decode", "prefill", "reference", "variant", "verify"]

_MODULE_OF = {"GDNShape": "models", "StatePool": "pool", "variant": "backends.author"} | dict.fromkeys(
    ("checks", "decode", "prefill", "verify"), "ops"
)


def __getattr__(name: str):
    if name in ("backends", "reference"):
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
