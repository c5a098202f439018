"""Sweeps: every variant checked against the oracle, then timed against the others; a row for each.

    decode.py   decode(), in place and between a gather and a scatter
    verify.py   verify(), in each mode
    prefill.py  prefill(), on the pool in place and by the detour
    step.py     whole decode steps, their parts, and how the share of GDN moves

What they share: cases.py, what is swept over; pools.py, state that comes from memory; rows.py, rows and the bar.
"""

from . import step
from .decode import decode_sweep
from .prefill import prefill_sweep
from .step import share_sweep, step_sweep
from .verify import verify_sweep

__all__ = ["decode_sweep", "prefill_sweep", "share_sweep", "step", "step_sweep", "verify_sweep"]
