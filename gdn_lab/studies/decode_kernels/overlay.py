"""One figure of several measurements of decode and a recorded one: the history that the panel of notebook 02 keeps."""

from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...report.style import GREY, STYLE, batch_axis, empty_figure, label_ends, line_style, new_figure, plain_log_axis
from ...report.style import label as short
from ...report.text import micro, percent
from ...report.timed import Timed
from .figures import time_title

EARLIER = ((0, (5, 2)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 1, 1, 1, 1, 1)))  # dashes of earlier ones, in turn
RECORDED = (0, (1, 2))
FAINT = 0.55  # opacity of all but the newest


class Entry(NamedTuple):
    """One measurement. name: of the legend. recorded: whether it was measured before, on the GPU it names."""

    name: str
    timed: Timed
    recorded: bool = False


@rc_context(STYLE)
def overlaid(entries: list[Entry]) -> Figure:
    """Time and share of the measured bandwidth, in place, by batch: the newest solid, the others dashed and fainter.

    entries: the oldest first. Recorded ones are dotted; the newest is the last measured, or where nothing was measured
    the last. The title is its finding; the legend names all. A colour is a variant's, whatever the entry, and its name
    stands at the newest of its lines.
    """
    entries = [entry._replace(timed=kept) for entry in entries if (kept := entry.timed.kernels())]
    if not entries:
        return empty_figure("Nothing was timed, and nothing is recorded of this", [])
    newest = next((entry for entry in reversed(entries) if not entry.recorded), entries[-1])
    title = newest.timed.titled(time_title(newest.timed))
    fig, (left, right) = new_figure(title, 11.5, 5.2, 2, [newest.timed.conditions(f"T = 1 decode, {newest.name}")])
    styles, ends = _entry_styles(entries, newest), ({}, {})
    for entry in [*(each for each in entries if each is not newest), newest]:
        shares = entry.timed.values(lambda row: row["share_of_roof"] * 100)
        for ax, series, form, found in (
            (left, entry.timed.times(), micro, ends[0]),
            (right, shares, lambda share: percent(share / 100), ends[1]),
        ):
            for name, points in series.items():
                ax.plot(list(points), list(points.values()), **line_style(name) | styles[entry])
                last = points[max(points)]
                found[name] = (last, f"{short(name)}  {form(last)}", line_style(name)["color"])
    left.set_yscale("log")
    plain_log_axis(left.yaxis)
    left.set(ylabel="median time of a call, µs", title="time in place")
    right.axhline(100, color=GREY, linewidth=1, linestyle=":")
    most = max(row["share_of_roof"] for entry in entries for row in entry.timed.rows)
    right.set_ylim(0, max(108.0, most * 108))
    right.set(ylabel="% of the measured bandwidth", title="share of the bandwidth measured with it")
    for ax, labels in ((left, ends[0]), (right, ends[1])):
        batch_axis(ax, {batch for entry in entries for batch in entry.timed.batches})
        label_ends(ax, labels.values())
    if len(entries) > 1:
        handles = [Line2D([], [], color=GREY, label=entry.name, **styles[entry]) for entry in reversed(entries)]
        left.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1.07), frameon=False, fontsize=9)
    return fig


def _entry_styles(entries: list[Entry], newest: Entry) -> dict[Entry, dict]:
    """{entry: what plot() takes for it besides the variant's colour and marker}."""
    earlier = [entry for entry in entries if entry is not newest and not entry.recorded]
    dashes = {id(entry): EARLIER[n % len(EARLIER)] for n, entry in enumerate(reversed(earlier))}
    return {
        entry: {"linestyle": "-", "linewidth": 2.0}
        if entry is newest
        else {"linestyle": RECORDED if entry.recorded else dashes[id(entry)], "linewidth": 1.3, "alpha": FAINT}
        for entry in entries
    }
