"""The figure of notebook 00: how far each variant is from the float64 reference."""

from matplotlib import rc_context
from matplotlib.figure import Figure

from ...report.style import GREY, STYLE, colour, empty_figure, label, new_figure
from ...report.text import listed
from ...report.timed import Timed, is_outside
from .analysis import latest_rows

SMALLEST = 1e-9  # errors below, such as 0, are drawn here: the axis is logarithmic


@rc_context(STYLE)
def errors(timed: Timed) -> Figure:
    """Largest error of each variant against the float64 reference; wrong and refused ones are named."""
    rows, notes = latest_rows(timed), timed.not_timed() + timed.outside_tolerance()
    checked = {name: row for name, row in rows.items() if row["status"] != "refused"}
    if not checked:
        return empty_figure("No backend ran here", notes)
    wrong = [name for name, row in checked.items() if row["status"] == "wrong" or is_outside(row)]
    title = f"{len(checked)} of {len(rows)} variants run here and agree with the float64 reference"
    if wrong:
        title = f"{listed(map(label, wrong))} disagree{'s' if len(wrong) == 1 else ''} with the float64 reference"
    fig, (ax,) = new_figure(title, 9.0, 1.9 + 0.4 * len(rows), 1, notes)
    for y, (name, row) in enumerate(rows.items()):
        if name not in checked:
            ax.text(0.01, y, "refused: see below", va="center", color=GREY, transform=ax.get_yaxis_transform())
            continue
        style = {"markeredgecolor": colour(name), "markersize": 8, "linestyle": ""}
        points = ((row["max_abs_error"], "o", colour(name)), (row.get("max_abs_error_state"), "s", "white"))
        for error, shape, fill in points:
            if error is not None:
                ax.plot([max(error, SMALLEST)], [y], marker=shape, markerfacecolor=fill, **style)
        if name in wrong:
            verdict = "outside on some inputs" if is_outside(row) else "wrong"
            ax.text(0.99, y, verdict, va="center", ha="right", fontweight="bold", transform=ax.get_yaxis_transform())
    ax.set_yticks(range(len(rows)), [label(name) for name in rows])
    ax.set(xscale="log", ylim=(len(rows) - 0.4, -0.6))
    low, high = ax.get_xlim()
    ax.set_xlim(low / 2, high * 2)
    ax.set_xlabel("largest absolute error (disc: output; hollow square: new state)")
    return fig
