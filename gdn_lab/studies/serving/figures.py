"""The figures of notebook 09, drawn from ServingRows. report/style.py says how figures look."""

from matplotlib import rc_context
from matplotlib.figure import Figure

from ...layer.configurations import CONFIGURATIONS
from ...report.style import (
    GREY,
    STYLE,
    batch_axis,
    colour,
    empty_figure,
    label_ends,
    marker,
    new_figure,
    other_colours,
    plain_log_axis,
)
from ...report.text import micro, number, percent, signed_percent
from . import analysis
from .sentences import not_served
from .serving_rows import GDN_LAYER, Point, ServingRows
from .tpot import REST, breakdown, unexplained

IN_FLIGHT = "concurrency C (requests in flight)"
WHOLE_COLOUR = "#333333"


def looks(configuration: str) -> dict:
    """Colour and marker of a configuration: those of its GDN kernel."""
    kernel = CONFIGURATIONS[configuration].gdn
    return {"color": colour(kernel), "marker": marker(kernel), "markersize": 5.5, "linewidth": 1.7}


def nothing(rows: ServingRows) -> Figure:
    """A figure that says why there are no times to draw: nothing was served, or a toy, whose times rank nothing."""
    if rows.toy:
        return empty_figure("No times to show: a toy model was served, which ranks nothing", [rows.conditions()])
    return empty_figure("Nothing was served", not_served(rows))


