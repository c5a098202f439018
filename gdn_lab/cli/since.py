"""What changed from one run of a notebook to the next: settings, then times beyond the noise, then the answer."""

from ..bench.run_folder import load
from ..names import LIBRARIES
from ..report.comparison import THRESHOLD, compare
from ..report.comparison_text import Words
from ..report.text import percent
from .run_folders import RunFolder

MOST = 3
VERSIONS = ("gpu_name", "driver", *LIBRARIES, "git_commit")


def changes(run: RunFolder, before: RunFolder) -> list[str]:
    """Return at most MOST sentences; times of a CPU are not compared."""
    return [*_settings(run, before), *_times(run, before), *_answer(run, before)][:MOST]


def _settings(run: RunFolder, before: RunFolder) -> list[str]:
    now, then = run.info.get("environment", {}), before.info.get("environment", {})
    different = [
        f"{name} {_short(then[name])} → {_short(now[name])}"
        for name in VERSIONS
        if now.get(name) and then.get(name) and now[name] != then[name]
    ]
    now, then = run.info.get("parameters", {}), before.info.get("parameters", {})
    different += [f"{name} {then.get(name)} → {now[name]}" for name in now if now[name] != then.get(name)]
    return [f"Set differently: {', '.join(different)}."] if different else []


def _short(value) -> str:
    return str(value)[:10] if len(str(value)) == 40 else str(value)


def _times(run: RunFolder, before: RunFolder) -> list[str]:
    """Return a sentence on the times whose ranges from p20 to p80 do not overlap and that differ by THRESHOLD."""
    found = compare(_timed(before), _timed(run), threshold=THRESHOLD)
    if not found.changes:
        return []
    if not found.beyond:
        return [f"None of {len(found.changes)} times changed by more than {percent(THRESHOLD)}."]
    largest, words = found.beyond[0], Words(found)
    what = " at ".join(part for part in (words.what(largest.key), words.point(largest.key)) if part)
    most = f"{what} the most: {percent(largest.ratio - 1)}"
    return [f"{len(found.beyond)} of {len(found.changes)} times changed by more than {percent(THRESHOLD)}, {most}."]


def _timed(run: RunFolder) -> tuple[dict, list[dict]]:
    """Return what a run was and its rows of a GPU's times."""
    try:
        info, rows = load(run.folder)
    except (OSError, ValueError):
        return {"notebook": run.notebook}, []
    return {"notebook": run.notebook} | info, [row for row in rows if row.get("timer") != "host_clock"]


def _answer(run: RunFolder, before: RunFolder) -> list[str]:
    now, then = run.answer, before.answer
    if not now or not then or now["sentences"][:1] == then["sentences"][:1]:
        return []
    return [f"The answer began: {then['sentences'][0]}"] if then["sentences"] else []
