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
    baseline_of,
    case_of,
)
from .accuracy_rows import ALL, AccuracyRows
from .analysis import LEAST_QUESTIONS, p_text, percent, points, what
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
        f"With a float32 state on {label(rows.baseline)} the model answers {percent(rows.interval(first))} % of "
        f"{total:,} questions exactly ({_by_kind(rows, first)})."
    ]
    found += [*_dtypes(rows), *_longer(rows), *_kernels(rows), *_shortcuts(rows), *_padding(rows)]
    return found


def _right(rows: AccuracyRows, path: str) -> str:
    parts = [f"{what(case)} {sum(rows.right[case][ALL])}" for case in _cases(rows, path)]
    return f"of {len(rows.right[_cases(rows, path)[0]][ALL])} questions right: {listed(parts)}"


def _cases(rows: AccuracyRows, path: str) -> list[Case]:
    return [case for case in rows.cases if case.path == path]


def _by_kind(rows: AccuracyRows, case: Case) -> str:
    return ", ".join(f"{kind} {100 * rows.interval(case, kind).share:.1f} %" for kind in rows.kinds)


def _verdict(rows: AccuracyRows, case: Case) -> str:
    """ "−1.2 (−1.9 to −0.5) points, adjusted p < 0.0001: differs", or "no difference shown"."""
    word = "differs" if rows.adjusted()[case] < SURE else "no difference shown"
    return f"{points(rows.compared(case).change)} points, {_adjusted(rows, case)}: {word}"


def _adjusted(rows: AccuracyRows, case: Case) -> str:
    """ "adjusted p < 0.0001"."""
    shown = p_text(rows.adjusted()[case])
    return f"adjusted p {shown if shown.startswith('<') else f'= {shown}'}"


def _differing_first(rows: AccuracyRows, cases: list[Case], name) -> str:
    """ "bfloat16 differs by −2.3 (…) points, adjusted p < 0.0001; no difference is shown for float16 +0.0 (…)"."""
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
    parts = [f"{percent(rows.interval(case))} % at {case.tokens:,} tokens" for case in found]
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
    return f"{text}. That is no sign of a more exact state; the drift study has its error."


def fp8(rows: AccuracyRows) -> list[str]:
    """Whether an FP8 state's share of right answers is inside float32's interval: a sentence for each path."""
    found = []
    for path in PATHS:
        parts = []
        for case in (case for case in _cases(rows, path) if case.dtype == FP8 and rows.compared(case)):
            own, other = rows.interval(case), rows.interval(baseline_of(case, rows.baseline))
            low, high = (f"{100 * value:.1f}" for value in other[1:])
            both, text = rows.compared(case), f"{percent(own)} % at {case.tokens:,} tokens"
            if other.low <= own.share <= other.high:
                parts.append(f"{text}, inside float32's {low} to {high} %")
            else:
                parts.append(
                    f"{text}, outside float32's {low} to {high} % ({both.lost} lost, {both.won} won, "
                    f"{_adjusted(rows, case)})"
                )
        if parts:
            found.append(f"With an FP8 state on the path {path} the model answers {'; '.join(parts)}.")
    return found


def _kernels(rows: AccuracyRows) -> list[str]:
    """Kernels with any state against the baseline's float32, by path: which differ."""
    adjusted, found = rows.adjusted(), []
    for path in PATHS:
        compared = [case for case in _cases(rows, path) if case in adjusted and case.shortcut == NO_SHORTCUT]
        compared = [case for case in compared if case.tokens == rows.tokens[0]]
        worse = [case for case in compared if adjusted[case] < SURE]
        if not compared:
            continue
        number = "1 case was" if len(compared) == 1 else f"{len(compared)} cases were"
        text = f"On the path {path} {number} compared with {label(rows.baseline)}, float32"
        parts = [f"{what(case)} ({points(rows.compared(case).change)} points)" for case in worse]
        found.append(f"{text}: {f'{listed(parts)} differ' if worse else 'none differs'}{_span(rows, compared, worse)}.")
    return found


def _span(rows: AccuracyRows, compared: list[Case], worse: list[Case]) -> str:
    """Where the 95 % intervals of the changes of cases that do not differ lie, all together."""
    alike = [rows.compared(case).change for case in compared if case not in worse]
    if not alike:
        return ""
    low, high = min(change.low for change in alike), max(change.high for change in alike)
    ends = " to ".join(f"{100 * value:+.1f}".replace("-", "−") for value in (low, high))
    return f"; {'the other' if worse else 'all'} intervals lie within {ends} points"


def _shortcuts(rows: AccuracyRows) -> list[str]:
    """What each shortcut of the gates costs, and the control that shows what the questions can see."""
    cases = [case for case in rows.cases if case.shortcut not in (NO_SHORTCUT, *PADDED) and rows.compared(case)]

    def name(case: Case) -> str:
        control = " (a control: what questions must see)" if case.shortcut == NO_DT_BIAS else ""
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
        f"{percent(hit)} % are right, of the others {percent(spared)} %."
    ]


def hit_and_spared(rows: AccuracyRows, case: Case) -> tuple[tuple[Interval, int], Interval]:
    """The right answers of the requests in slot 0, the first of each batch, with their number; and of all others."""
    own = [row for row in rows.answered if case_of(row) == case]
    hit, hit_right = (sum(row[field] for row in own) for field in ("first_questions", "first_right"))
    every, right = (sum(row[field] for row in own) for field in ("questions", "right"))
    return (wilson(hit_right, hit), hit), wilson(right - hit_right, every - hit)