@rc_context(STYLE)
def waterfall(rows: ServingRows) -> Figure:
    """From one GDN layer to TPOT, part by part, for the last configuration at the largest concurrency that all have."""
    if rows and rows.toy:
        return nothing(rows)
    point = analysis.shown_point(rows)
    if point is None:
        return empty_figure("No run has times of its parts", [*not_served(rows), rows.conditions()])
    parts = breakdown(point)
    bars = [(f"one {GDN_LAYER}", 0.0, point.parts[GDN_LAYER][0])] if GDN_LAYER in point.parts else []
    end = 0.0
    for name, us in parts.items():
        if abs(us) < 0.0005 * point.tpot_us and name != REST:
            end += us
            continue
        bars.append((name, end, end + us))
        end += us
    bars.append(("TPOT, measured", 0.0, point.tpot_us))
    title = rows.titled(_waterfall_title(point))
    notes = [rows.conditions(), "A request waits for every step, so each part counts once for each of its tokens."]
    fig, (ax,) = new_figure(title, 11.5, 2.0 + 0.34 * len(bars), 1, notes)
    colours = other_colours(parts)
    for y, (name, start, stop) in enumerate(bars):
        low, high = sorted((start, stop))
        whole = name not in parts
        ax.barh(y, high - low, left=low, height=0.7, color=WHOLE_COLOUR if whole else colours[name], edgecolor=GREY)
        text = f"{number((stop - start) / 1000, '.2f')} ms"
        share = f" ({percent((stop - start) / point.tpot_us)})" if not whole else ""
        ax.annotate(f"{text}{share}", (high, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    ax.set(ylim=(len(bars) - 0.4, -0.6), xlim=(0, 1.2 * max(stop for _, _, stop in bars)), xlabel="ms of one token")
    ax.xaxis.set_major_formatter(lambda us, _: f"{us / 1000:g}")
    ax.grid(axis="y", visible=False)
    return fig


def _waterfall_title(point: Point) -> str:
    share = unexplained(point)
    rest = f"its parts exceed it by {percent(-share)}" if share < 0 else f"{percent(share)} of it is unexplained"
    us, count = point.parts.get(GDN_LAYER, (0.0, 0))
    return (
        f"{point.configuration}, C = {point.concurrency}: {count} GDN layers of {micro(us)} are "
        f"{percent(us * count / point.tpot_us)} of a TPOT of {point.run['tpot_ms']:.2f} ms; {rest}"
    )


@rc_context(STYLE)
def throughput(rows: ServingRows) -> Figure:
    """Output tokens per second and TPOT against concurrency, a line for each configuration."""
    if not rows or rows.toy:
        return nothing(rows)
    notes = [rows.conditions(), *not_served(rows)]
    fig, axes = new_figure(rows.titled(_throughput_title(rows)), 12.5, 4.6, 2, notes)
    panels = (
        ("output_throughput", "output tokens per second", lambda value: f"{value:,.0f}"),
        ("tpot_ms", "TPOT, ms", lambda value: f"{value:.2f} ms"),
    )
    for ax, (field, what, form) in zip(axes, panels, strict=True):
        ends = []
        for name in rows.configurations:
            line = {c: rows.points[name, c].run[field] for c in rows.concurrencies if (name, c) in rows.points}
            ax.plot(list(line), list(line.values()), **looks(name))
            last = list(line.values())[-1]
            ends.append((last, f"{name}  {form(last)}", colour(CONFIGURATIONS[name].gdn)))
        batch_axis(ax, rows.concurrencies, IN_FLIGHT)
        ax.set_yscale("log")
        plain_log_axis(ax.yaxis)
        ax.set_title(what)
        label_ends(ax, ends)
    return fig


def _throughput_title(rows: ServingRows) -> str:
    concurrency = rows.compared_at
    points = rows.at(concurrency)
    best = max(points.values(), key=lambda point: point.run["output_throughput"])
    title = f"{best.configuration} serves {best.run['output_throughput']:,.0f} tokens/s at C = {concurrency}"
    pair = analysis.compared(rows)
    if pair is None:
        return title
    last = analysis.worth(rows, *pair)[-1]
    return f"{title}; {pair[0]} → {pair[1]} changes TPOT by {signed_percent(last.change)} at C = {last.concurrency}"


@rc_context(STYLE)
def pareto(rows: ServingRows) -> Figure:
    """Output tokens/s/GPU against tokens/s/user, a line for each configuration, a point for each concurrency."""
    if not rows or rows.toy:
        return nothing(rows)
    fig, (ax,) = new_figure(rows.titled(_pareto_title(rows)), 10.5, 5.0, 1, [rows.conditions(), *not_served(rows)])
    for name in rows.configurations:
        points = [rows.points[name, c] for c in rows.concurrencies if (name, c) in rows.points]
        xs, ys = [point.run["tokens_per_s_user"] for point in points], [point.per_gpu for point in points]
        ax.plot(xs, ys, label=name, **looks(name))
    for point in points:  # of the last configuration
        ax.annotate(
            f"C = {point.concurrency}",
            (point.run["tokens_per_s_user"], point.per_gpu),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=8.5,
            color=GREY,
        )
    ax.set_yscale("log")
    plain_log_axis(ax.yaxis)
    ax.set(xlabel="tokens/s for each user (1000 / TPOT in ms)", ylabel="output tokens/s for each GPU")
    ax.legend(frameon=False)
    return fig


def _pareto_title(rows: ServingRows) -> str:
    names = rows.configurations
    ends = [rows.points[names[-1], c] for c in rows.concurrencies if (names[-1], c) in rows.points]
    first, last = ends[0], ends[-1]
    return (
        f"{names[-1]}: from {first.run['tokens_per_s_user']:,.0f} to {last.run['tokens_per_s_user']:,.0f} tokens/s for "
        f"a user, {first.per_gpu:,.0f} to {last.per_gpu:,.0f} for a GPU, as C goes from {first.concurrency} to "
        f"{last.concurrency}"
    )


@rc_context(STYLE)
def worth(rows: ServingRows) -> Figure:
    """The change of TPOT between the compared configurations against concurrency, and what the kernel alone makes."""
    if rows and rows.toy:
        return nothing(rows)
    pair = analysis.compared(rows)
    if pair is None:
        return empty_figure("No two configurations were served at the same concurrency", not_served(rows))
    found = analysis.worth(rows, *pair)
    last = found[-1]
    title = f"{pair[0]} → {pair[1]} changes TPOT by {signed_percent(last.change)} at C = {last.concurrency}"
    if last.kernel_share is not None:
        title += f", where GDN kernels are {percent(last.kernel_share)} of TPOT"
    fig, (ax,) = new_figure(rows.titled(title), 10.5, 4.2, 1, [rows.conditions(), *not_served(rows)])
    xs = [one.concurrency for one in found]
    ax.plot(xs, [100 * one.change for one in found], marker="o", color=WHOLE_COLOUR, label="measured")
    known = [one for one in found if one.expected is not None]
    if known:
        expected = [100 * one.expected for one in known]
        ax.plot([one.concurrency for one in known], expected, "o--", color=GREY, label="by the GDN kernel alone")
    ax.axhline(0, color=GREY, linewidth=0.8)
    batch_axis(ax, xs, IN_FLIGHT)
    ax.set_ylabel("change of TPOT, %")
    ax.legend(frameon=False)
    return fig


@rc_context(STYLE)
def speculation(rows: ServingRows) -> Figure:
    """Tokens per second with draft tokens over those without, against T, a line for each acceptance rate."""
    if rows and rows.toy:
        return nothing(rows)
    table = analysis.speculation_table(rows)
    if table.empty or table["speed-up"].isna().all():
        return empty_figure("Nothing was served with draft tokens", [rows.conditions(), *not_served(rows)])
    best = table.loc[table["speed-up"].idxmax()]
    title = (
        f"Draft tokens: at best {best['speed-up']:.2f}× the tokens per second, with T = {best['T']} at an acceptance "
        f"of {percent(best.acceptance)}"
    )
    fig, (ax,) = new_figure(rows.titled(title), 10.0, 4.4, 1, [rows.conditions(), *not_served(rows)])
    lines = list(table.groupby(["configuration", "C", "acceptance"], sort=False))
    colours = other_colours(str(key) for key, _ in lines)
    for key, line in lines:
        name, concurrency, acceptance = key
        text = f"{name}, C = {concurrency}, acceptance {percent(acceptance)}"
        ax.plot([1, *line["T"]], [1.0, *line["speed-up"]], marker="o", color=colours[str(key)], label=text)
    ax.axhline(1, color=GREY, linewidth=0.8)
    ax.set(xlabel="tokens verified in a step, T", ylabel="tokens/s over those without drafts")
    ax.set_xticks(sorted({1, *table["T"]}))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    return fig
