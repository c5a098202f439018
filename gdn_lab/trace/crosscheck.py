"""Compare the summaries of this package with the CSV files that nsys stats writes of the same trace: they are equal."""

from pathlib import Path

import pandas

from ..names import readable
from . import summaries
from .build import Trace

REPORTS = {  # report of nsys stats: (our summary, the columns that name a row)
    "cuda_gpu_kern_sum": (summaries.cuda_gpu_kern_sum, ["Name"]),
    "nvtx_kern_sum": (summaries.nvtx_kern_sum, ["NVTX Range", "Style", "PID", "TID", "Kernel Name"]),
    "nvtx_gpu_proj_sum": (summaries.nvtx_gpu_proj_sum, ["Range", "Style"]),
}
TEXT = {"Name", "NVTX Range", "Range", "Style", "Kernel Name"}


def differences(trace: Trace, folder, most: int = 5) -> list[str]:
    """Say where our summaries differ from <folder>/<report>.csv: at most `most` sentences a report, [] if they agree.

    Every column and every row counts; the order of rows does not. FileNotFoundError if a report is missing.
    """
    found = []
    for report, (summary, keys) in REPORTS.items():
        path = Path(folder) / f"{report}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}; write it with nsys stats -r {report} --format csv")
        sentences = _differences(summary(trace), read_csv(path), keys)
        found += [f"{report}: {sentence}" for sentence in sentences[:most]]
    return found


def read_csv(path) -> pandas.DataFrame:
    """Read a report: text as names.readable() has it, numbers as numbers, NA where a number is empty."""
    columns = pandas.read_csv(path, nrows=0).columns
    rows = pandas.read_csv(
        path,
        dtype={name: str for name in columns if name in TEXT},
        keep_default_na=False,
        na_values={name: [""] for name in columns if name not in TEXT},
    )
    return rows.assign(**{name: rows[name].map(readable) for name in columns if name in TEXT})


def _differences(ours: pandas.DataFrame, theirs: pandas.DataFrame, keys: list[str]) -> list[str]:
    if list(ours.columns) != list(theirs.columns):
        return [f"columns are {', '.join(ours.columns)}, expected {', '.join(theirs.columns)}"]
    our_rows, their_rows = _by_key(ours, keys), _by_key(theirs, keys)
    sentences = [f"has no row {key}" for key in their_rows if key not in our_rows]
    sentences += [f"has a row {key} that nsys has not" for key in our_rows if key not in their_rows]
    for key in our_rows.keys() & their_rows.keys():
        triples = zip(ours.columns, our_rows[key], their_rows[key], strict=True)
        sentences += [f"{name} of {key} is {own}, expected {nsys}" for name, own, nsys in triples if own != nsys]
    if len(ours) != len(theirs):
        sentences.append(f"has {len(ours)} rows, expected {len(theirs)}")
    return sentences


def _by_key(frame: pandas.DataFrame, keys: list[str]) -> dict[tuple, tuple]:
    rows = frame.astype(object).where(frame.notna(), None)
    named = rows[keys].itertuples(index=False, name=None)
    return dict(zip(named, rows.itertuples(index=False, name=None), strict=True))
