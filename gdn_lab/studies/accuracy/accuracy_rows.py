"""Rows of answered questions, and what two cases that answered the same questions say of each other."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ...report.nearest import candidate_runs
from ...report.recorded import DATA
from .accuracy_cases import FP8, NO_SHORTCUT, Case, baseline_of, case_of
from .answering import DECODE
from .proportions import Interval, difference, mcnemar, wilson

NOTEBOOK, PHASE = "11_accuracy", "accuracy"
ALL = "all"  # kinds of questions together


def bits(right: list[bool]) -> str:
    """Right and wrong as hexadecimal digits, the first question the highest bit of the first digit."""
    padded = [*right, *[False] * (-len(right) % 4)]
    return "".join(f"{sum(padded[i + j] << (3 - j) for j in range(4)):x}" for i in range(0, len(padded), 4))


def answers_of(row: dict) -> list[bool]:
    """Right and wrong of a row's questions: what bits() made text of."""
    digits = (int(digit, 16) for digit in row["right_bits"])
    return [bool(digit >> (3 - j) & 1) for digit in digits for j in range(4)][: row["questions"]]


def recorded_accuracy(gpu: str, data: Path = DATA) -> tuple[dict, list[dict]]:
    """(run, rows) recorded on a GPU, or of a run folder, with the most rows; ({}, []) where there is none."""
    return max(_recorded(gpu, data), key=lambda one: len(one[1]), default=({}, []))


def recorded_fp8(gpu: str, data: Path = DATA) -> "list[AccuracyRows]":
    """The runs recorded on a GPU, or a run folder's, that have an FP8 state."""
    found = [AccuracyRows(rows, run) for run, rows in _recorded(gpu, data)]
    return [rows for rows in found if any(case.dtype == FP8 for case in rows.cases)]


def _recorded(gpu: str, data: Path) -> list[tuple[dict, list[dict]]]:
    try:
        return list(candidate_runs(gpu, NOTEBOOK, data).values())
    except ValueError:  # the folder of another notebook's run
        return []


class Comparison(NamedTuple):
    """A case against another on the same questions: lost, that only the other answers right; won, that only it does."""

    lost: int
    won: int
    total: int

    @property
    def change(self) -> Interval:
        """Of the share of right answers."""
        return difference(self.lost, self.won, self.total)

    @property
    def p(self) -> float:
        """McNemar's exact test, two-sided."""
        return mcnemar(self.lost, self.won)


class AccuracyRows:
    """The rows of one run. right: {Case: {kind: [right or wrong]}}, ALL among the kinds. refused: rows that say why a
    case could not run. run: what run.json holds, or None."""

    def __init__(self, rows: Iterable[dict], run: dict | None = None):
        self.run, self.all_rows = run, [row for row in rows if row.get("phase") == PHASE]
        self.refused = [row for row in self.all_rows if row["status"] == "refused"]
        self.answered = [row for row in self.all_rows if row["status"] == "fact"]
        self.right: dict[Case, dict[str, list[bool]]] = {}
        for row in self.answered:
            self.right.setdefault(case_of(row), {})[row["kind"]] = answers_of(row)
        for kinds in self.right.values():
            kinds[ALL] = [answer for answers in list(kinds.values()) for answer in answers]

    def __bool__(self) -> bool:
        return bool(self.right)

    @property
    def cases(self) -> list[Case]:
        """Cases that were answered, in the order in which they were."""
        return list(self.right)

    @property
    def kinds(self) -> list[str]:
        """Kinds of questions, without ALL."""
        return list(dict.fromkeys(row["kind"] for row in self.answered))

    @property
    def tokens(self) -> list[int]:
        """Lengths of prompts, ascending."""
        return sorted({case.tokens for case in self.right})

    @property
    def states(self) -> list[Case]:
        """Cases that differ in the state alone, of decode() at all lengths: the baseline's kernel, FP8 on its own."""
        found = [case for case in self.cases if case.path == DECODE and case.shortcut == NO_SHORTCUT]
        return [case for case in found if case.kernel == self.baseline or case.dtype == FP8]

    @property
    def baseline(self) -> str:
        """The kernel that others are compared with: of the case that was answered first."""
        return self.cases[0].kernel

    def interval(self, case: Case, kind: str = ALL) -> Interval:
        """The share of right answers."""
        answers = self.right[case][kind]
        return wilson(sum(answers), len(answers))

    def compared(self, case: Case, other: Case | None = None, kind: str = ALL) -> Comparison | None:
        """A case against another one, by default the baseline's float32; None where that was not answered."""
        other = other or baseline_of(case, self.baseline)
        if other == case or other not in self.right:
            return None
        pairs = list(zip(self.right[other][kind], self.right[case][kind], strict=True))
        lost = sum(before and not after for before, after in pairs)
        won = sum(after and not before for before, after in pairs)
        return Comparison(lost, won, len(pairs))

    def adjusted(self) -> dict[Case, float]:
        """{case: p} of all comparisons with the baseline, adjusted for their number (S. Holm, 1979)."""
        found = {case: both.p for case in self.cases if (both := self.compared(case))}
        adjusted, largest = {}, 0.0
        for place, (case, p) in enumerate(sorted(found.items(), key=lambda one: one[1])):
            largest = max(largest, min(1.0, p * (len(found) - place)))
            adjusted[case] = largest
        return adjusted
