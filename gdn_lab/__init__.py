"""gdn_lab: a workbook for Gated Delta Network inference kernels. What an engine needs is here."""

from . import reference
from .backends import backends
from .models import GDNShape
from .ops import checks, decode, prefill, verify
from .pool import StatePool

__all__ = ["GDNShape", "StatePool", "backends", "checks", "decode", "prefill", "reference", "verify"]
