"""Our Triton kernels: backend.py says what they serve; recurrent, verify and prefill have the kernels."""

from .backend import BACKEND

__all__ = ["BACKEND"]
