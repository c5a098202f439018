"""The figures of notebook 06, drawn from rows of prefill. Nothing here measures; drawing.py is how they look."""

from matplotlib import rc_context
from matplotlib.figure import Figure

from ...report.style import GREY, STYLE, colour, empty_figure, marker, new_figure
from ...report.text import device_name, number_range
from ...report.timed import clock_prefix, name_of, not_timed, with_copies
from . import analysis as findings


def _notes(rows, run) -> list[str]:
    return [f"{device_name(run)} · {findings.conditions(rows)}", *not_timed(rows)]


def _panels(rows):
    """[(HV, [workload labels], rows)], most heads first; workloads by tokens, then sequences."""
    panels = []
    for heads in sorted({row["num_v_heads"] for row in rows}, reverse=True):
        of = [row for row in rows if row["num_v_heads"] == heads]
        names = {findings.workload(row): (row["tokens"], row["batch"]) for row in of}
        panels.append((heads, sorted(names, key=names.get), of))
    return panels


@rc_context(STYLE)
def tokens_per_second(rows, run=None) -> Figure:
    """Tokens a second of each variant for each workload, a panel for each number of heads; hollow: by the detour."""
    mine = findings.timed(rows)
    if not mine:
        return empty_figure("No prefill was timed", not_timed(rows))
    panels = _panels(mine)
    title = f"{clock_prefix(rows)}{findings.answers(rows)[0].split(':')[0]}; {findings.fastest(rows)}"
    unit, of_unit = (1e6, "million") if max(row["tokens_per_s"] for row in mine) >= 1e6 else (1e3, "thousand")
    fig, axes = new_figure(title, 10.5, 4.8, len(panels), [*_notes(rows, run), *with_copies(mine)])
    for ax, (heads, names, of) in zip(axes, panels, strict=True):
        for which in findings.order(of):
            line = sorted(
                (row for row in of if findings.label(row) == which), key=lambda row: names.index(findings.workload(row))
            )
            ink, hollow = colour(name_of(line[0])), line[0]["indexing"] == findings.DETOUR
            ax.plot(
                [names.index(findings.workload(row)) for row in line], [row["tokens_per_s"] / unit for row in line],
                color=ink, marker=marker(name_of(line[0])), linewidth=0.8, alpha=0.95, label=which,
                linestyle=(0, (4, 2)) if hollow else "-", markerfacecolor="white" if hollow else ink,
                zorder=3 if which == "triton/vk" else 2,
            )  # fmt: skip
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
        ax.set_xlim(-0.5, len(names) - 0.5)
        ax.set_ylim(0, 1.08 * ax.dataLim.ymax)
        ax.set_title(f"{heads} value heads")
        ax.set_xlabel("sequences × tokens of each")
    axes[0].set_ylabel(f"{of_unit} tokens a second")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    return fig


@rc_context(STYLE)
def native_against_detour(rows, run=None) -> Figure:
    """Time by the detour over time on the pool in place, for each workload; above 1 the pool in place is ahead."""
    found = findings.detour_ratios(rows)
    if not found:
        return empty_figure("The detour was not timed beside the pool in place", not_timed(rows))
    every = [ratio for of in found.values() for ratio in of.values()]
    title = (
        f"{clock_prefix(rows)}The detour by way of KV takes {number_range(every)} times as long as the pool in place"
    )
    panels = _panels(findings.timed(rows))
    fig, axes = new_figure(title, 10.5, 4.2, len(panels), _notes(rows, run), sharey=True)
    for ax, (heads, names, of) in zip(axes, panels, strict=True):
        places = {findings.point(row): names.index(findings.workload(row)) for row in of}
        for number, (name, ratio) in enumerate(found.items()):
            at = {point: value for point, value in ratio.items() if point in places}
            width = 0.8 / len(found)
            left = [places[point] + (number - (len(found) - 1) / 2) * width for point in at]
            bars = ax.bar(left, [value - 1 for value in at.values()], width, bottom=1, color=colour(name), label=name)
            ax.bar_label(bars, [f"{value:.2f}" for value in at.values()], fontsize=8.5, padding=2)
        ax.axhline(1, color=GREY, linewidth=1)
        ax.margins(y=0.12)  # room for the labels
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
        ax.set_title(f"{heads} value heads")
        ax.set_xlabel("sequences × tokens of each")
    axes[0].set_ylabel("time by the detour / time in place")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    return fig
