"""A kernel of your own compared with others: a baseline that you name, the best of ours and the best peer, by batch.

Words: FASTER, EQUAL or SLOWER. A difference counts beyond what two measurements of one kernel differ by (NOISE), and
only if the ranges from the 20th to the 80th percentile do not overlap.
"""

import re
from typing import NamedTuple

import pandas
from matplotlib import rc_context
from matplotlib.figure import Figure

from ...backends.registry import variant
from ...report.style import GREY, STYLE, batch_axis, empty_figure, label_ends, new_figure
from ...report.text import listed, micro, number_range, percent
from ...report.timed import Timed, is_outside
from .analysis import LARGE, conditions

FASTER, EQUAL, SLOWER = "faster", "equal within noise", "slower"
NOISE = {True: 0.01, False: 0.03}  # of a ratio, from B = LARGE up and below
BASELINE, OURS, PEER = "baseline", "the best of ours", "the best peer"
COLOURS = {BASELINE: "#7E57C2", OURS: "#225555", PEER: "#BB5566"}
MARKERS = {BASELINE: "s", OURS: "o", PEER: "D"}


class Against(NamedTuple):
    """One kernel compared with another at one batch.

    opponent: BASELINE, OURS or PEER; other: its full name. speed_up: its time over yours, with the range that the 20th
    and 80th percentiles of both allow. word: FASTER, EQUAL or SLOWER.
    """

    batch: int
    opponent: str
    other: str
    us: float
    other_us: float
    speed_up: float
    low: float
    high: float
    word: str


def compared(timed: Timed, name: str, baseline: str) -> list[Against]:
    """Compare the kernel `name` at every batch at which it was timed, with each opponent that was timed there."""
    found = []
    for batch in timed.batches:
        rows = timed.at(batch)
        mine = rows.pop(name, None)
        if mine is None:
            continue
        for opponent, others in opponents(rows, baseline, variant(name).ring).items():
            if others:
                other = min(others, key=lambda each: rows[each]["median_us"])
                found.append(_against(batch, opponent, other, mine, rows[other]))
    return found


def opponents(rows: dict[str, dict], baseline: str, ring: int = 0) -> dict[str, list[str]]:
    """{opponent: the kernels that may stand for it}, of peers those that are right on all inputs.

    ring: of the pool that the kernel works on; ours that work on another kind of pool are left out.
    """
    return {
        BASELINE: [name for name in rows if name == baseline],
        OURS: [name for name in rows if variant(name).role == "ours" and variant(name).ring == ring],
        PEER: [name for name, row in rows.items() if variant(name).role == "peer" and not is_outside(row)],
    }


def _against(batch: int, opponent: str, other: str, mine: dict, theirs: dict) -> Against:
    speed_up = theirs["median_us"] / mine["median_us"]
    low, high = theirs["p20_us"] / mine["p80_us"], theirs["p80_us"] / mine["p20_us"]
    noise = NOISE[batch >= LARGE]
    word = FASTER if speed_up > 1 + noise and low > 1 else SLOWER if speed_up < 1 - noise and high < 1 else EQUAL
    return Against(batch, opponent, other, mine["median_us"], theirs["median_us"], speed_up, low, high, word)


# ---- words, table, figure --------------------------------------------------------------------------------------------


def sentences(timed: Timed, name: str, baseline: str) -> list[str]:
    """Say how a kernel compares with each opponent."""
    label, said = variant(name).label, []
    for opponent, found in by_opponent(compared(timed, name, baseline)).items():
        words = {word: [each for each in found if each.word == word] for word in (FASTER, EQUAL, SLOWER)}
        parts = [
            f"{word} at B = {listed(str(each.batch) for each in some)} "
            f"({number_range([each.speed_up for each in some])}×)"
            for word, some in words.items()
            if some
        ]
        others = listed(dict.fromkeys(variant(each.other).label for each in found))
        said.append(f"{label} against {opponent}, {others}: {'; '.join(parts)}.")
    return said


def share_sentence(timed: Timed, name: str) -> str:
    """Say which share of the measured bandwidth a kernel reaches at the largest batch."""
    row = max(timed.by_variant()[name], key=lambda row: row["batch"])
    share = percent(row["share_of_roof"])
    return f"At B = {row['batch']} {variant(name).label} reaches {share} of the measured bandwidth."


