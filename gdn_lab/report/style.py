"""How figures look: colours and markers of variants, a second palette for everything else, labels at the ends of lines.

Dashes and a hollow marker mean gather and scatter, so that figures read in grey as well.
"""

import textwrap

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from ..backends.registry import variant

# The second palette: for what is not a variant. None of its colours is near one that a variant has or can get, so that
# one colour means one variant in every figure (tests/report/test_style.py measures the distances). Parts and dtypes are
# fills that always have their name next to them; the colours differ in lightness too, and read in grey.
# Parts of a decode step, by the names of their ranges: norms and copies grey, the GDN kernel strong, experts warm.
PART_COLOURS = {
    "input norm": "#C6C6C6",
    "in_proj qkvz": "#A6BDDB",
    "in_proj ba": "#99DDFF",
    "split": "#DEDEDE",
    "conv": "#8DD3C7",
    "gdn": "#BB5566",
    "gated norm": "#CCCCCC",
    "out_proj": "#5A5AA8",
    "post norm": "#D2D2D2",
    "router": "#B39DDB",
    "experts": "#EE8866",
    "shared expert": "#FFED6F",
    "combine": "#FFAABB",
    "feed-forward": "#EE8866",  # of a dense model, which has no experts
    "gaps": "#F1F1F1",  # nothing runs
}
# For parts with other names, modes and whatever else is not a variant, in order of appearance.
OTHER_COLOURS = (
    "#BB5566",
    "#A6BDDB",
    "#225555",
    "#BBCC33",
    "#7E57C2",
    "#FFED6F",
    "#EE8866",
    "#8DD3C7",
    "#FFAABB",
    "#D9B38C",
)
DTYPE_COLOURS = {"float32": "#7E57C2", "bfloat16": "#B39DDB", "float16": "#225555"}
GREY = "#5F5F5F"  # bounds, notes, what others published
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
    "text.parse_math": False,  # a $ in a name is a $
    "svg.hashsalt": "gdn_lab",  # the same figure is the same file
}


# ---- figures and axes ------------------------------------------------------------------------------------------------


def colour(name: str) -> str:
    """Colour of the variant "backend/variant"."""
    return variant(name).colour


def marker(name: str) -> str:
    """Marker of the variant "backend/variant"."""
    return variant(name).marker


def label(name: str) -> str:
    """What tables, sentences and figures call the variant "backend/variant"."""
    return variant(name).label


def other_colours(names) -> dict[str, str]:
    """{name: colour} out of OTHER_COLOURS, for things that are not variants; they repeat after the last."""
    return {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(dict.fromkeys(names))}


def part_colours(parts) -> dict[str, str]:
    """{part of a step: colour}: PART_COLOURS where it has one, for the others OTHER_COLOURS in turn."""
    return _known_or_other(parts, PART_COLOURS)


def dtype_colours(dtypes) -> dict[str, str]:
    """{name of a dtype: colour}: DTYPE_COLOURS where it has one, for the others OTHER_COLOURS in turn."""
    return _known_or_other(dtypes, DTYPE_COLOURS)


def _known_or_other(names, known: dict[str, str]) -> dict[str, str]:
    names = list(dict.fromkeys(names))
    others = other_colours(name for name in names if name not in known)
    return {name: known.get(name) or others[name] for name in names}


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on `colour`, "#rrggbb"."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def line_style(name: str, indexing: str = "in_place") -> dict:
    """What plot() takes for a variant: solid and filled in place, dashed and hollow for gather and scatter."""
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


def plot_lines(ax, series: dict[str, dict[float, float]], form, indexing: str = "in_place") -> list[tuple]:
    """Draw a line for each variant. Return what label_ends() takes: (last y, "label  form(last y)", colour) of each.

    series: {variant: {x: y}}. form: function of y that returns its text.
    """
    ends = []
    for name, points in series.items():
        xs = sorted(points)
        ax.plot(xs, [points[x] for x in xs], **line_style(name, indexing))
        ends.append((points[xs[-1]], f"{label(name)}  {form(points[xs[-1]])}", colour(name)))
    return ends


def new_figure(title, width, height, columns=1, notes=(), rows=1, **options):
    """(figure, its rows x columns axes, row after row), with the finding as title and notes below.

    The title, on one line by title_of(), is also the alternative text wherever the figure is shown.
    """
    fig = Figure(figsize=(width, height), layout="constrained")
    fig.get_layout_engine().set(w_pad=0.08, h_pad=0.06, wspace=0.04)
    title = textwrap.fill(title, int(width * 8.8), break_on_hyphens=False)
    fig.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    notes = [textwrap.fill(note, int(width * 14), break_on_hyphens=False) for note in notes if note]
    if notes:
        fig.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=8.5, color=GREY)
    axes = fig.subplots(rows, columns, squeeze=False, **options).ravel()
    return fig, axes


def title_of(figure: Figure) -> str:
    """A figure's title on one line: its finding, and its alternative text."""
    return " ".join(figure.get_suptitle().split())


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


def plain_log_axis(axis, subs=(1, 2, 5)):
    """Plain numbers at these multiples of each power of ten."""
    axis.set_major_locator(LogLocator(base=10, subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 10 else f"{y:g}"))
    axis.set_minor_formatter(NullFormatter())


def label_ends(ax, ends):
    """Write each line's label to the right of the axes at its last point, pushing apart labels that would touch.

    ends: [(y in data, label, colour)]. Limits and scale of the y axis must be set before.
    """
    if not ends:
        return

    def height_of(y):  # clipped to the axes: a label far outside would shrink them
        return min(max((ax.transScale + ax.transLimits).transform((ax.get_xlim()[0], y))[1], 0.0), 1.0)

    ends = sorted(ends, key=lambda end: height_of(end[0]))
    rows = ax.get_subplotspec().get_gridspec().nrows if ax.get_subplotspec() else 1
    step = 0.07 * 4.0 * rows / ax.get_figure().get_figheight()
    heights = _spread([height_of(y) for y, _, _ in ends], step)
    for height, (y, text, ink) in zip(heights, ends, strict=True):
        ax.annotate(
            text,
            xy=(1.0, height_of(y)),
            xytext=(1.05, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            ha="left",
            color=ink,
            fontsize=9.5,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": ink,
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def _spread(wanted: list[float], step: float) -> list[float]:
    """Ascending heights as near to the wanted ones as possible, at least `step` apart, within 0…1.

    Neighbours that would touch form a group, which is centred on the mean of what its members want.
    """
    groups = []  # of wanted heights

    def first(group):
        centre = sum(group) / len(group)
        half = (len(group) - 1) * step / 2
        return min(max(centre - half, 0.0), 1.0 - 2 * half)

    for height in wanted:
        groups.append([height])
        while len(groups) > 1 and first(groups[-1]) < first(groups[-2]) + len(groups[-2]) * step:
            last = groups.pop()
            groups[-1] += last
    return [first(group) + i * step for group in groups for i in range(len(group))]
