"""Plots: every figure of the workbook, drawn from rows or from formulas. Nothing here measures.

    decode.py   00, 01 and 02: kernels, in place against gather and scatter
    layouts.py  01: what a warp loads, what a slot costs
    step.py     03: a decode step and its parts
    profile.py  04: a capture, taken apart
    verify.py   05: speculative decoding
    prefill.py  06: prefill
    readme.py   the README's figures and sections

drawing.py is how they look. Each function returns a matplotlib Figure whose title states what its data say; a figure
without data says so instead.
"""

from . import decode, layouts, prefill, profile, step, verify

__all__ = ["decode", "layouts", "prefill", "profile", "step", "verify"]
