"""Taking a program apart: named ranges, and readers that give one table for Kineto and Nsight Systems."""

from pathlib import Path

from . import graphs, kineto, nsight, positions, summaries
from .events import OUTSIDE, Capture, range_table, table
from .ranges import span


def read(source) -> Capture:
    """The Capture in a torch.profiler profile, a trace it exported (.json, .json.gz), or a file of Nsight Systems.

    Errors are those of kineto.read() and nsight.read().
    """
    is_file = isinstance(source, (str, Path))
    if is_file and not str(source).endswith((".json", ".json.gz")):
        return nsight.read(source)
    return kineto.read(source)


__all__ = [
    "OUTSIDE", "Capture", "graphs", "kineto", "nsight", "positions", "range_table", "read", "span", "summaries",
    "table",
]  # fmt: skip
