"""Tables of accuracy: what was answered here, and what the pull request published, each with its interval."""

import pandas

from ...report.recorded import published
from ...report.style import label
from ...report.text import number, token_count
from ...trained.as_trained import LayerInputs, half_lives
from .accuracy_cases import PADDED, Case
from .accuracy_rows import ALL, AccuracyRows
from .proportions import Interval, fisher, spread, wilson

LEAST_QUESTIONS = 1000  # fewer allow no claim
# Not in the pull request: GPQA Diamond has 198 questions, and SGLang's GSM8K test takes 200 unless asked for more.
# All published scores are multiples of 1/198 and 1/200, as rounded there.
ASSUMED_QUESTIONS = {"GPQA": 198, "GSM8K": 200}


def percent(interval: Interval) -> str:
    """ "97.3% (96.7 to 97.8)"."""
    share, low, high = (100 * value for value in interval)
    return f"{share:.1f}% ({low:.1f} to {high:.1f})"


def signed(share: float) -> str:
    """A change of a share in percentage points: "−1.2", "+0.4", "0.0"."""
    return number(100 * share, "+.1f")


def points(interval: Interval) -> str:
    """A change in percentage points, "−1.2 (−1.9 to −0.5)"."""
    return "{} ({} to {})".format(*map(signed, interval))


def what(case: Case) -> str:
    """A case in a few words, without its path and length: "triton/vk, bfloat16"."""
    return f"{label(case.kernel)}, {case.state}" + (f", {case.shortcut}" if case.shortcut else "")


def accuracy_table(rows: AccuracyRows) -> pandas.DataFrame:
    """A line for each case: exact match with its interval by kind, and what differs from float32."""
    adjusted = rows.adjusted()
    lines = []
    for case in rows.cases:
        both = rows.compared(case)
        line = {
            "path": case.path,
            "kernel": label(case.kernel),
            "state": case.state,
            "shortcut": case.shortcut,
            "tokens": case.tokens,
            "questions": len(rows.right[case][ALL]),
            "exact match": percent(rows.interval(case)),
        }
        line |= {f"{kind}, %": f"{100 * rows.interval(case, kind).share:.1f}" for kind in rows.kinds}
        if both:
            line |= {"change, points": points(both.change), "lost": both.lost, "won": both.won}
            line |= {"p": p_text(both.p), "p, adjusted": p_text(adjusted[case])}
        lines.append(line)
    table = pandas.DataFrame(lines)
    for column in ("lost", "won"):
        if column in table:
            table[column] = table[column].astype("Int64")
    return table


def gate_table(layers: list[LayerInputs]) -> pandas.DataFrame:
    """A line for each GDN layer and head: its gates, and after how many tokens its state has decayed to a half."""
    lines = []
    for inputs in layers:
        tokens = half_lives(inputs).tolist()
        a = inputs.a.float().flatten(0, 1).median(0).values.tolist()
        for head, half_life in enumerate(tokens):
            lines.append(
                {
                    "layer": inputs.layer,
                    "head": head,
                    "exp(A_log)": float(inputs.A_log[head].exp()),
                    "dt_bias": float(inputs.dt_bias[head]),
                    "a, median": a[head],
                    "half-life, tokens": token_count(half_life),
                }
            )
    return pandas.DataFrame(lines)


