"""Two runs of one notebook compared: which settings differ, and by how much each time that both have.

What a row is a time of, its key, are the values of FIELDS. A field of SETTINGS that has one value in each run, another
in each, is a setting that differs, and rows are compared across it.
"""

import difflib
import statistics
from pathlib import Path
from typing import NamedTuple

from ..bench.run_folder import load
from .recorded import DATA, recorded_gpus, recorded_runs, run_folder

FIELDS = (
    *("phase", "sweep", "range", "configuration", "part", "backend", "variant", "indexing", "mode"),
    *("model", "tp", "num_k_heads", "num_v_heads", "state_dtype", "io_dtype", "precision", "skew", "toy", "timer"),
    *("batch", "tokens", "length"),
    *("draft_tokens", "acceptance"),
    *("ranks", "operation", "rows", "hidden", "rounding", "shortcut", "ring_updates"),
)
SETTINGS = ("model", "tp", "num_k_heads", "num_v_heads", "state_dtype", "io_dtype", "precision", "skew", "toy")
NOT_SETTINGS = {"utc"}  # of a run's environment
SAME_BANDWIDTH = 0.01  # measured bandwidths that differ by less are called the same
THRESHOLD = 0.03


class Time(NamedTuple):
    """Median of a row, µs, with its 20th and 80th percentile, None where they were not kept."""

    median_us: float
    p20_us: float | None
    p80_us: float | None


class Change(NamedTuple):
    """One time in both runs. key: {field: value}. ratio: b's median over a's.

    beyond_noise: the ratio is beyond the threshold, and the ranges from p20 to p80 do not overlap. A row without
    percentiles is judged by the ratio alone.
    """

    key: dict
    a: Time
    b: Time
    ratio: float
    beyond_noise: bool


class OnlyIn(NamedTuple):
    """One time that the other run has not. reason: what the other run says of it, "refused: …" or "wrong", or ""."""

    key: dict
    time: Time
    reason: str


class Comparison(NamedTuple):
    """a, b: what the runs are called. settings: (what, its value in a, in b) of each that differs."""

    notebook: str
    a: str
    b: str
    threshold: float
    settings: list[tuple[str, str, str]]
    changes: list[Change]
    only_in_a: list[OnlyIn]
    only_in_b: list[OnlyIn]

    @property
    def beyond(self) -> list[Change]:
        """Those beyond the noise, the largest change first."""
        found = [change for change in self.changes if change.beyond_noise]
        return sorted(found, key=lambda change: max(change.ratio, 1 / change.ratio), reverse=True)


class NothingToCompare(ValueError):
    """A name that is no run, or two runs that share nothing. One sentence."""


# ---- which runs -----------------------------------------------------------------------------------------------------


def sides(a: str, b: str, data: Path = DATA) -> list[tuple[str, str, tuple, tuple]]:
    """(name, name, run and rows, run and rows) of each pair of runs that two names mean.

    A name is a run folder, a recorded GPU ("h100"), of which every run counts, or one recorded run
    ("h100/02_decode_kernels"). NothingToCompare, one sentence, if there is no pair of one notebook.
    """
    those, these = _named(a, data), _named(b, data)
    pairs = []
    for name, (run, rows) in those.items():
        twins = [other for other, (there, _) in these.items() if there["notebook"] == run["notebook"]]
        if len(those) > 1 and len(these) > 1:
            twins = [other for other in twins if other == name]
        elif len(these) > 1:  # one run against a GPU's, of which that with the notebook's name is compared
            twins = [other for other in twins if other == run["notebook"]] or twins[:1]
        elif len(those) > 1 and twins:
            twins = twins if name == _of_notebook(those, run["notebook"]) else []
        pairs += [(_called(a, name, those), _called(b, other, these), (run, rows), these[other]) for other in twins]
    if not pairs:
        held = [", ".join(dict.fromkeys(run["notebook"] for run, _ in runs.values())) for runs in (those, these)]
        raise NothingToCompare(f"{a} holds {held[0]} and {b} holds {held[1]}: no notebook is in both")
    return pairs


