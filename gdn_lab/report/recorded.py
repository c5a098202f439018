"""Recorded figures: data/published (what others report) and data/measured (what this workbook measured, by GPU)."""

from pathlib import Path

import pandas

from ..bench import results

DATA = Path(__file__).resolve().parents[2] / "data"


def published(table: str, source: str = "pr19150") -> pandas.DataFrame:
    """One published table; its header in the CSV says where it comes from. FileNotFoundError lists the tables."""
    path = DATA / "published" / source / f"{table}.csv"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.csv"))) or f"nothing in {path.parent}"
        raise FileNotFoundError(f"published table {table!r} of {source!r} is not there; choose one of: {known}")
    return pandas.read_csv(path, comment="#")


def published_ratios() -> pandas.DataFrame:
    """The pull request's microbenchmark as ratios: batch, tri_over_fi, sg_over_fi (times over FlashInfer's)."""
    table = published("decode_microbenchmark")
    return pandas.DataFrame(
        {
            "batch": table.batch,
            "tri_over_fi": table.tri_kv_bf16_us / table.fi_vk_bf16_us,
            "sg_over_fi": table.sg_vk_bf16_us / table.fi_vk_bf16_us,
        }
    )


def measured(gpu: str, notebook: str, data: Path = DATA) -> tuple[dict, list[dict]]:
    """(run, rows) recorded in <data>/measured/<gpu>/<notebook>. FileNotFoundError says what is recorded instead."""
    folder = data / "measured" / gpu / notebook
    if not (folder / "run.json").is_file():
        known = sorted("/".join(file.parts[-3:-1]) for file in (data / "measured").glob("*/*/run.json"))
        raise FileNotFoundError(
            f"no recorded run of {notebook} on {gpu!r}; recorded are: {', '.join(known) or 'none yet'}"
        )
    return results.load(folder)


def recorded_gpus(data: Path = DATA) -> list[str]:
    """Names of the GPUs that something is recorded of: the folders of <data>/measured."""
    return sorted({file.parts[-3] for file in (data / "measured").glob("*/*/run.json")})
