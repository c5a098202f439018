"""Findings: the sentences and tables that rows are made to say.

    decode.py   00, 01 and 02: kernels, layouts, in place against gather and scatter
    step.py     03: a decode step, its parts, what each configuration saves; step_tables.py has its tables
    profile.py  04: a capture, taken apart
    verify.py   05: speculative decoding
    prefill.py  06: prefill

What they share: rows.py, which rows are shown, in which order, and what they hold for; words.py, numbers, machines and
runs in words.
"""

from . import decode, prefill, profile, step, step_tables, verify

__all__ = ["decode", "prefill", "profile", "step", "step_tables", "verify"]
