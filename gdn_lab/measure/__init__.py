"""Measuring, without knowledge of any backend: timing, roofline, environment, results, progress."""

from .environment import clocks, environment
from .progress import progress
from .results import OutputFolderError, Run, load
from .roofline import (
    DECODE_BYTES_FORMULA,
    PREFILL_BYTES_FORMULA,
    PREFILL_FLOPS_FORMULA,
    Roof,
    datasheet_gb_per_s,
    decode_bytes,
    l2_bytes,
    measure_roof,
    prefill_bytes,
    prefill_flops,
)
from .timing import TIMERS, TimerUnavailable, Timing, time_interleaved, trace_interleaved, unavailable

__all__ = [
    "DECODE_BYTES_FORMULA",
    "OutputFolderError",
    "PREFILL_BYTES_FORMULA",
    "PREFILL_FLOPS_FORMULA",
    "Roof",
    "Run",
    "TIMERS",
    "TimerUnavailable",
    "Timing",
    "clocks",
    "datasheet_gb_per_s",
    "decode_bytes",
    "environment",
    "l2_bytes",
    "load",
    "measure_roof",
    "prefill_bytes",
    "prefill_flops",
    "progress",
    "time_interleaved",
    "trace_interleaved",
    "unavailable",
]
