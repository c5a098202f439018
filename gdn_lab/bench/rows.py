"""Rows as a sweep makes them: completed with what all share and written to the run at once."""

from contextlib import contextmanager

import torch

from ..backends.base import dtype_name
from ..models import GDNShape
from .results import Run
from .roof import Roof, datasheet_gb_per_s
from .timers import Timing

MOST_SHARE = 1.05  # of the measured bandwidth that a call can reach whose bytes come from memory


class Rows(list):
    """The rows of a sweep so far.

    run: None, or a Run to which add() appends each row. common: fields that all rows share.
    """

    def __init__(self, run: Run | None, common: dict | None = None):
        self.run, self.common = run, common or {}

    def add(self, row: dict) -> None:
        """Complete a row, write it to the run and keep it."""
        row = self.common | row
        if self.run is not None:
            self.run.append(row)
        self.append(row)


def common_fields(phase: str, shape: GDNShape, dtype, io_dtype, **fields) -> dict:
    """Make the fields that all rows of a sweep over one shape share, and any further ones."""
    common = {"phase": phase, "state_dtype": dtype_name(dtype), "io_dtype": dtype_name(io_dtype)} | fields
    names = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")
    return common | {name: getattr(shape, name) for name in names}


def timing_fields(timing: Timing, nbytes: int, formula: str, roof: Roof, device: torch.device, l2: str) -> dict:
    """Make the fields of a timed row: times in µs, rates, measured bandwidth.

    nbytes: that a call must move. formula: what they are. l2: where they come from.
    """
    gb_per_s = nbytes / timing.median_us / 1e3 if timing.median_us > 0 else 0.0
    fields = {
        "status": "ok",
        "timer": timing.timer,
        "median_us": timing.median_us,
        "p20_us": timing.p20_us,
        "p80_us": timing.p80_us,
        "count": timing.count,
        "calls_per_sample": timing.calls_per_sample,
        "l2": l2,
        "bytes": nbytes,
        "bytes_formula": formula,
        "gb_per_s": gb_per_s,
        "roof_gb_per_s": roof.gb_per_s,
        "share_of_roof": gb_per_s / roof.gb_per_s,
        "roof_method": roof.method,
        "datasheet_gb_per_s": datasheet_gb_per_s(_gpu_name(device)),
    }
    return fields if timing.kernels is None else fields | {"kernels": timing.kernels}


def too_fast(row: dict) -> dict:
    """Return the fields that make an error of a timed row that is faster than the memory allows; {} for any other.

    With a cold L2 every byte comes from memory, so a share of the measured bandwidth beyond MOST_SHARE means that the
    call did not do its work, or the timer not its.
    """
    if row["l2"] != "cold" or row["share_of_roof"] <= MOST_SHARE:
        return {}
    reason = (
        f"{row['median_us']:.3g} µs is {row['share_of_roof']:.2f} times the measured bandwidth with a cold L2, faster "
        "than the memory allows"
    )
    return {"status": "error", "reason": reason}


def _gpu_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


@contextmanager
def recorded(run: Run | None):
    """Record in run.json that the sweep was interrupted or failed, and pass the exception on."""
    try:
        yield
    except BaseException as error:
        if run is not None:
            run.finish("failed" if isinstance(error, Exception) else "interrupted")
        raise
