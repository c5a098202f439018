"""Our CuTe DSL kernel: backend.py says what it serves, decode.py has the kernel, cache.py keeps it compiled."""

from .backend import BACKEND
from .cache import preparation

__all__ = ["BACKEND", "preparation"]
