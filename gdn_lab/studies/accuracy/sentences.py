"""What accuracy rows say, in words. A claim needs LEAST_QUESTIONS questions and an adjusted p below 0.05."""

from ...report.style import label
from ...report.text import listed
from .accuracy_cases import (
    BATCH,
    FLOAT32,
    FP8,
    NEAREST,
    NO_DT_BIAS,
    NO_SHORTCUT,
    PADDED,
    PADDING,
    STOCHASTIC,
    UNGUARDED,
    Case,
    case_of,
)
from .accuracy_rows import ALL, AccuracyRows
from .analysis import LEAST_QUESTIONS, p_text, percent, points, signed, what
from .answering import PATHS
from .proportions import Interval, wilson

SURE = 0.05


def answers(rows: AccuracyRows) -> list[str]:
    """The answer, a sentence each; fp8() has more on an FP8 state."""
    if not rows:
        return ["Nothing was answered."]
    total = len(rows.right[rows.cases[0]][ALL])
    if total < LEAST_QUESTIONS:
        lines = [f"{path}: {_right(rows, path)}." for path in PATHS if _cases(rows, path)]
        return [*lines, f"{total} questions allow no claim; a claim needs {LEAST_QUESTIONS:,}, which a GPU answers."]
    first = rows.cases[0]
    found = [
        f"With prompts of {first.tokens:,} tokens and a float32 state on {label(rows.baseline)} the model answers "
        f"{percent(rows.interval(first))} of {total:,} questions exactly ({_by_kind(rows, first)})."
    ]
    found += [*_dtypes(rows), *_longer(rows), *_kernels(rows), *_shortcuts(rows), *_padding(rows)]
    return found


def _right(rows: AccuracyRows, path: str) -> str:
    parts = [f"{what(case)} {sum(rows.right[case][ALL])}" for case in _cases(rows, path)]
    return f"of {len(rows.right[_cases(rows, path)[0]][ALL])} questions right: {listed(parts)}"


def _cases(rows: AccuracyRows, path: str) -> list[Case]:
    return [case for case in rows.cases if case.path == path]


def _by_kind(rows: AccuracyRows, case: Case) -> str:
    return ", ".join(f"{kind} {100 * rows.interval(case, kind).share:.1f}%" for kind in rows.kinds)


def _verdict(rows: AccuracyRows, case: Case) -> str:
    """ "−1.2 (−1.9 to −0.5) points, adjusted p < 0.0001: differs", or "no difference shown"."""
    word = "differs" if rows.adjusted()[case] < SURE else "no difference shown"
    return f"{points(rows.compared(case).change)} points, {_adjusted(rows, case)}: {word}"


def _adjusted(rows: AccuracyRows, case: Case) -> str:
    """ "adjusted p < 0.0001"."""
    shown = p_text(rows.adjusted()[case])
    return f"adjusted p {shown if shown.startswith('<') else f'= {shown}'}"


def _differing_first(rows: AccuracyRows, cases: list[Case], name) -> str:
    """ "bfloat16 differs by −2.3 (…) points, adjusted p < 0.0001; no difference is shown for float16 0.0 (…)"."""
    change = {case: points(rows.compared(case).change) for case in cases}
    differing = [case for case in cases if rows.adjusted()[case] < SURE]
    parts = [f"{name(case)} differs by {change[case]} points, {_adjusted(rows, case)}" for case in differing]
    if alike := [f"{name(case)} {change[case]}" for case in cases if case not in differing]:
        parts.append(f"no difference is shown for {listed(alike)} points")
    return "; ".join(parts)


def _dtypes(rows: AccuracyRows) -> list[str]:
    """Narrower states against float32: a sentence for each length of prompt, of decode()."""
    found = []
    for tokens in rows.tokens:
        cases = [case for case in rows.states if case.tokens == tokens and case.dtype != FLOAT32]
        if cases := [case for case in cases if rows.compared(case)]:
            stepped = next(row["stepped"] for row in rows.answered if row["tokens"] == tokens)
            where = f"Against float32, prompts of {tokens:,} tokens, {stepped:,} of them decode steps"
            found.append(f"{where}: {_differing_first(rows, cases, lambda case: case.state)}.")
    return found


def _longer(rows: AccuracyRows) -> list[str]:
    """How a float32 state does at longer prompts, and where a narrower state answers more than float32."""
    found = [case for case in rows.states if case.dtype == FLOAT32 and case.tokens > rows.tokens[0]]
    parts = [f"{percent(rows.interval(case))} at {case.tokens:,} tokens" for case in found]
    if not parts:
        return []
    adjusted = rows.adjusted()
    plain = [case for case in rows.cases if case.shortcut == NO_SHORTCUT and adjusted.get(case, 1.0) < SURE]
    better = [case for case in plain if rows.compared(case).change.low > 0]
    return [
        f"Longer prompts are harder with a float32 state too: {listed(parts)}.",
        *(_more_than_float32(rows, case) for case in better),
    ]