def p_text(p: float) -> str:
    """ "0.03"; "< 0.0001"."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def refused_sentences(rows: AccuracyRows) -> list[str]:
    """A sentence for each kernel and reason why a case was not answered."""
    found: dict[tuple, int] = {}
    for row in rows.refused:
        key = f"{row['backend']}/{row['variant']}", row["path"], row["reason"]
        found[key] = found.get(key, 0) + 1
    sentences = []
    for (name, path, reason), count in found.items():
        if "for mode 'intermediate'" in reason:
            sentences.append(f"{name} was not run on {path}: it returns no intermediate states.")
        else:
            cases = f"{count} {path} {'case' if count == 1 else 'cases'}"
            sentences.append(f"{name}, {cases} not answered: {reason.rstrip('.')}.")
    return sentences


def conditions(rows: AccuracyRows) -> str:
    """What the figures hold for, in one line."""
    if not rows:
        return "nothing was answered"
    row = rows.answered[0]
    total = len(rows.right[rows.cases[0]][ALL])
    small = "" if total >= LEAST_QUESTIONS else f"; fewer than {LEAST_QUESTIONS:,}, so they allow no claim"
    fewer = [len(kinds[ALL]) for case, kinds in rows.right.items() if case.shortcut in PADDED]
    padded = f" ({fewer[0]:,} of padded batches)" if fewer and fewer[0] < total else ""
    return (
        f"the trained model of data/trained · {total:,} questions a case, the same in each{padded}{small} · "
        f"{row['names']} names in a prompt · greedy answers, exact match · 95% intervals: Wilson's of shares, Agresti "
        f"and Min's of changes"
    )


# ---- what the pull request published ---------------------------------------------------------------------------------


def published_table() -> pandas.DataFrame:
    """The pull request's scores, with the intervals that their numbers of questions give them."""
    table = published("accuracy")
    lines = []
    for row in table.itertuples():
        known = not pandas.isna(row.questions)
        count = int(row.questions) if known else ASSUMED_QUESTIONS[row.evaluation]
        lines.append(
            {
                "evaluation": row.evaluation,
                "stage": row.stage,
                "run": row.run,
                "kernel": row.backend,
                "score": row.score,
                "questions": f"{count}" if known else f"{count}, assumed",
                "exact match": percent(wilson(round(row.score * count), count)),
                "note": "" if pandas.isna(row.note) else row.note,
            }
        )
    return pandas.DataFrame(lines)


def published_runs(evaluation: str) -> list[float]:
    """The scores of the repeated runs that the description has of an evaluation."""
    table = published("accuracy")
    return table[(table.evaluation == evaluation) & (table.stage == "published")].score.tolist()


def published_sentences() -> list[str]:
    """What the pull request's own figures can resolve."""
    runs, count = published_runs("GPQA"), ASSUMED_QUESTIONS["GPQA"]
    mean = sum(runs) / len(runs)
    deviation, error = spread(runs, count)
    low, high = min(runs), max(runs)
    pooled = wilson(round(mean * count * len(runs)), count * len(runs))
    first, last = (wilson(round(score * count), count) for score in (low, high))
    ci = published("accuracy").query("stage == 'ci'")
    scores = dict(zip(ci.backend, ci.score, strict=True))
    asked = int(ci.questions.iloc[0])
    intervals = {name: wilson(round(score * asked), asked) for name, score in scores.items()}
    found = published("accuracy").query("stage == 'debugging'")
    before, swapped, after = (round(score * asked) for score in found.score)
    return [
        f"The pull request's eight GPQA runs span {low:.3f} to {high:.3f} with nothing changed between them: "
        f"{100 * (high - low):.1f} points, a standard deviation of {100 * deviation:.1f}, next to a standard error of "
        f"{100 * error:.1f} points of one run of {count} questions. The interval of the lowest run is "
        f"{percent(first)}, of the highest {percent(last)}.",
        f"All eight together are {percent(pooled)} if their questions were independent, which they are not: each "
        f"question was asked eight times.",
        f"Its GSM8K test in CI, {asked} questions, has {percent(intervals['triton'])} for Triton and "
        f"{percent(intervals['flashinfer'])} for FlashInfer: it cannot tell the two apart.",
        f"While debugging it went from {before / asked:.2f} to {after / asked:.2f} once dt_bias was passed in float32. "
        f"If each is of {asked} questions, p = {p_text(fisher(before, asked, after, asked))} (Fisher's exact test, as "
        f"if of different questions), so that step alone may be chance; {before / asked:.2f} against Triton's "
        f"{swapped / asked:.2f} is not, p = {p_text(fisher(before, asked, swapped, asked))}.",
    ]
