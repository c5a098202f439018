"""Recorded random calls (gdn-lab check --calls): how many each variant has passed on a GPU."""

import json
from pathlib import Path

from .recorded import DATA

FOLDER = "random_calls"  # of data/measured/<gpu>


def rows(gpu: str, data: Path = DATA) -> list[dict]:
    """Return the rows recorded of a GPU, as judging.random_calls() makes them; none where nothing is recorded."""
    path = data / "measured" / gpu / FOLDER / "rows.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def table(gpu: str, data: Path = DATA) -> str:
    """Markdown: calls, failures and the largest error of each variant, and where and of which commit."""
    found = rows(gpu, data)
    if not found:
        place = f"data/measured/{gpu}/{FOLDER}/rows.jsonl"
        return f"Nothing is recorded yet: `gdn-lab check ours --calls 100000 --rows {place}`."
    lines = [
        "| variant | random calls | failed | refused | largest error, of what is allowed |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(row["variant"] for row in found):
        mine = [row for row in found if row["variant"] == name]
        calls, failed, refused = (sum(row[field] for row in mine) for field in ("calls", "failed", "refused"))
        lines.append(f"| `{name}` | {calls:,} | {failed} | {refused} | {max(row['worst'] for row in mine):.0%} |")
    devices, commits = ({row[field][:24] for row in found} for field in ("device", "commit"))
    where = f"Recorded on {', '.join(sorted(devices))}, commit {', '.join(sorted(commit[:10] for commit in commits))}."
    return "\n".join([*lines, "", where])
