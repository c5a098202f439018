"""The figures of notebook 06, drawn from a Timed of prefill rows."""

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...report.style import GREY, STYLE, colour, empty_figure, label, marker, new_figure
from ...report.timed import Timed
from . import analysis


@rc_context(STYLE)
def tokens_per_second(timed: Timed) -> Figure:
    """Tokens per second of each variant for each workload, a panel for each number of heads; hollow: by the detour."""
    rows = analysis.frame(timed)
    notes = [analysis.conditions(timed), *timed.not_timed(), *timed.outside_tolerance(), *timed.notes_on_copies()]
    if rows.empty:
        return empty_figure("No prefill was timed", notes)
    unit, unit_name = (1e6, "million") if rows.tokens_per_s.max() >= 1e6 else (1e3, "thousand")
    fig, panels = _panels(rows, timed.titled(_who_is_fastest(timed, rows)), notes)
    names = analysis.labels(rows)
    for ax, there, places in panels:
        for which, line in there.groupby("label", sort=False):
            offset = _offset(names.index(which), len(names))
            xs = line.workload.map(places) + offset
            ax.vlines(xs, 0, line.tokens_per_s / unit, color=colour(line.name.iloc[0]), linewidth=1, alpha=0.5)
            ax.plot(xs, line.tokens_per_s / unit, label=which, **_dots(line.name.iloc[0], line.detour.iloc[0]))
        ax.set_ylim(0, 1.08 * there.tokens_per_s.max() / unit)
    panels[0][0].set_ylabel(f"{unit_name} tokens per second")
    looks = rows.drop_duplicates("label").set_index("label").loc[names]
    handles = [Line2D([], [], label=row.Index, **_dots(row.name, row.detour)) for row in looks.itertuples()]
    _legend(panels, handles)
    return fig


def _who_is_fastest(timed: Timed, rows) -> str:
    """The title: who is fastest where; with one backend, its most tokens per second."""
    if found := analysis.fastest(timed):
        return f"Fastest: {found}"
    best = rows.loc[rows.tokens_per_s.idxmax()]
    return f"{best.label} reaches {best.tokens_per_s:,.0f} tokens per second ({best.workload}, HV {best.num_v_heads})"


@rc_context(STYLE)
def native_against_detour(timed: Timed) -> Figure:
    """Time by the detour over time on the pool in place, for each workload; above 1 the pool in place is ahead."""
    rows, ratios = analysis.frame(timed), analysis.detour_ratios(timed)
    if ratios.empty:
        return empty_figure("The detour was not timed next to the pool in place", timed.not_timed())
    flat = ratios.stack()
    (low, high), fewest, most = (flat.min(), flat.max()), flat.idxmin(), flat.idxmax()
    title = (
        f"The detour's 8 extra state transfers: {low:.2f}× the time at "
        f"{analysis.workload_of(fewest)}, {high:.2f}× at {analysis.workload_of(most)}"
    )
    fig, panels = _panels(rows, timed.titled(title), [analysis.conditions(timed)], sharey=True)
    width = 0.8 / len(ratios.columns)
    for ax, there, places in panels:
        heads = there.num_v_heads.iloc[0]
        for number, (name, column) in enumerate(ratios.items()):
            values = {point: ratio for point, ratio in column.dropna().items() if point[0] == heads}
            xs = [places[analysis.workload_of(point)] + _offset(number, len(ratios.columns)) for point in values]
            over = [ratio - 1 for ratio in values.values()]
            bars = ax.bar(xs, over, width, bottom=1, color=colour(name), label=label(name))
            ax.bar_label(bars, [f"{ratio:.2f}" for ratio in values.values()], fontsize=8.5, padding=2)
        ax.axhline(1, color=GREY, linewidth=1)
        ax.margins(y=0.12)  # room for the labels
    panels[0][0].set_ylabel("time by the detour / time in place")
    _legend(panels)
    return fig


def _panels(rows, title: str, notes, **options):
    """(figure, [(axes, rows, {workload: x})]): a panel for each number of value heads, workloads as categories."""
    groups = list(rows.groupby("num_v_heads", sort=False))
    fig, axes = new_figure(title, 11.5, 4.8, len(groups), notes, **options)
    panels = []
    for ax, (heads, there) in zip(axes, groups, strict=True):
        places = {workload: x for x, workload in enumerate(there.workload.unique())}
        for x in range(0, len(places), 2):
            ax.axvspan(x - 0.5, x + 0.5, color="#F4F4F4", zorder=0)
        ax.set_xticks(range(len(places)), places, rotation=30, ha="right")
        ax.set_xlim(-0.5, len(places) - 0.5)
        ax.grid(axis="x", visible=False)
        ax.set_title(f"{heads} value heads")
        ax.set_xlabel("sequences × tokens of each")
        panels.append((ax, there, places))
    return fig, panels


def _offset(number: int, count: int) -> float:
    """Where the number-th of `count` neighbours stands within its category."""
    return 0.8 * (number + 0.5) / count - 0.4


def _dots(name: str, detour: bool) -> dict:
    """What plot() takes for a variant's dots, hollow for the detour."""
    return {
        "color": colour(name),
        "marker": marker(name),
        "markersize": 6,
        "linestyle": "none",
        "markerfacecolor": "white" if detour else colour(name),
        "markeredgecolor": colour(name),
    }


def _legend(panels, handles=None):
    """The legend, right of the last panel."""
    options = {"handles": handles} if handles else {}
    panels[-1][0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, **options)
