"""What recorded serving runs (notebook 09) say of a whole server, for advice. Imports no torch."""

from pathlib import Path

from ...report.recorded import DATA
from ...report.text import listed
from ..serving.recorded_serving import recorded_serving
from .recorded_calls import called

FIELDS = ("configuration", "concurrency", "output_throughput", "tpot_ms", "tokens_per_s_user", "precision")


def server_rows(gpu: str, model: str, tp: int, batch: int, dtype: str, data: Path = DATA) -> list[dict]:
    """Runs without draft tokens at the recorded concurrency nearest to `batch`, the most tokens per second first."""
    _, rows = recorded_serving(gpu, model, tp, data=data)
    runs = [row for row in rows if row.get("type") == "run" and not row["draft_tokens"] and row["state_dtype"] == dtype]
    nearest = min((row["concurrency"] for row in runs), key=lambda other: abs(other - batch), default=None)
    there = [{name: row[name] for name in FIELDS} for row in runs if row["concurrency"] == nearest]
    return sorted(there, key=lambda row: -row["output_throughput"])


def sentences(rows: list[dict], p) -> list[str]:
    """Tokens per second and TPOT of each configuration, and how far the concurrency is from what was asked."""
    first = rows[0]
    other = f", the recorded concurrency nearest to {p.batch}" if first["concurrency"] != p.batch else ""
    return [
        f"Measured, {p.model} whole with random weights ({first['precision']}) at tp {p.tp} on "
        f"{called(p.gpu_reference)}, C = {first['concurrency']} requests in flight{other}: "
        f"{listed(_one(row) for row in rows)}."
    ]


def _one(row: dict) -> str:
    return f"`{row['configuration']}` {row['output_throughput']:,.0f} tokens/s, TPOT {row['tpot_ms']:.2f} ms"
