"""The verdict: words fixed and few, where the kernel is wrong, how it compares, what limits it; as text and JSON.

Correct or not: CORRECT, INCORRECT, REFUSED or ERROR. Faster or not: FASTER, EQUAL or SLOWER (studies/decode_kernels/
yours.py), against a baseline, the best of ours and the best peer, at each batch.
"""

from dataclasses import asdict, dataclass, field

from ..judge.judging import FAIL, Finding
from ..report.text import listed, number_range
from ..studies.decode_kernels.yours import EQUAL, FASTER, OURS, PEER, SLOWER, Against
from .launched import Launched
from .what_limits import Limits

CORRECT, INCORRECT, REFUSED, ERROR = "correct", "incorrect", "refused", "error"
CPU = "Nothing is ranked on a CPU: run the same command on a machine with an NVIDIA GPU for times."
NOT_TIMED = "A kernel that is not correct is not timed."


@dataclass
class Verdict:
    """All that is known of one kernel on one device.

    correctness: one of the four words; why: a sentence of a refusal or an error, else "". sha256: of the file, "" of a
    kernel of the workbook's own. notes: what was not measured.
    """

    kernel: str
    file: str
    device: str
    correctness: str
    why: str = ""
    sha256: str = ""
    checks: list[Finding] = field(default_factory=list)
    speed: list[Against] = field(default_factory=list)
    limits: list[Limits] = field(default_factory=list)
    launched: list[Launched] = field(default_factory=list)
    nsight_compute: list[dict[str, str]] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        return [check for check in self.checks if check.status == FAIL]

    def as_json(self) -> dict:
        """What verdict.json holds."""
        whole = asdict(self) | {"headline": headline(self)}
        for name in ("speed", "limits", "launched"):
            whole[name] = [one._asdict() for one in getattr(self, name)]
        return whole


def headline(verdict: Verdict) -> str:
    """The verdict in one sentence: "mine/vk is correct; faster than …"."""
    said = f"{verdict.kernel} is {verdict.correctness}" if verdict.correctness != ERROR else f"{verdict.kernel}: error"
    if verdict.why:
        return f"{said}: {verdict.why.rstrip('.')}."
    if verdict.wrong:
        count = f"{len(verdict.wrong)} of {len(verdict.checks)} checks"
        return f"{said}: {count} fail, {listed(check.check for check in verdict.wrong)}."
    best = against_the_best(verdict.speed)
    if not best:
        return f"{said}."
    parts = []
    for word, joint in ((FASTER, " than"), (EQUAL, " with"), (SLOWER, " than")):
        if some := [each for each in best if each.word == word]:
            batches = listed(str(each.batch) for each in some)
            ratios = number_range([each.speed_up for each in some])
            parts.append(f"{word}{joint} the best of the others at B = {batches} ({ratios}×)")
    return f"{said}; {'; '.join(parts)}."


def against_the_best(speed: list[Against]) -> list[Against]:
    """At each batch the comparison with the fastest of ours and the peers."""
    best = {}
    for each in speed:
        if each.opponent in (OURS, PEER) and (each.batch not in best or each.other_us < best[each.batch].other_us):
            best[each.batch] = each
    return [best[batch] for batch in sorted(best)]


def text(verdict: Verdict) -> str:
    """The verdict for the terminal: the headline, and what else was found, without the checks."""
    return "\n".join([headline(verdict), *verdict.sentences, *verdict.notes])
