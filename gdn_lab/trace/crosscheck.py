"""Holds the summaries of this package against the CSV that nsys stats writes of the same capture: exactly."""

from pathlib import Path

import pandas

from . import summaries
from .events import Capture

REPORTS = {  # report of nsys stats: (our summary, the columns that name a row)
    "cuda_gpu_kern_sum": (summaries.cuda_gpu_kern_sum, ["Name"]),
    "nvtx_kern_sum": (summaries.nvtx_kern_sum, ["NVTX Range", "Style", "PID", "TID", "Kernel Name"]),
    "nvtx_gpu_proj_sum": (summaries.nvtx_gpu_proj_sum, ["Range", "Style"]),
}
TEXT = {"Name", "NVTX Range", "Range", "Style", "Kernel Name"}


def differences(capture: Capture, folder, most: int = 5) -> list[str]:
    """Where our summaries and <folder>/<report>.csv differ, a sentence each, at most `most` of a report; [] if nowhere.

    Every column and every row counts, the order of rows does not. FileNotFoundError if a report is not there.
    """
    found = []
    for report, (summary, keys) in REPORTS.items():
        path = Path(folder) / f"{report}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}; write it with nsys stats -r {report} --format csv")
        found += [f"{report}: {said}" for said in _differences(summary(capture), read_csv(path), keys)[:most]]
    return found


def read_csv(path) -> pandas.DataFrame:
    """A report's CSV: text as it is, numbers as numbers, NA where a number is empty."""
    columns = pandas.read_csv(path, nrows=0).columns
    return pandas.read_csv(
        path, dtype={name: str for name in columns if name in TEXT}, keep_default_na=False,
        na_values={name: [""] for name in columns if name not in TEXT},
    )  # fmt: skip


def _differences(ours: pandas.DataFrame, theirs: pandas.DataFrame, keys: list[str]) -> list[str]:
    if list(ours.columns) != list(theirs.columns):
        return [f"columns are {', '.join(ours.columns)}, expected {', '.join(theirs.columns)}"]
    mine, expected = (_by_key(frame, keys) for frame in (ours, theirs))
    said = [f"has no row {key}" for key in expected if key not in mine]
    said += [f"has a row {key} that nsys has not" for key in mine if key not in expected]
    for key in mine.keys() & expected.keys():
        pairs = zip(ours.columns, mine[key], expected[key], strict=True)
        said += [f"{name} of {key} is {one}, expected {other}" for name, one, other in pairs if one != other]
    if len(ours) != len(theirs):
        said.append(f"has {len(ours)} rows, expected {len(theirs)}")
    return said


def _by_key(frame: pandas.DataFrame, keys: list[str]) -> dict[tuple, tuple]:
    rows = frame.astype(object).where(frame.notna(), None)
    return dict(zip(
        rows[keys].itertuples(index=False, name=None), rows.itertuples(index=False, name=None), strict=True,
    ))  # fmt: skip
