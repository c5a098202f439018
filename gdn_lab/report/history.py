"""data/measured/<gpu>/history.jsonl: a line for each record of a GPU; is a new version faster or slower?

A line: utc, runs: {folder: {commit, versions, headlines: {what: time}}}, seconds: {piece: that it took}.
"""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from ..files import replacing
from ..names import LIBRARIES
from .text import number

FILE = "history.jsonl"
VERSIONS = ("driver", *LIBRARIES)
BATCHES = (1, 64, 256)
LENGTHS = (2048, 8192)


def read(data: Path, gpu: str) -> list[dict]:
    """The lines of a GPU's history, the oldest first; [] where nothing is kept. ValueError for a damaged line."""
    path = data / "measured" / gpu / FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} has a damaged line ({error}); restore it with git") from None


def append(data: Path, gpu: str, line: dict) -> None:
    """Add a line; the file is whole at any moment."""
    path = data / "measured" / gpu / FILE
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    with replacing(path) as partial:
        partial.write_text(before + json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")


def last_seconds(data: Path, gpu: str) -> dict[str, float]:
    """{piece: seconds that it took in the newest record that has it}."""
    found = {}
    for line in read(data, gpu):
        found |= line.get("seconds", {})
    return found


def of_run(info: dict, rows: Iterable[dict]) -> dict:
    """What history keeps of one run: commit, versions and headlines."""
    facts = info["environment"]
    versions = {name: facts[name] for name in VERSIONS if facts.get(name)}
    return {"commit": facts.get("git_commit"), "versions": versions, "headlines": headlines(rows)}


def headlines(rows: Iterable[dict]) -> dict[str, float]:
    """{what: time} of a few rows that every record has: µs of calls in place and of steps, ms of TPOT in serving."""
    found = {}
    for row in rows:
        name = _step(row) or _call(row)
        if name and row.get("status") == "ok" and row.get("timer") == "cuda_graph_replay":
            found.setdefault(name, round(row["median_us"], 3))
        elif row.get("type") == "run" and row.get("phase") == "serving" and not row.get("draft_tokens"):
            if row["concurrency"] in BATCHES and row.get("tpot_ms"):
                key = f"TPOT {row['configuration']}, tp {row['tp']}, {row['concurrency']} requests"
                found.setdefault(key, round(row["tpot_ms"], 3))
    return found


def _step(row: dict) -> str | None:
    if row.get("phase") != "step" or row.get("part") != "step" or row.get("sweep") != "step":
        return None
    return f"step {row['configuration']}, batch {row['batch']}"


def _call(row: dict) -> str | None:
    if not row.get("variant") or row.get("indexing", "in_place") != "in_place":
        return None
    variant, phase, batch = f"{row['backend']}/{row['variant']}", row.get("phase"), row.get("batch")
    if phase == "decode" and batch in BATCHES:
        return f"decode {row['state_dtype']}, batch {batch}, {variant}"
    if phase == "verify" and row.get("mode") == "update":
        return f"verify {row['tokens']} tokens, batch {batch}, {variant}"
    if phase == "prefill" and batch == 1 and row.get("length") in LENGTHS:
        return f"prefill {row['length']} tokens, tp {row['tp']}, {variant}"
    return None


def series(lines: list[dict], folder: str) -> dict[str, list[tuple[int, float]]]:
    """{headline: [(number of the line, value)]} of one folder's runs."""
    found: dict[str, list[tuple[int, float]]] = {}
    for position, line in enumerate(lines):
        for name, value in line["runs"].get(folder, {}).get("headlines", {}).items():
            found.setdefault(name, []).append((position, value))
    return found


def changed_versions(before: dict, after: dict) -> list[str]:
    """ "triton 3.5 → 3.6" of what differs between two runs of a history, among what both have kept."""
    then, now = before["versions"], after["versions"]
    both = [name for name in VERSIONS if name in then and name in now]
    return [f"{name} {then[name]} → {now[name]}" for name in both if then[name] != now[name]]


def sentences(lines: list[dict]) -> list[str]:
    """Of each folder the newest record against the one before it: what changed, and the median and largest change."""
    found = []
    for folder in sorted({folder for line in lines for folder in line["runs"]}):
        runs = [line["runs"][folder] for line in lines if folder in line["runs"]]
        if len(runs) >= 2 and (sentence := _compared(folder, runs[-2], runs[-1])):
            found.append(sentence)
    return found


def _compared(folder: str, before: dict, after: dict) -> str | None:
    both = [name for name in before["headlines"] if name in after["headlines"]]
    if not both:
        return None
    changes = {name: after["headlines"][name] / before["headlines"][name] - 1 for name in both}
    most = max(changes, key=lambda name: abs(changes[name]))
    middle = statistics.median(changes.values())
    what = ", ".join(changed_versions(before, after)) or "the same versions"
    then, now = (str(run["commit"])[:10] for run in (before, after))
    commits = f"commit {then} → {now}" if then != now else f"commit {now}, recorded twice"
    return (
        f"`{folder}`, {commits}, {what}: {len(both)} headline number{'s' * (len(both) > 1)} changed by "
        f"{number(middle, '+.1%')} in the median, most `{most}` by {number(changes[most], '+.1%')}."
    )
