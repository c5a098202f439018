"""Timed: the rows of one run that tables, sentences and figures show, selected once and passed to all of them.

A row is a dict as bench/results.py writes it. Variants are keyed by full name, "backend/variant"; what people read is
their label. `times` always means median_us.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import pandas

from ..backends.registry import in_order, variant
from .recorded import titled
from .text import device_name, listed

TIMER_ORDER = ("cuda_graph_replay", "host_clock", "cupti_kernel")  # the first that a set of rows has is shown


class Timed:
    """The timed rows of one run and phase, with one timer and one indexing.

    rows: selected, in the order they were measured. all_rows: everything given, with what was refused or wrong.
    run: what run.json holds, or None. phase: "decode", "verify", "prefill" or None for any. indexing: "in_place",
    "gather_scatter", "detour" or None for any. timer: by default the first of TIMER_ORDER that occurs.
    """

    def __init__(self, rows: Iterable[dict], run: dict | None = None, *, phase=None, indexing="in_place", timer=None):
        self.all_rows, self.run, self.phase, self.indexing = list(rows), run, phase, indexing
        ok = [row for row in self.all_rows if self._is_timed(row)]
        present = {row["timer"] for row in ok}
        self.timer = timer or next((name for name in TIMER_ORDER if name in present), None)
        self.rows = [row for row in ok if row["timer"] == self.timer and indexing in (None, row["indexing"])]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def selected(self, **changes) -> "Timed":
        """The same rows with another `phase`, `indexing` or `timer`."""
        options = {"phase": self.phase, "indexing": self.indexing, "timer": self.timer} | changes
        return Timed(self.all_rows, self.run, **options)

    def where(self, keep) -> "Timed":
        """Only the timed rows for which keep(row) is true; what was refused or wrong, or of another phase, stays known.

        keep is asked about the rows of this phase with any indexing and timer.
        """
        kept = [row for row in self.all_rows if not self._is_timed(row) or keep(row)]
        return Timed(kept, self.run, phase=self.phase, indexing=self.indexing, timer=self.timer)

    def _is_timed(self, row: dict) -> bool:
        return row.get("status") == "ok" and self.phase in (None, row["phase"])

    def kernels(self) -> "Timed":
        """Without eager PyTorch, unless nothing else was timed."""
        others = self.where(lambda row: variant(name_of(row)).role != "eager")
        return others if others else self

    def named(self, *roles: str) -> list[str]:
        """Full names of the variants timed whose role is one of `roles`, in order: named("baseline")."""
        return [name for name in self.names if variant(name).role in roles]

    def at(self, batch: int) -> dict[str, dict]:
        """{variant: its row at one batch}, those timed there."""
        return {name_of(row): row for row in sorted(self.rows, key=_place) if row["batch"] == batch}

    @property
    def on_cpu(self) -> bool:
        return self.timer == "host_clock"

    @property
    def names(self) -> list[str]:
        """Full names of the variants, in the order of tables and figures."""
        return in_order(name_of(row) for row in self.rows)

    @property
    def batches(self) -> list[int]:
        return sorted({row["batch"] for row in self.rows})

    def by_variant(self) -> dict[str, list[dict]]:
        """{variant: its rows, sorted by batch}."""
        groups = defaultdict(list)
        for row in self.rows:
            groups[name_of(row)].append(row)
        return {name: sorted(groups[name], key=lambda row: row["batch"]) for name in self.names}

    def times(self) -> dict[str, dict[int, float]]:
        """{variant: {batch: median µs}}."""
        return self.values(lambda row: row["median_us"])

    def values(self, value) -> dict[str, dict[int, float]]:
        """{variant: {batch: value(row)}}."""
        return {name: {row["batch"]: value(row) for row in rows} for name, rows in self.by_variant().items()}

    def ratios_to(self, base: str) -> dict[str, dict[int, float]]:
        """{variant: {batch: its time over that of the variant `base`}} where both were timed, `base` left out."""
        times = self.times()
        return ratios(times, times.pop(base, {}))

    def frame(self) -> pandas.DataFrame:
        """One line for each row, with the column `name`; empty columns where a row lacks a field."""
        return pandas.DataFrame([row | {"name": name_of(row)} for row in self.rows])

    def conditions(self, what: str) -> str:
        """What the figures hold for, in one line: device, `what`, timer, sample counts, measured bandwidth."""
        if not self.rows:
            return ""
        counts = sorted({row["count"] for row in self.rows})
        samples = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        parts = [device_name(self.run)] if self.run else []
        parts += [what, f"{self.timer}, median of {samples} samples"]
        parts.append(f"measured bandwidth {self.rows[0]['roof_gb_per_s']:,.0f} GB/s (in-place read-modify-write)")
        return " · ".join(parts)

    def titled(self, finding: str) -> str:
        """A figure's title: the finding, and that these are times of a CPU, or where and of which model recorded."""
        return titled(finding, self.run, self.rows, self.on_cpu)

    def notes_on_copies(self) -> list[str]:
        """A note if some of the variants gather and scatter states within their own calls."""
        names = [variant(name).label for name in self.names if variant(name).copies]
        return [f"{', '.join(names)}: time includes the gather and scatter that its calls need."] if names else []

    def not_timed(self) -> list[str]:
        """What refused, one sentence for each reason, and what was wrong, one for each variant and batch."""
        return not_timed(self.all_rows)

    def outside_tolerance(self) -> list[str]:
        """A sentence for each variant that was timed although it is not right on all hard inputs."""
        by_name = defaultdict(list)
        for row in self.all_rows:
            if self._is_timed(row) and is_outside(row):
                by_name[name_of(row)].append(row)
        return [_outside_sentence(name, by_name[name]) for name in in_order(by_name)]


