"""Recorded random calls (gdn-lab check --calls): how many each variant has passed on a GPU."""

from pathlib import Path

from ..bench.run_folder import load
from .recorded import DATA
from .text import device_name

FOLDER = "random_calls"  # of data/measured/<gpu>


def recorded(gpu: str, data: Path = DATA) -> tuple[dict, list[dict]] | None:
    """Return what run.json holds and the rows, as judging.random_calls() makes them; None where nothing is recorded."""
    folder = data / "measured" / gpu / FOLDER
    return load(folder) if folder.is_dir() else None


def table(gpu: str, data: Path = DATA) -> str:
    """Markdown: calls, failures and the largest error of each variant, and where and of which commit."""
    found = recorded(gpu, data)
    if found is None:
        return (
            f"Nothing is recorded yet. On such a GPU, `gdn-lab check ours --calls 100000 --runs runs`, then copy "
            f"`run.json` and `rows.jsonl` of `runs/latest` to `data/measured/{gpu}/{FOLDER}/` and `make report`."
        )
    info, rows = found
    lines = [
        "| variant | random calls | failed | refused | largest error, of what is allowed |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        calls, failed, refused = (sum(row[field] for row in mine) for field in ("calls", "failed", "refused"))
        lines.append(f"| `{name}` | {calls:,} | {failed} | {refused} | {max(row['worst'] for row in mine):.0%} |")
    commit = (info["environment"].get("git_commit") or "unknown")[:10]
    return "\n".join([*lines, "", f"Recorded on {device_name(info)}, {info['start_utc'][:10]}, commit {commit}."])
