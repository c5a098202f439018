"""The figures of notebook 05, drawn from a Timed of verify and decode rows."""

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...backends.base import dtype_name
from ...report.style import (
    GREY,
    STYLE,
    batch_axis,
    colour,
    empty_figure,
    label,
    label_ends,
    line_style,
    new_figure,
    other_colours,
    plain_log_axis,
    plot_lines,
)
from ...report.text import micro
from ...report.timed import Timed
from . import analysis


@rc_context(STYLE)
def verify_time(timed: Timed) -> Figure:
    """Median time of a verify call against T: a panel for each mode on one scale, a line for each variant.

    Dotted: the time that the call's bytes take at the measured bandwidth.
    """
    notes = [analysis.conditions(timed), *timed.not_timed(), *timed.outside_tolerance()]
    panels = {mode: times for mode, times in analysis.by_mode(timed).items() if mode in analysis.MODES}
    if not panels:
        return empty_figure("Verify: nothing was timed", notes)
    floors = {} if timed.on_cpu else analysis.bandwidth_floors(timed)  # a thousand times below a CPU's times
    if floors:
        notes.insert(1, "Dotted: what a call must read and write, at the measured bandwidth.")
    tokens = sorted({T for times in panels.values() for T in times.index})
    fig, axes = new_figure(timed.titled(_growth(panels)), 12.5, 5.0, len(panels), notes, sharey=True)
    axes[0].set_yscale("log")
    plain_log_axis(axes[0].yaxis)
    drawn = []
    for ax, (mode, times) in zip(axes, panels.items(), strict=True):
        ends = plot_lines(ax, {name: times[name].dropna().to_dict() for name in times}, micro)
        if mode in floors:
            floor = floors[mode]
            ax.plot(floor.index, floor, color=GREY, linestyle=":", linewidth=1.5)
            ends.append((floor.iloc[-1], f"bandwidth  {micro(floor.iloc[-1])}", GREY))
        drawn.append((ax, ends))
        batch_axis(ax, tokens, "T (tokens verified in one step)")
        ax.set_title(analysis.MODES[mode])
    for ax, ends in drawn:  # once the common scale is known
        label_ends(ax, ends)
    axes[0].set_ylabel("median time of a call, µs")
    return fig


def _growth(panels) -> str:
    """How much longer the fastest kernel of each mode takes at the most tokens than at the fewest; else its times."""
    fastest = {name for times in panels.values() for name in times.iloc[[0, -1]].idxmin(axis=1)}
    who = label(next(iter(fastest))) if len(fastest) == 1 else "fastest kernels"
    times = {mode: one.min(axis=1).dropna() for mode, one in panels.items()}
    few, many = next(iter(times.values())).index[[0, -1]]
    if few == many or any(us.index[0] != few or us.index[-1] != many for us in times.values()):
        return f"{who}, T = {many}: {', '.join(f'{micro(us.iloc[-1])} {_DOING[mode]}' for mode, us in times.items())}"
    growth = {mode: us[many] / us[few] for mode, us in times.items()}
    stored = growth.pop("intermediate", None)
    others = " to ".join(dict.fromkeys(f"{ratio:.1f}×" for ratio in growth.values()))
    title = f"{who}: T = {many} takes {others or f'{stored:.1f}×'} the time of T = {few}"
    if stored:
        title += f", or {stored:.1f}× if every state is stored" if others else " if every state is stored"
    return title


_DOING = {"update": "to update the state", "intermediate": "to store T states", "output": "for the output only"}