def answers(timed: Timed, baseline: str) -> list[str]:
    """Say both of every kernel of your own among the rows."""
    return [
        sentence
        for name in timed.named("yours")
        for sentence in (*sentences(timed, name, baseline), share_sentence(timed, name))
    ]


def by_opponent(found: list[Against]) -> dict[str, list[Against]]:
    """{opponent: its comparisons}, in the order BASELINE, OURS, PEER."""
    groups = {opponent: [each for each in found if each.opponent == opponent] for opponent in (BASELINE, OURS, PEER)}
    return {opponent: some for opponent, some in groups.items() if some}


def table(timed: Timed, name: str, baseline: str) -> pandas.DataFrame:
    """Time, share of the measured bandwidth, and speed-up over each opponent with its range, by batch; as text."""
    rows = {row["batch"]: row for row in timed.by_variant().get(name, [])}
    columns = {
        "median": {batch: micro(row["median_us"]) for batch, row in rows.items()},
        "of measured bandwidth": {batch: percent(row["share_of_roof"]) for batch, row in rows.items()},
    }
    for opponent, found in by_opponent(compared(timed, name, baseline)).items():
        several = len({each.other for each in found}) > 1
        heading = opponent if several else f"{opponent}, {variant(found[0].other).label}"
        columns[heading] = {each.batch: _cell(each, several) for each in found}
    made = pandas.DataFrame({heading: pandas.Series(values, dtype=object) for heading, values in columns.items()})
    return made.sort_index().fillna("").rename_axis("B")


def _cell(each: Against, named: bool) -> str:
    who = f" {variant(each.other).label}" if named else ""
    return f"{each.speed_up:.2f}× ({each.low:.2f} to {each.high:.2f}){who}: {each.word}"


@rc_context(STYLE)
def speed_up(timed: Timed, name: str, baseline: str) -> Figure:
    """Speed-up of a kernel over each opponent by batch; bands: what the percentiles allow."""
    found = by_opponent(compared(timed, name, baseline))
    notes = [conditions(timed), *timed.not_timed()]
    if not found:
        return empty_figure(f"Nothing was timed to compare {variant(name).label} with", notes)
    fig, (ax,) = new_figure(timed.titled(_title(name, found)), 9.0, 4.6, 1, notes)
    ends = []
    for opponent, some in found.items():
        batches, colour = [each.batch for each in some], COLOURS[opponent]
        lows, highs = [each.low for each in some], [each.high for each in some]
        ax.fill_between(batches, lows, highs, color=colour, alpha=0.2, linewidth=0)
        ax.plot(batches, [each.speed_up for each in some], color=colour, marker=MARKERS[opponent], markersize=5.5)
        ends.append(
            (some[-1].speed_up, f"{opponent}, {variant(some[-1].other).label}  {some[-1].speed_up:.2f}", colour)
        )
    every = [each for some in found.values() for each in some]
    ax.axhline(1.0, color=GREY, linewidth=1)
    ax.set_ylim(min(0.9, *(each.low for each in every)) * 0.95, max(1.1, *(each.high for each in every)) * 1.05)
    batch_axis(ax, {each.batch for each in every})
    ax.set_ylabel(f"speed-up: other time over that of {variant(name).label}")
    label_ends(ax, ends)
    return fig


def figure_name(name: str) -> str:
    """Name of the figure's file: "speed_up_mine-vk"."""
    return f"speed_up_{re.sub('[^A-Za-z0-9_-]', '-', name)}"


def _title(name: str, found: dict[str, list[Against]]) -> str:
    """How the kernel compares with the fastest opponent at the largest batch."""
    batch = max(each.batch for some in found.values() for each in some)
    last = [each for some in found.values() for each in some if each.batch == batch]
    best = min(last, key=lambda each: each.other_us)
    other = variant(best.other).label
    if best.word == EQUAL:
        return f"At B = {batch} {variant(name).label} and {other} are equal within noise: {best.speed_up:.2f}×"
    return f"At B = {batch} {variant(name).label} is {best.word} than {other}: {best.speed_up:.2f}× as fast"
