"""Recorded figures: data/published (what others report) and data/measured (what this workbook measured, by GPU).

nearest.py chooses the recorded rows that are nearest to what a page was asked for.
"""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from ..bench.run_folder import load
from ..names import gpu_short_name
from .text import listed

if TYPE_CHECKING:  # slow to import, and needed for the published tables alone
    import pandas

DATA = Path(__file__).resolve().parents[2] / "data"
PUBLISHED_BASE, PUBLISHED_BASELINE = "FlashInfer VK", "Triton KV"  # kernels of decode_microbenchmark.csv


def published(table: str, source: str = "pr19150") -> "pandas.DataFrame":
    """One published table; its header in the CSV says where it comes from. FileNotFoundError lists the tables."""
    import pandas

    path = DATA / "published" / source / f"{table}.csv"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.csv"))) or f"nothing in {path.parent}"
        raise FileNotFoundError(f"published table {table!r} of {source!r} is not there; choose one of: {known}")
    return pandas.read_csv(path, comment="#")


def published_times() -> "pandas.DataFrame":
    """The pull request's microbenchmark, µs: batches down, (gpu, kernel) across as "B200 Triton KV"."""
    table = published("decode_microbenchmark")
    table["column"] = table.gpu + " " + table.kernel
    wide = table.pivot(index="batch", columns="column", values="us")
    return wide[list(dict.fromkeys(table.column))].rename_axis(index="B", columns=None)


def published_ratios() -> "pandas.DataFrame":
    """The pull request's microbenchmark as times over FlashInfer's on the same GPU: gpu, kernel, batch, ratio."""
    table = published("decode_microbenchmark")
    base = table[table.kernel == PUBLISHED_BASE]
    table = table[table.kernel != PUBLISHED_BASE].merge(base, on=["gpu", "batch"], suffixes=("", "_base"))
    return table.assign(ratio=table.us / table.us_base)[["gpu", "kernel", "batch", "ratio"]]


def run_folder(name: str, root: Path = DATA.parent) -> Path | None:
    """The run folder that `name` means, from the current folder, from `root` or from its runs/; None if none."""
    places = (Path(name).expanduser(), root / name, root / "runs" / name)
    return next((path.resolve() for path in places if name and (path / "run.json").is_file()), None)


def measured(gpu: str, notebook: str, data: Path = DATA) -> tuple[dict, list[dict]]:
    """Return (run, rows) recorded in <data>/measured/<gpu>/<notebook>; run["recorded_on"] is `gpu`.

    FileNotFoundError says what is recorded instead.
    """
    folder = data / "measured" / gpu / notebook
    known = recorded_runs(data)
    if (gpu, notebook) not in known:  # nor is a path outside of `data` taken
        near = difflib.get_close_matches(gpu, {name for name, _ in known}, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near and near[0] != gpu else ""
        listing = ", ".join("/".join(pair) for pair in known) or "none yet"
        raise FileNotFoundError(f"no recorded run of {notebook} on {gpu!r}{hint}; recorded are: {listing}")
    run, rows = load(folder)
    return run | {"recorded_on": gpu}, rows


def origin(run: dict | None, rows: list[dict]) -> str:
    """What a figure's title says of recorded rows, "recorded: H100, qwen3.5-397b-a17b, tp 1"; "" if just measured.

    Names models (their number, if there are more than two), tp, and dtypes of the state other than bfloat16.
    """
    gpu = (run or {}).get("recorded_on")
    if not gpu:
        return ""
    models, tps, dtypes = (
        list(dict.fromkeys(row[field] for row in rows if row.get(field))) for field in ("model", "tp", "state_dtype")
    )
    tps = sorted(tps)
    models = listed(models) if len(models) < 3 else f"{len(models)} models"
    parts = [gpu.upper(), models] + ([f"tp {listed(map(str, tps))}"] if tps else [])
    parts += [f"{listed(dtypes)} state"] if set(dtypes) - {"bfloat16"} else []
    return f"recorded: {', '.join(part for part in parts if part)}"


def titled(title: str, run: dict | None, rows: list[dict], on_cpu: bool = False) -> str:
    """A finding as a figure's title: "CPU times: …", or "… (recorded: H100, qwen3.5-397b-a17b, tp 1)"."""
    where = origin(run, rows)
    return f"{'CPU times: ' if on_cpu else ''}{title}{f' ({where})' if where else ''}"


def recorded_runs(data: Path = DATA) -> list[tuple[str, str]]:
    """(GPU, folder) of every recorded run of a notebook: folders of <data>/measured with its number and a run.json."""
    return sorted((file.parts[-3], file.parts[-2]) for file in (data / "measured").glob("*/[0-9][0-9]_*/run.json"))


def recorded_gpus(data: Path = DATA) -> list[str]:
    """Names of the GPUs that something is recorded of."""
    return sorted({gpu for gpu, _ in recorded_runs(data)})


def recorded_gpu(device: str, data: Path = DATA) -> str | None:
    """The one of recorded_gpus() that a device is, by its name, such as "NVIDIA H200"; None if it is none of them."""
    name = gpu_short_name(device)
    return name if name in recorded_gpus(data) else None
