"""How long a case will take, from those before it."""

import time
from statistics import median

from ...backends.registry import VARIANTS
from .accuracy_cases import BATCH, FP8, PADDED, Case, padded
from .answering import DECODE, PREFILL, VERIFY

TAKEN = 4.8  # tokens that a verify step keeps on average: eight, of which seven are drafts, 15% of them wrong


class Clock:
    """The time that is left, and the seconds that cases take."""

    def __init__(self, seconds: float, clock=time.monotonic):
        self._clock, self._end, self._rates = clock, clock() + seconds, {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - self._clock()

    def predicted(self, p, case: Case) -> float | None:
        """Seconds of a case, at the median rate of those of its kind; None if there was none."""
        rates = self._rates.get(_kind(case))
        return median(rates) * _work(p, case) if rates else None

    def allows(self, p, case: Case) -> bool:
        """Whether to begin a case. One of a new kind is begun while any time is left."""
        return self.left > (self.predicted(p, case) or 0.0)

    def took(self, p, case: Case, seconds: float) -> None:
        """Note how long a case took."""
        self._rates.setdefault(_kind(case), []).append(seconds / _work(p, case))


def _kind(case: Case) -> tuple:
    """Cases whose time grows with _work() alike: eager kernels and FP8's commit() take several times as long."""
    return case.path, case.shortcut in PADDED, VARIANTS[case.kernel].role == "eager", case.dtype == FP8


def _work(p, case: Case) -> float:
    """What the time of a case is proportional to: calls of the model, or tokens of prompts."""
    count, stepped = padded(case, p.questions, p.stepped_of(case.tokens))
    if case.shortcut in PADDED:
        return count / BATCH * stepped
    return {PREFILL: count * case.tokens, DECODE: stepped, VERIFY: stepped / TAKEN}[case.path]