def name_of(row: dict) -> str:
    """ "backend/variant" of a row."""
    return f"{row['backend']}/{row['variant']}"


def is_outside(row: dict) -> bool:
    """Whether a timed row is another library's whose results are outside the tolerance on some hard inputs."""
    return row["status"] == "ok" and bool(row.get("wrong_on"))


def _outside_sentence(name: str, rows: list[dict]) -> str:
    """On which hard inputs a variant is outside the tolerance, by how much at worst, and how much is allowed.

    A kind's error is that of the output or of the state, whichever is larger relative to its largest element.
    """
    worst: dict[str, tuple[float, str]] = {}  # by kind: the error, and of what
    for errors in (row["wrong_errors"] for row in rows):
        for kind, error in errors.items():
            found = max((math.inf if value is None else value, what) for what, value in error.items())
            worst[kind] = max(worst.get(kind, found), found)
    whose = {"o": "of the largest output", "state": "of the state's largest element"}
    said, parts = set(), []
    for kind, (error, what) in worst.items():
        size = "not finite" if math.isinf(error) else f"{error:.2g}"
        if not math.isinf(error) and what not in said:
            size += f" {whose[what]}"
            said.add(what)
        if not parts:
            size += f"; allowed {max(row['allowed_error'] for row in rows):.1g}"
        parts.append(f"{kind} ({size})")
    return f"{variant(name).label} is outside the tolerance on {listed(parts)}: timed for comparison, not right there."


def _place(row: dict) -> tuple:
    """Sorts rows as tables and figures order variants."""
    return variant(name_of(row)).order, name_of(row)


def ratios(times: dict[str, dict], base: dict[int, float]) -> dict[str, dict[int, float]]:
    """{name: {batch: time over base's}} of {name: {batch: time}} and {batch: time}, where base has the batch."""
    found = {
        name: {batch: us / base[batch] for batch, us in by_batch.items() if batch in base}
        for name, by_batch in times.items()
    }
    return {name: by_batch for name, by_batch in found.items() if by_batch}


def largest_batch(by_variant: dict[str, dict[int, float]]) -> int:
    """The largest batch of {variant: {batch: …}}."""
    return max(batch for by_batch in by_variant.values() for batch in by_batch)


# Reasons in older records, as they are given today.
REWORDED = {
    "reads cu_seqlens on the host, which the timers of a GPU cannot have; correct, and not timed": (
        "synchronises with the host, so it cannot be captured in a CUDA graph; checked, not timed"
    )
}


def not_timed(rows) -> list[str]:
    """What refused, one sentence for each reason, and what was wrong, one for each variant and batch."""
    refused, wrong = defaultdict(dict), {}
    for row in rows:
        if row.get("status") == "refused":
            if row["reason"] != f"has no {row.get('phase')} kernel":  # made for another phase
                refused[REWORDED.get(row["reason"], row["reason"])][variant(name_of(row)).label] = None
        elif row.get("status") == "error":
            case = f"{variant(name_of(row)).label} at B = {row['batch']} ({row['timer']})"
            wrong[f"{case} left out: {row['reason']}"] = None
        elif row.get("status") == "wrong":
            error = "not finite" if row["max_abs_error"] is None else f"{row['max_abs_error']:.2g}"
            inputs = f", {listed(row['wrong_on'])}" if row.get("wrong_on") else ""
            case = f"{variant(name_of(row)).label} wrong at B = {row['batch']}{inputs}"
            wrong[f"{case} (largest error {error}): not timed"] = None
    return [f"{', '.join(names)} refused: {reason}" for reason, names in refused.items()] + list(wrong)