def _of_notebook(runs: dict, notebook: str) -> str:
    """Name of the run that stands for a notebook among a GPU's: that with its name, or the first."""
    names = [name for name, (run, _) in runs.items() if run["notebook"] == notebook]
    return notebook if notebook in names else names[0]


def _called(word: str, name: str, runs: dict) -> str:
    """What a run is called: the word that named it, or "h100/02_decode_kernels" of a GPU's several runs."""
    return f"{word}/{name}" if len(runs) > 1 else word


def _named(word: str, data: Path) -> dict[str, tuple[dict, list[dict]]]:
    """{folder: (run, rows)} of what a word names."""
    recorded = {f"{gpu}/{name}": data / "measured" / gpu / name for gpu, name in recorded_runs(data)}
    if folder := recorded.get(word.rstrip("/")) or run_folder(word, data.parent):
        return {folder.name: _loaded(folder)}
    if word in recorded_gpus(data):
        return {name: _loaded(data / "measured" / word / name) for gpu, name in recorded_runs(data) if gpu == word}
    near = difflib.get_close_matches(word, [*recorded_gpus(data), *recorded], n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    known = ", ".join([*recorded_gpus(data), *recorded]) or "none yet"
    raise NothingToCompare(f"{word!r} is no run folder and nothing recorded{hint}; recorded are: {known}")


def _loaded(folder: Path) -> tuple[dict, list[dict]]:
    try:
        run, rows = load(folder)
    except ValueError as error:  # a damaged file
        raise NothingToCompare(str(error)) from None
    if not isinstance(run, dict) or not run.get("notebook"):
        raise NothingToCompare(f"{folder.name} is not a run's folder: its run.json names no notebook")
    return run, rows


# ---- two runs -------------------------------------------------------------------------------------------------------


def compare(a: tuple, b: tuple, names: tuple[str, str] = ("A", "B"), threshold: float = THRESHOLD) -> Comparison:
    """Compare two (run, rows) of one notebook. threshold: a share; smaller changes do not count."""
    (run_a, rows_a), (run_b, rows_b) = ((run, [timed(row) for row in rows]) for run, rows in (a, b))
    across = _differing_fields(rows_a, rows_b)
    fields = [name for name in FIELDS if name not in {what for what, *_ in across}]
    times_a, times_b = (_times(rows, fields) for rows in (rows_a, rows_b))
    changes = [_change(dict(key), times_a[key], times_b[key], threshold) for key in times_a if key in times_b]
    settings = _differing_settings(run_a, run_b) + across + _differing_bandwidth(rows_a, rows_b)
    return Comparison(
        run_a["notebook"],
        *names,
        threshold,
        settings,
        changes,
        _only(times_a, times_b, rows_b),
        _only(times_b, times_a, rows_a),
    )


def timed(row: dict) -> dict:
    """A row of serving with its time where other rows have theirs: TPOT of a run, µs of a part; others as they are."""
    us = {"run": 1e3 * (row.get("tpot_ms") or 0.0), "part": row.get("us")}.get(row.get("type"))
    if row.get("phase") != "serving" or us is None:
        return row
    return {"part": "TPOT"} | row | {"batch": row["concurrency"], "length": None, "median_us": us}


def is_time(row: dict) -> bool:
    """Whether a row holds a time: an "ok" row, or of notebook 04 a fact with a median."""
    median = row.get("median_us")
    return row.get("status") in ("ok", "fact") and isinstance(median, int | float) and median > 0


def _times(rows: list[dict], fields) -> dict[tuple, Time]:
    """{key: its time}, a key as pairs of field and value."""
    found = {}
    for row in filter(is_time, rows):
        key = tuple((name, row[name]) for name in fields if row.get(name) is not None)
        found[key] = Time(row["median_us"], row.get("p20_us"), row.get("p80_us"))
    return found


def _change(key: dict, a: Time, b: Time, threshold: float) -> Change:
    ratio = b.median_us / a.median_us
    overlap = None not in (*a, *b) and a.p20_us <= b.p80_us and b.p20_us <= a.p80_us
    return Change(key, a, b, ratio, not overlap and abs(ratio - 1) > threshold)


def _only(here: dict[tuple, Time], there: dict[tuple, Time], rows_there: list[dict]) -> list[OnlyIn]:
    untimed = [row for row in rows_there if row.get("status") in ("refused", "wrong", "error")]
    return [OnlyIn(dict(key), time, _reason(dict(key), untimed)) for key, time in here.items() if key not in there]


def _reason(key: dict, untimed: list[dict]) -> str:
    """What the other run says of a variant that it did not time at this batch, or at any."""
    for row in untimed:
        same = all(row.get(name) in (None, value) for name, value in key.items())
        if same and row.get("backend") in (key.get("backend"), None):
            reason = row.get("reason") or ", ".join(row.get("wrong_on") or ())
            return f"{row['status']}: {reason}" if reason else row["status"]
    return ""


# ---- settings -------------------------------------------------------------------------------------------------------


def _differing_settings(a: dict, b: dict) -> list[tuple[str, str, str]]:
    """What differs of the machines, versions, parameters and kernels of two runs."""
    flat_a, flat_b = _flat(a), _flat(b)
    names = [*flat_a, *(name for name in flat_b if name not in flat_a)]
    kernels = [bool(run.get("kernels")) for run in (a, b)]
    found = []
    for name in names:
        values = flat_a.get(name), flat_b.get(name)
        unknown = name.startswith(("kernels of", "SM clock")) and (None in values) and not all(kernels)
        if values[0] != values[1] and not unknown:
            found.append((name, *(_shown(value) for value in values)))
    return found


def _flat(run: dict) -> dict[str, object]:
    """{what: value} of a run's settings, in the order in which they are shown."""
    environment = {name: value for name, value in (run.get("environment") or {}).items() if name not in NOT_SETTINGS}
    flat = {name: value for name, value in environment.items() if not name.startswith("git_")}
    sampled = (run.get("clocks_during") or {}).get("sm_mhz")
    if sampled:
        flat["SM clock while timing, median MHz"] = sampled.get("median")
    flat |= {name: environment[name] for name in ("git_commit", "git_dirty") if name in environment}
    flat |= {f"parameter {name}": value for name, value in (run.get("parameters") or {}).items()}
    return flat | {f"kernels of {room}": digest for room, digest in (run.get("kernels") or {}).items()}


def _shown(value) -> str:
    if value is None:
        return "not recorded"
    text = str(value) or "empty"
    is_hash = len(text) == 40 and set(text) <= set("0123456789abcdef")
    return text[:10] if is_hash else text


def _differing_fields(rows_a: list[dict], rows_b: list[dict]) -> list[tuple[str, str, str]]:
    found = []
    for name in SETTINGS:
        values = [
            {row[name] for row in rows if is_time(row) and row.get(name) is not None} for rows in (rows_a, rows_b)
        ]
        if values[0] != values[1] and all(len(each) == 1 for each in values):
            found.append((name, *(str(*each) for each in values)))
    return found


def _differing_bandwidth(rows_a: list[dict], rows_b: list[dict]) -> list[tuple[str, str, str]]:
    measured = [[row["roof_gb_per_s"] for row in rows if row.get("roof_gb_per_s")] for rows in (rows_a, rows_b)]
    if not all(measured):
        return []
    a, b = (statistics.median(each) for each in measured)
    return [("measured bandwidth, GB/s", f"{a:,.0f}", f"{b:,.0f}")] if abs(b / a - 1) > SAME_BANDWIDTH else []
