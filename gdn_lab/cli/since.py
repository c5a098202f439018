"""What changed from one run of a notebook to the next: settings, then times beyond the noise, then the answer."""

from ..bench import results
from ..report.text import percent
from .run_folders import RunFolder

MOST = 3
THRESHOLD = 0.03
VERSIONS = ("gpu_name", "driver", "torch", "triton", "flashinfer", "cutlass_dsl", "git_commit")
SETTING = (
    *("phase", "backend", "variant", "layout", "state_dtype", "batch", "tokens", "num_k_heads", "num_v_heads"),
    *("indexing", "timer", "mode", "configuration", "workload", "part", "model", "tp"),
)


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
    now, then = _rows(run), _rows(before)
    both = [key for key in now if key in then]
    moved = [key for key in both if _differs(now[key], then[key])]
    if not both:
        return []
    if not moved:
        return [f"None of {len(both)} times changed by more than {percent(THRESHOLD)}."]
    largest = max(moved, key=lambda key: abs(_change(now[key], then[key])))
    row = now[largest]
    what = f"{row['backend']}/{row['variant']} at B = {row['batch']}"
    change = percent(_change(row, then[largest]))
    return [f"{len(moved)} of {len(both)} times changed by more than {percent(THRESHOLD)}, {what} the most: {change}."]


def _rows(run: RunFolder) -> dict[tuple, dict]:
    try:
        _, rows = results.load(run.folder)
    except (OSError, ValueError):
        return {}
    timed = [row for row in rows if row["status"] == "ok" and row["timer"] != "host_clock"]
    return {tuple(str(row.get(name)) for name in SETTING): row for row in timed}


def _change(row: dict, then: dict) -> float:
    return row["median_us"] / then["median_us"] - 1


def _differs(row: dict, then: dict) -> bool:
    apart = row["p20_us"] > then["p80_us"] or row["p80_us"] < then["p20_us"]
    return apart and abs(_change(row, then)) > THRESHOLD


def _answer(run: RunFolder, before: RunFolder) -> list[str]:
    now, then = run.answer, before.answer
    if not now or not then or now["sentences"][:1] == then["sentences"][:1]:
        return []
    return [f"The answer began: {then['sentences'][0]}"] if then["sentences"] else []