def _more_than_float32(rows: AccuracyRows, case: Case) -> str:
    """Which kind of question a state wins against float32, and whether it does where it is rounded stochastically."""
    both, by_kind = rows.compared(case), {kind: rows.compared(case, kind=kind) for kind in rows.kinds}
    most = max(by_kind, key=lambda kind: by_kind[kind].won - by_kind[kind].lost)
    text = (
        f"At {case.tokens:,} tokens on the path {case.path} {case.state} answers more than float32: it wins {both.won} "
        f"questions and loses {both.lost}, of {most} {by_kind[most].won} and {by_kind[most].lost}"
    )
    other = case._replace(rounding=STOCHASTIC)
    if case.rounding == NEAREST and other in rows.right:
        text += f"; {other.state} {_verdict(rows, other)}"
    return f"{text}. This does not mean that the state is more accurate: see 10_drift."


def fp8(rows: AccuracyRows) -> list[str]:
    """How an FP8 state's answers change against float32's to the same questions: a sentence for each path."""
    adjusted, found = rows.adjusted(), []
    for path in PATHS:
        parts = []
        for case in (case for case in _cases(rows, path) if case.dtype == FP8 and rows.compared(case)):
            verdict = "differs" if adjusted[case] < SURE else "no difference shown"
            unit = "" if parts else " points"
            at = f"{points(rows.compared(case).change)}{unit} at {case.tokens:,}{'' if parts else ' tokens'}"
            parts.append(f"{at} ({verdict}, {_adjusted(rows, case)})")
        if parts:
            found.append(f"FP8 on {path}, against float32 on the same questions: {listed(parts)}.")
    return found


def _kernels(rows: AccuracyRows) -> list[str]:
    """Kernels with any state at the shortest prompts, against the baseline's float32: which differ, in one sentence."""
    adjusted = rows.adjusted()
    compared = [case for case in adjusted if case.shortcut == NO_SHORTCUT and case.tokens == rows.tokens[0]]
    if not compared:
        return []
    differing = [case for case in rows.cases if case in compared and adjusted[case] < SURE]
    alike = [case for case in compared if case not in differing]
    parts = []
    if differing:
        named = [f"{what(case)} on {case.path} ({points(rows.compared(case).change)} points)" for case in differing]
        parts.append(f"after Holm's adjustment {listed(named)} {'differs' if len(named) == 1 else 'differ'}")
    if alike:
        counts = {path: sum(case.path == path for case in alike) for path in PATHS}
        numbers = listed(f"{count} {path}" for path, count in counts.items() if count)
        cases = f"{numbers} {'case' if len(alike) == 1 else 'cases'}"
        where = f"in the other {cases}" if differing else f"after Holm's adjustment in {cases}"
        changes = [rows.compared(case).change for case in alike]
        low, high = signed(min(change.low for change in changes)), signed(max(change.high for change in changes))
        parts.append(f"no difference is shown {where}")
        parts.append(f"their 95% intervals lie within {low} to {high} points")
    against = f"Kernels and dtypes at {rows.tokens[0]:,} tokens against {label(rows.baseline)} in float32"
    return [f"{against}: {'; '.join(parts)}."]


def _shortcuts(rows: AccuracyRows) -> list[str]:
    """What each shortcut of the gates costs, and the control that shows what the questions can see."""
    cases = [case for case in rows.cases if case.shortcut not in (NO_SHORTCUT, *PADDED) and rows.compared(case)]

    def name(case: Case) -> str:
        control = " (positive control: the questions must detect it)" if case.shortcut == NO_DT_BIAS else ""
        return case.shortcut + control + (f" at {case.tokens:,} tokens" if case.tokens > rows.tokens[0] else "")

    return [f"Shortcuts: {_differing_first(rows, cases, name)}."] if cases else []


def _padding(rows: AccuracyRows) -> list[str]:
    """What unguarded padding costs all requests, and the one whose slot it writes."""
    case = next((case for case in rows.cases if case.shortcut == UNGUARDED), None)
    if case is None or not rows.compared(case):
        return []
    (hit, count), spared = hit_and_spared(rows, case)
    return [
        f"Padding rows that write slot 0 (SGLang issue 20791), batches of {BATCH} requests and {PADDING} padding rows: "
        f"{_verdict(rows, case)}, on {len(rows.right[case][ALL]):,} questions. Of the {count} requests in slot 0 "
        f"{percent(hit)} are right, of the others {percent(spared)}."
    ]


def hit_and_spared(rows: AccuracyRows, case: Case) -> tuple[tuple[Interval, int], Interval]:
    """The right answers of the requests in slot 0, the first of each batch, with their number; and of all others."""
    own = [row for row in rows.answered if case_of(row) == case]
    hit, hit_right = (sum(row[field] for row in own) for field in ("first_questions", "first_right"))
    every, right = (sum(row[field] for row in own) for field in ("questions", "right"))
    return (wilson(hit_right, hit), hit), wilson(right - hit_right, every - hit)
