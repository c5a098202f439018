"""The figures of notebook 11, drawn from AccuracyRows. report/style.py says how figures look."""

import math

from matplotlib import rc_context
from matplotlib.figure import Figure

from ...report.style import (
    GREY,
    STYLE,
    colour,
    dtype_colours,
    empty_figure,
    label_ends,
    marker,
    new_figure,
)
from ...report.text import device_name, number
from . import analysis
from .accuracy_cases import FLOAT32, STOCHASTIC
from .accuracy_rows import ALL, AccuracyRows
from .sentences import SURE

FAR = 15  # points of change from which on the axis is logarithmic


def _where(rows: AccuracyRows) -> str:
    """ " (recorded: H100)" or the device of this machine."""
    run = rows.run or {}
    return f" (recorded: {run['recorded_on'].upper()})" if run.get("recorded_on") else f" ({device_name(run)})"


def _nothing(rows: AccuracyRows) -> Figure | None:
    """A figure that says why there is nothing to draw, or None."""
    if not rows:
        return empty_figure("Nothing was answered", analysis.refused_sentences(rows))
    total = len(rows.right[rows.cases[0]][ALL])
    if total < analysis.LEAST_QUESTIONS:
        return empty_figure(f"{total} questions allow no claim", [analysis.conditions(rows)])
    return None


@rc_context(STYLE)
def changes(rows: AccuracyRows) -> Figure:
    """The change of exact match against float32 of each case, with its interval; filled where it differs for sure."""
    if empty := _nothing(rows):
        return empty
    adjusted = rows.adjusted()
    cases = [case for case in rows.cases if case in adjusted and case.tokens == rows.tokens[0]]
    sure = [case for case in cases if adjusted[case] < SURE]
    lowest = min(rows.compared(case).change.low for case in cases)
    finding = f"Prompts of {rows.tokens[0]:,} tokens: {len(sure)} of {len(cases)} cases differ from float32"
    if sure:
        largest = max(sure, key=lambda case: abs(rows.compared(case).change.share))
        change = analysis.signed(rows.compared(largest).change.share)
        finding += f"; largest: {largest.shortcut or analysis.what(largest)}, {change} points"
    notes = [
        analysis.conditions(rows),
        f"Filled: differs, McNemar's test at {SURE} after Holm's adjustment. Zero: float32",
    ]
    fig, (ax,) = new_figure(finding + _where(rows), 11.5, 1.6 + 0.3 * len(cases), 1, notes)
    names = []
    for y, case in enumerate(cases):
        change = rows.compared(case).change
        share, low, high = (100 * value for value in change)
        ink = colour(case.kernel)
        ax.plot([low, high], [y, y], color=ink, linewidth=1.6)
        face = ink if case in sure else "white"
        ax.plot(share, y, marker=marker(case.kernel), color=ink, markerfacecolor=face, markersize=7)
        names.append(f"{case.path}: {analysis.what(case)}")
    ax.axvline(0, color=GREY, linewidth=0.9)
    ax.set_yticks(range(len(cases)), names)
    ax.set_ylim(len(cases) - 0.4, -0.6)
    if 100 * lowest < -FAR:
        ax.set_xscale("symlog", linthresh=1.0)
    ax.xaxis.set_major_formatter(lambda x, _: number(x, "+g"))
    ax.set_xlabel("change of exact match, percentage points on the same questions")
    ax.grid(axis="y", visible=False)
    return fig


