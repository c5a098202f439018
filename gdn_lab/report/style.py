"""How the figures look: one colour and one marker for each variant, labels at the ends of lines, notes below.

Dashes and a hollow marker mean gather and scatter, so that the figures read in grey as well.
"""

import math
import textwrap

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from ..backends.registry import variant

# The parts of a decode step by the names of their ranges: norms and copies grey, GDN's own strong, experts warm. Beside
# colour a part always has its name.
PART_COLOURS = {
    "input norm": "#BDBDBD",
    "in_proj qkvz": "#56B4E9",
    "in_proj ba": "#44AA99",
    "split": "#DADADA",
    "conv": "#117733",
    "gdn": "#D55E00",
    "gated norm": "#8E8E8E",
    "out_proj": "#0072B2",
    "post norm": "#A6A6A6",
    "router": "#CC79A7",
    "experts": "#E69F00",
    "shared expert": "#F0E442",
    "combine": "#882255",
    "feed-forward": "#E69F00",  # a dense model's, which has no experts
    "gaps": "#F1F1F1",  # nothing runs
}
# For the parts of steps that have other names, in the order in which they occur.
OTHER_PART_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#882255", "#44AA99", "#8C6D31")
GREY = "#5F5F5F"  # roofs, notes, what others published
STYLE = {
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "savefig.facecolor": "white",
    "svg.hashsalt": "gdn_lab",  # the same figure is the same file
}


# ---- figures and axes ------------------------------------------------------------------------------------------------


def colour(name: str) -> str:
    return variant(name).colour


def part_colours(parts) -> dict[str, str]:
    """{part: its colour}: PART_COLOURS where it has one, the others in turn."""
    parts = list(dict.fromkeys(parts))
    others = [part for part in parts if part not in PART_COLOURS]
    turns = {part: OTHER_PART_COLOURS[i % len(OTHER_PART_COLOURS)] for i, part in enumerate(others)}
    return {part: turns.get(part) or PART_COLOURS[part] for part in parts}


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on `colour`, "#rrggbb"."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def marker(name: str) -> str:
    return variant(name).marker


def line_style(name: str, indexing: str = "in_place") -> dict:
    """The looks of one variant's line; solid and filled in place, dashed and hollow for gather and scatter."""
    in_place = indexing == "in_place"
    return {
        "color": colour(name),
        "marker": marker(name),
        "markersize": 5.5,
        "linewidth": 1.7,
        "linestyle": "-" if in_place else (0, (4, 2)),
        "markerfacecolor": colour(name) if in_place else "white",
        "markeredgecolor": colour(name),
    }


def new_figure(title, width, height, columns=1, notes=(), rows=1, **options):
    """A figure with its finding above and its notes below, and rows x columns axes between, row after row."""
    fig = Figure(figsize=(width, height), layout="constrained")
    fig.get_layout_engine().set(w_pad=0.08, h_pad=0.06, wspace=0.04)
    fig.suptitle(textwrap.fill(title, int(width * 8.8)), x=0.01, ha="left", fontsize=13, fontweight="bold")
    notes = [textwrap.fill(note, int(width * 14)) for note in notes if note]
    if notes:
        fig.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=8.5, color=GREY)
    axes = fig.subplots(rows, columns, squeeze=False, **options).ravel()
    return fig, axes


def empty_figure(title, sentences, width=9.0):
    """A figure that says why there is nothing to draw."""
    lines = [textwrap.fill(line, 110) for line in sentences if line] or ["There are no rows to draw."]
    fig, (ax,) = new_figure(title, width, 0.8 + 0.2 * "\n".join(lines).count("\n") + 0.2)
    ax.set_axis_off()
    ax.text(0.0, 1.0, "\n".join(lines), va="top", ha="left", transform=ax.transAxes, color=GREY)
    return fig


def batch_axis(ax, batches, label="batch B (requests in one decode step)"):
    """A log axis with a tick at each measured batch."""
    batches = sorted(set(batches))
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(batches))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set_xlim(batches[0] / 1.25, batches[-1] * 1.25)
    ax.set_xlabel(label)


def plain_log_axis(axis):
    """Plain numbers at 1, 2, 5 of each decade."""
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 1 else f"{y:g}"))
    axis.set_minor_formatter(NullFormatter())


def label_ends(ax, ends):
    """Writes each line's label right of the axes at its last point; labels too close are pushed apart.

    ends: [(y in data, label, colour)]. Limits and scale of the y axis must be set before.
    """
    if not ends:
        return
    low, high = (math.log(y) if ax.get_yscale() == "log" else y for y in ax.get_ylim())

    def height_of(y):  # within the axes: a label far outside would leave no room for them
        return min(max(((math.log(y) if ax.get_yscale() == "log" else y) - low) / (high - low), 0.0), 1.0)

    ends = sorted(ends, key=lambda end: height_of(end[0]))
    step = 0.062 * 4.0 / ax.get_figure().get_figheight()
    places = _spread([height_of(y) for y, _, _ in ends], step)
    for place, (y, label, ink) in zip(places, ends, strict=True):
        ax.annotate(
            label, xy=(1.0, height_of(y)), xytext=(1.05, place), xycoords="axes fraction", textcoords="axes fraction",
            va="center", ha="left", color=ink, fontsize=9.5, annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": ink, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5),
            },
        )  # fmt: skip


def _spread(wanted: list[float], step: float) -> list[float]:
    """Ascending places as near to the wanted ones as can be with `step` between neighbours, kept within 0…1.

    Neighbours that would touch form a group, which is centred on the mean of what its members want.
    """
    groups = []  # [members' wanted places]

    def first(group):
        centre = sum(group) / len(group)
        half = (len(group) - 1) * step / 2
        return min(max(centre - half, 0.0), 1.0 - 2 * half)

    for place in wanted:
        groups.append([place])
        while len(groups) > 1 and first(groups[-1]) < first(groups[-2]) + len(groups[-2]) * step:
            last = groups.pop()
            groups[-1] += last
    return [first(group) + i * step for group in groups for i in range(len(group))]
