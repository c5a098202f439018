"""At which commit, with which versions and kernels the runs of a GPU were recorded, and how this checkout differs.

A record is the rows of one run in data/measured/<gpu>/<record>/, of the commit that its run.json names.
"""

import json
from collections import defaultdict
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from ..bench.results import load
from ..bench.sources import changed_since

UNKNOWN = "unknown: git does not have the commit"
LIBRARIES = {
    "torch": "torch",
    "triton": "triton",
    "flashinfer": "flashinfer-python",
    "cutlass_dsl": "nvidia-cutlass-dsl",
}

MORE_ROOMS = {  # {phase of a row: rooms whose kernels ran beside those of its backend}
    "step": ("layer",),
    "profile": ("layer", "triton"),
    "serving": ("layer", "engine"),
    "all_reduce": ("engine",),
}


def recorded_with(gpu: str, root: Path) -> str:
    """Sentences on data/measured/<gpu>, then a table of its records: commit, date, kernels that changed since."""
    folder = root / "data" / "measured" / gpu
    runs = recorded_runs(folder)
    if not runs:
        return f"Nothing is recorded of `{gpu}` yet."
    pins, points = pinned(root / "requirements.txt"), [of_commits(runs)]
    groups = by_versions(runs)
    for versions, records in groups.items():
        points.append(_recorded(runs, records if len(groups) > 1 else [], dict(versions)))
        points.append(_pins(dict(versions), pins))
    lines = ["| record | commit | date | kernels changed since |", "|:--|:--|:--|:--|"]
    for record, info in runs.items():
        lines.append(f"| `{record}` | {commit_of(info)} | {date_of(info)} | {changed_kernels(info, folder / record)} |")
    return "\n".join(f"- {point}" for point in points) + "\n\n" + "\n".join(lines)


def of_commits(runs: dict[str, dict]) -> str:
    """One sentence: of which commits the records of a GPU are."""
    commits = {commit_of(info) for info in runs.values()}
    if len(runs) == 1:
        return f"The one record is of commit {commits.pop()}."
    if len(commits) == 1:
        return f"All {len(runs)} records are of commit {commits.pop()}."
    return (
        f"The {len(runs)} records are of {len(commits)} commits: each belongs to the one in its `run.json`. Kernels "
        "can differ between commits; ratios are formed within one record."
    )


def commit_of(info: dict) -> str:
    """The first ten digits of a run's commit."""
    return (info["environment"].get("git_commit") or "unknown")[:10]


def date_of(info: dict) -> str:
    """The day on which a run began, UTC."""
    return info["start_utc"][:10]


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


def _recorded(runs: dict[str, dict], named: list[str], versions: dict[str, str]) -> str:
    """On what and when, with which versions. named: the records of these versions; [] if all are."""
    infos = [runs[record] for record in named or runs]
    facts, days = infos[0]["environment"], sorted(map(date_of, infos))
    when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    driver = f", driver {facts['driver']}" if facts.get("driver") else ""
    listed = f": {', '.join(f'`{name}`' for name in named)}" if named else ""
    return f"Recorded on {facts['gpu_name']}{driver}, {when}{listed}, with {_listed(versions)}."


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


def changed_kernels(info: dict, folder: Path) -> str:
    """Which of the kernels that a run timed differ in their source from those of this checkout."""
    rooms = changed_since(info)
    if rooms is None:
        return UNKNOWN
    return ", ".join(room for room in rooms if room in rooms_of(folder)) or "none"


def rooms_of(folder: Path) -> set[str]:
    """The rooms (bench/sources.py) whose kernels a recorded run used."""
    _, rows = load(folder)
    used = [row for row in rows if row.get("status") in ("ok", "fact")]
    named = {row.get("backend") or str(row.get("variant", "")).partition("/")[0] for row in used}
    return named.union(*(MORE_ROOMS.get(row.get("phase"), ()) for row in used))