@rc_context(STYLE)
def lengths(rows: AccuracyRows) -> Figure:
    """Exact match against the length of the prompt by dtype of the state: all questions, then a panel for each kind."""
    if empty := _nothing(rows):
        return empty
    chosen = rows.states
    if len({case.tokens for case in chosen}) < 2:
        return empty_figure("Prompts of one length alone were answered", [analysis.conditions(rows)])
    states = list(dict.fromkeys(case.state for case in chosen))
    colours, dtypes = dtype_colours([case.dtype for case in chosen]), {case.state: case.dtype for case in chosen}
    stochastic = {case.state for case in chosen if case.rounding == STOCHASTIC}
    others = {case.state: case.kernel for case in chosen if case.kernel != rows.baseline}
    kernels = "".join([rows.baseline, *(f" ({state}: {kernel})" for state, kernel in others.items())])
    kinds = (ALL, *rows.kinds)
    lines = math.ceil(len(kinds) / 2)
    fig, axes = new_figure(
        _lengths_title(rows, chosen) + _where(rows),
        11.5,
        1.2 + 3.4 * lines,
        2,
        [
            analysis.conditions(rows),
            f"path decode, {kernels} · bars: 95% intervals · dashed: stochastic rounding",
        ],
        rows=lines,
        sharey=True,
    )
    for spare in axes[len(kinds) :]:
        spare.set_axis_off()
    ends = {}
    for ax, kind in zip(axes, kinds, strict=False):
        for place, state in enumerate(states):
            cases = sorted((case for case in chosen if case.state == state), key=lambda case: case.tokens)
            found = [rows.interval(case, kind) for case in cases]
            shares = [100 * one.share for one in found]
            bars = [[100 * (one.share - one.low) for one in found], [100 * (one.high - one.share) for one in found]]
            xs = [case.tokens * 1.03 ** (place - len(states) // 2) for case in cases]
            ink, dashed = colours[dtypes[state]], state in stochastic
            look = {"linestyle": "--", "markerfacecolor": "white"} if dashed else {}
            ax.errorbar(xs, shares, yerr=bars, color=ink, marker="o", markersize=5, capsize=3, **look)
            at = "" if cases[-1].tokens == rows.tokens[-1] else f" at {cases[-1].tokens:,}"
            ends.setdefault(ax, []).append((shares[-1], f"{state} {shares[-1]:.1f}{at}", ink))
        ax.set_xscale("log", base=2)
        ax.set_xticks(rows.tokens, [f"{tokens:,}" for tokens in rows.tokens])
        ax.minorticks_off()
        ax.set_title("all questions" if kind == ALL else kind)
        ax.set_xlabel("tokens of a prompt")
    for ax, labels in ends.items():  # once the panels share their limits
        label_ends(ax, labels)
    for ax in axes[::2]:
        ax.set_ylabel("exact match, %")
    return fig


def _lengths_title(rows: AccuracyRows, chosen) -> str:
    longest = max(case.tokens for case in chosen)
    shares = {case.state: 100 * rows.interval(case).share for case in chosen if case.tokens == longest}
    finding = f"At {longest:,} tokens float32 answers {shares.pop(FLOAT32):.1f}% exactly"
    ends = sorted(shares, key=shares.get)
    found = [f"{shares[state]:.1f}% ({state})" for state in dict.fromkeys([*ends[:1], *ends[-1:]])]
    return f"{finding}, narrower states {' to '.join(found)}" if found else finding


@rc_context(STYLE)
def published_scores() -> Figure:
    """The pull request's eight GPQA runs and its other scores, with the intervals of their numbers of questions."""
    table = analysis.published_table()
    runs = analysis.published_runs("GPQA")
    span = 100 * (max(runs) - min(runs))
    title = f"Eight runs of one kernel on GPQA span {span:.1f} points; one run's 95% interval is wider"
    notes = [
        "Scores: SGLang #19150. Questions of a run where not published: GPQA Diamond 198, GSM8K in SGLang's CI 200."
    ]
    fig, (ax,) = new_figure(title, 10.5, 1.6 + 0.28 * len(table), 1, notes)
    names = []
    for y, row in enumerate(table.itertuples()):
        count = int(row.questions.split(",")[0])
        share, low, high = (100 * value for value in analysis.wilson(round(row.score * count), count))
        ink = "#7E57C2" if row.evaluation == "GPQA" else "#225555"
        ax.plot([low, high], [y, y], color=ink, linewidth=1.6)
        ax.plot(share, y, marker="o", color=ink)
        names.append(
            f"{row.evaluation}, {row.stage}, {row.kernel}"
            + (f" {row.run}" if row.evaluation == "GPQA" else "")
            + (f" ({row.note})" if row.note else "")
        )
    ax.set_yticks(range(len(table)), names)
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.set_xlabel("score, %, and its 95% interval")
    ax.grid(axis="y", visible=False)
    return fig
