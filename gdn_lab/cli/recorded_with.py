"""With which versions and kernels the runs of a GPU were recorded, and how this checkout differs."""

import json
from collections import defaultdict
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from ..bench.results import load
from ..bench.sources import changed_since

LIBRARIES = {
    "torch": "torch",
    "triton": "triton",
    "flashinfer": "flashinfer-python",
    "cutlass_dsl": "nvidia-cutlass-dsl",
}


def recorded_with(gpu: str, root: Path) -> str:
    """Sentences on data/measured/<gpu>: machine, dates, versions, pins that differ, kernels that changed since."""
    runs = recorded_runs(root / "data" / "measured" / gpu)
    if not runs:
        return f"Nothing is recorded of `{gpu}` yet."
    pins, points = pinned(root / "requirements.txt"), []
    for versions, notebooks in by_versions(runs).items():
        infos = [runs[notebook] for notebook in notebooks]
        points.append(_recorded(notebooks, infos, dict(versions)))
        points.append(_pins(dict(versions), pins))
    points += _changed(runs, root / "data" / "measured" / gpu)
    return "\n".join(f"- {point}" for point in points)


def recorded_runs(folder: Path) -> dict[str, dict]:
    """{notebook: what run.json holds} of every recorded run of a GPU."""
    paths = sorted(folder.glob("*/run.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def by_versions(runs: dict[str, dict]) -> dict[tuple, list[str]]:
    """{((library, version), ...): notebooks recorded with these}."""
    groups = defaultdict(list)
    for notebook, info in runs.items():
        facts = info["environment"]
        groups[tuple((name, facts[name]) for name in LIBRARIES if facts.get(name))].append(notebook)
    return dict(groups)


def pinned(requirements: Path) -> dict[str, str]:
    """{library: version} that requirements.txt installs, for the libraries that a run records."""
    lines = [line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    exact = {}
    for line in lines:
        if line and not line.startswith("-"):
            requirement = Requirement(line)
            exact[requirement.name] = next((s.version for s in requirement.specifier if s.operator == "=="), None)
    return {name: exact[package] for name, package in LIBRARIES.items() if exact.get(package)}


def _recorded(notebooks: list[str], infos: list[dict], versions: dict[str, str]) -> str:
    facts = infos[0]["environment"]
    days = sorted({info["start_utc"][:10] for info in infos})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    commits = sorted({(info["environment"].get("git_commit") or "unknown")[:10] for info in infos})
    driver = f", driver {facts['driver']}" if facts.get("driver") else ""
    return (
        f"Recorded on {facts['gpu_name']}{driver}, {when}: {', '.join(f'`{name}`' for name in notebooks)}, with "
        f"{_listed(versions)} (commit{'s' * (len(commits) > 1)} {', '.join(commits)})."
    )


def _pins(versions: dict[str, str], pins: dict[str, str]) -> str:
    same = [name for name in pins if name in versions and Version(versions[name]).public == pins[name]]
    other = {name: pin for name, pin in pins.items() if name in versions and name not in same}
    if not other:
        return "This checkout installs the same versions."
    return (
        f"This checkout installs {_listed(other)} instead. Both are supported and tested; times with the other "
        "versions can differ from the recorded ones."
    )


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{LIBRARIES[name]} {version}" for name, version in versions.items())


def _changed(runs: dict[str, dict], folder: Path) -> list[str]:
    """Which kernels' sources differ from those that were measured, by notebook."""
    changed, unknown = {}, []
    for notebook, info in runs.items():
        rooms = changed_since(info)
        if rooms is None:
            unknown.append(notebook)
        elif mine := [room for room in rooms if room in rooms_of(folder / notebook)]:
            changed[notebook] = mine
    sentences = []
    if changed:
        listed = "; ".join(f"`{notebook}`: {', '.join(rooms)}" for notebook, rooms in changed.items())
        sentences.append(f"Kernels whose source has changed since they were measured: {listed}.")
    if unknown:
        listed = ", ".join(f"`{notebook}`" for notebook in unknown)
        sentences.append(f"Which kernels these measured cannot be told, for git does not have their commit: {listed}.")
    return sentences or ["The kernels are those of this checkout."]


def rooms_of(folder: Path) -> set[str]:
    """The rooms (bench/sources.py) whose kernels a recorded run timed."""
    _, rows = load(folder)
    timed = [row for row in rows if row.get("status") == "ok"]
    layer = {"layer"} if any(row["phase"] == "step" for row in timed) else set()
    return {row["backend"] for row in timed if row.get("backend")} | layer
