"""Our CuTe DSL kernel: backend.py says what it serves, decode.py has the kernel."""

from .backend import BACKEND

__all__ = ["BACKEND"]