@rc_context(STYLE)
def speculative_gain(timed: Timed) -> Figure:
    """Tokens per second of this layer over those of decode by acceptance rate: a panel for each way of rollback.

    A line is a variant, at each acceptance rate with the best of the timed T; numbers say which, where it changes.
    """
    decode, steps = analysis.decode_time(timed), analysis.step_times(timed)
    notes = [analysis.conditions(timed)]
    if steps.empty or not decode:
        return empty_figure("Speculative decoding: no verify step was timed next to decode", notes)
    notes.append(
        f"Over decode steps of {label(decode[0])}, {micro(decode[1])} each; this layer alone, without drafting. "
        "A marker: from here on another T is best."
    )
    ways = [way for way in _WAYS if way in steps.index.unique("way")]
    gains = {key: analysis.gain(us, decode[1], key[-1], 0.8) for key, us in steps.items()}
    (name, way, T), best = max(gains.items(), key=lambda item: item[1])
    title = f"At 80% acceptance {label(name)} yields {best:.1f}× decode's tokens (T = {T}, {way})"
    fig, axes = new_figure(timed.titled(title), 11.5, 4.6, len(ways), notes, sharey=True)
    variants, ends = list(steps.index.unique("variant")), {way: [] for way in ways}
    for (name, way), by_tokens in steps.groupby(level=["variant", "way"], sort=False):
        times = by_tokens.droplevel(["variant", "way"]).to_dict()
        below = variants.index(name) % 2 == 1
        ends[way].append(_draw_gain(axes[ways.index(way)], name, times, decode[1], below))
    axes[0].set_yscale("log", base=2)
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}×"))
    axes[0].set_ylabel("tokens per second over decode's")
    axes[0].set_ylim(bottom=axes[0].get_ylim()[0] / 1.15)  # room for the lowest label
    for ax, way in zip(axes, ways, strict=True):
        ax.axhline(1.0, color=GREY, linewidth=1, linestyle=":")
        ax.set(xlabel="% of drafts accepted", title=f"{way}: {_WAYS[way]}", xlim=(-14, 104))
        label_ends(ax, ends[way])
    return fig


def _draw_gain(ax, name: str, times: dict[int, float], decode_us: float, below: bool):
    """Draw one variant's gain at each acceptance rate, with its best T, labelled where that changes; return its end.

    times: {T: µs of a step}. below: whether labels stand below the line. The end is what label_ends() takes.
    """
    rates = range(101)
    best = [max((analysis.gain(us, decode_us, T, rate / 100), T) for T, us in times.items()) for rate in rates]
    ax.plot(rates, [gain for gain, _ in best], **line_style(name) | {"marker": ""})
    for rate, (gain, T) in zip(rates, best, strict=True):
        if rate and T == best[rate - 1][1]:
            continue
        ax.plot(rate, gain, **line_style(name))
        ax.annotate(
            f"T = {T}",
            (rate, gain),
            (4, -11) if below else (-4, 6),
            textcoords="offset points",
            ha="left" if below else "right",
            fontsize=8.5,
            color=colour(name),
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    return best[-1][0], f"{label(name)}  {best[-1][0]:.1f}×", colour(name)


_WAYS = {"store": "T states written, one copied back", "replay": "output only, then an update by the accepted tokens"}


@rc_context(STYLE)
def draft_memory(tokens: list[int], tp: int = 1, dtype=torch.bfloat16) -> Figure:
    """What a request in flight keeps between verify and commit(), for each model. Computed. dtype: of the state."""
    table = analysis.memory_table(tokens, tp, dtype)
    if table.empty:
        return empty_figure(f"No model of the table can be split over {tp} GPUs", [])
    first, last, columns = table.iloc[0], table.columns[-1], table.columns[1:]
    extra, own = f"{first[last]:,.0f} MB", f"{first['state and window']:,.0f} MB"
    title = f"Storing {max(tokens)} states adds {extra} per request to the {own} of {first['model']}"
    where = f", on each of {tp} tensor-parallel GPUs" if tp > 1 else ""
    note = f"{dtype_name(dtype)} state, all GDN layers of a model{where}."
    fig, (ax,) = new_figure(title, 9.5, 1.8 + 0.2 * len(table) * (len(columns) + 1), 1, [note])
    (drafts,) = other_colours(["drafts"]).values()
    for i, column in enumerate(columns):
        places = [y * (len(columns) + 1) + i for y in range(len(table))]
        bars = ax.barh(
            places,
            table[column],
            height=0.85,
            color=drafts if i else GREY,
            alpha=1 if not i else 0.3 + 0.7 * i / (len(columns) - 1),
        )
        ax.bar_label(bars, [f"  {value:,.0f}  {column}" for value in table[column]], fontsize=8.5)
    ax.set_yticks([y * (len(columns) + 1) + len(columns) / 2 - 0.5 for y in range(len(table))], table.model)
    ax.invert_yaxis()
    ax.set_xlabel("MB per request")
    ax.grid(axis="y", visible=False)
    ax.set_xlim(0, ax.get_xlim()[1] * 1.2)
    return fig
