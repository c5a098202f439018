"""NVTX ranges, and traces: readers that build the same tables from Kineto's recordings and Nsight Systems' ones."""

from pathlib import Path

from . import graphs, kineto, nsight, positions, summaries
from .build import OUTSIDE, Trace
from .range_tables import range_table, table
from .ranges import nvtx_range


def read(source) -> Trace:
    """Read a finished torch.profiler profile, a trace it exported (.json, .json.gz), or a file of Nsight Systems.

    Errors are those of kineto.read() and nsight.read().
    """
    is_file = isinstance(source, (str, Path))
    if is_file and not str(source).endswith((".json", ".json.gz")):
        return nsight.read(source)
    return kineto.read(source)


__all__ = [
    "OUTSIDE",
    "Trace",
    "graphs",
    "kineto",
    "nsight",
    "nvtx_range",
    "positions",
    "range_table",
    "read",
    "summaries",
    "table",
]
