"""One backend, one file: its kernel, its launch and its rule of refusal. registry.py chooses among them."""

from .registry import BackendReport, backends, refusal

__all__ = ["BackendReport", "backends", "refusal"]
