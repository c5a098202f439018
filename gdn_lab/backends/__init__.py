"""The backends: kernels, launches and rules of refusal, one file or folder each. registry.py chooses among them.

gdn_lab.backends()      what is installed, what it can do here, and why not the rest: registry.backends()
"""

import sys
import types

from .registry import BackendReport, backends, refusal

__all__ = ["BackendReport", "backends", "refusal"]


class _Callable(types.ModuleType):
    """This package as `gdn_lab.backends()`, which is part of the public API."""

    def __call__(self, device=None) -> list[BackendReport]:
        return backends(device)


sys.modules[__name__].__class__ = _Callable
