"""The figures of notebook 05, drawn from rows of verify. Nothing here measures; drawing.py is how they look."""

from math import log2

from matplotlib import rc_context
from matplotlib.figure import Figure

from ...report.style import GREY, STYLE, batch_axis, colour, empty_figure, label_ends, line_style, new_figure
from ...report.text import micro
from ...report.timed import clock_prefix, not_timed
from . import analysis as findings


@rc_context(STYLE)
def verify_time(rows, run=None) -> Figure:
    """Median time of a verify step against T, a panel for each mode, a line for each variant."""
    times, notes = findings.verify_times(rows), [findings.conditions(rows, run), *not_timed(rows)]
    panels = {mode: times[mode] for mode in findings.MODES if mode in times}
    if not panels:
        return empty_figure("Verify: nothing was timed", notes)
    for mode, of in panels.items():  # eager PyTorch only where there is nothing else: it would flatten the rest
        panels[mode] = {name: us for name, us in of.items() if not name.startswith("torch/")} or of
    tokens = sorted({T for of in panels.values() for us in of.values() for T in us})
    title = clock_prefix(rows) + _verify_finding(panels, tokens[0], tokens[-1])
    fig, axes = new_figure(title, 12.5, 5.0, len(panels), notes)
    for ax, (mode, of) in zip(axes, panels.items(), strict=True):
        ends = []
        for name, us in of.items():
            xs = sorted(us)
            ax.plot(xs, [us[T] for T in xs], **line_style(name))
            ends.append((us[xs[-1]], f"{name}  {micro(us[xs[-1]])}", colour(name)))
        ax.set_ylim(0, max(us[T] for us in of.values() for T in us) * 1.05)
        batch_axis(ax, tokens, "T (tokens verified in one step)")
        ax.set_title(findings.MODES[mode])
        label_ends(ax, ends)
    axes[0].set_ylabel("median time of a call, µs")
    return fig


_DOING = {"update": "to update the state", "intermediate": "to store T states", "output": "for the output only"}


def _verify_finding(panels, few: int, many: int) -> str:
    """How the time of the variant that is fastest at `many` tokens grows from `few`, in each mode; else its time."""
    names = {mode: findings.fastest(of, many) for mode, of in panels.items()}
    who = names[next(iter(names))] if len(set(names.values())) == 1 else "the fastest kernel"
    times = {mode: of[names[mode]] for mode, of in panels.items()}
    if few == many or any(few not in us for us in times.values()):
        said = [f"{micro(us[many])} {_DOING[mode]}" for mode, us in times.items()]
        return f"At T = {many} {who} takes {', '.join(said)}"
    (mode, us), *others = times.items()
    said = [f"{us[many] / us[few]:.2f} times as long {_DOING[mode]}"]
    said += [f"{us[many] / us[few]:.2f} {_DOING[mode]}" for mode, us in others]
    return f"From T = {few} to {many} {who} takes {', '.join(said)}"


@rc_context(STYLE)
def speculative_gain(rows, run=None) -> Figure:
    """Tokens a second of this layer over those of decode, against the acceptance rate; a panel for each way."""
    decode, steps = findings.decode_time(rows), findings.step_times(rows)
    kernels = {key: of for key, of in steps.items() if not key[0].startswith("torch/")} or steps
    notes = [findings.conditions(rows, run)]
    if not kernels or not decode:
        return empty_figure("Speculative decoding: nothing was timed beside decode", notes)
    notes.append(f"Over decode steps of {decode[0]}, {micro(decode[1])} each. This layer alone, without drafting.")
    rates = [percent_ / 100 for percent_ in range(0, 101, 2)]
    (name, way), T, best = max(
        ((key, T, findings.gain(of, decode[1], T, 0.8)) for key, of in kernels.items() for T in of),
        key=lambda found: found[2],
    )
    found = f"{name} makes {best:.2f} times decode's tokens (T = {T}, {way})"
    title = f"{clock_prefix(rows)}With 80 % of drafts accepted {found}"
    fig, axes = new_figure(title, 11.5, 5.0, len(findings.WAYS), notes, sharey=True)
    for ax, way in zip(axes, findings.WAYS, strict=True):
        ends = []
        for (name, of_way), of in kernels.items():
            for T in sorted(of) if of_way == way else ():
                gains = [findings.gain(of, decode[1], T, rate) for rate in rates]
                ax.plot([rate * 100 for rate in rates], gains, color=colour(name), linewidth=0.4 + 0.6 * log2(T))
                ends.append((gains[-1], f"{name} T = {T}", colour(name)))
        ax.axhline(1.0, color=GREY, linewidth=1, linestyle=":")
        ax.set(xlabel="% of drafts accepted", title=f"{way}: {_WAY[way]}", xlim=(0, 100))
        ax.set_ylim(0, max(findings.gain(of, decode[1], T, 1.0) for of in kernels.values() for T in of) * 1.05)
        label_ends(ax, ends)
    axes[0].set_ylabel("tokens a second over decode's")
    return fig


_WAY = {"store": "T states written, one copied back", "replay": "output only, then the accepted tokens again"}


@rc_context(STYLE)
def draft_memory(tokens, tp: int = 1) -> Figure:
    """What a request in flight keeps between verify and commit, for each model. Computed."""
    table = findings.memory_table(tokens, tp)
    if table.empty:
        return empty_figure(f"No model of the table can be split over {tp} GPUs", [])
    first, last = table.iloc[0], table.columns[-1]
    ratio = first[last] / first["state and window"]
    title = (
        f"{last.removeprefix('drafts, ')}: a request of {first['model']} in flight keeps {first[last]:,.0f} MB more, "
        f"{ratio:.1f} times its state"
    )
    where = f"on one of {tp} tensor-parallel GPUs" if tp > 1 else "on one GPU"
    note = f"bf16, all GDN layers of a model, {where}."
    columns = table.columns[1:]
    fig, (ax,) = new_figure(title, 9.5, 1.8 + 0.2 * len(table) * (len(columns) + 1), 1, [note])
    for i, column in enumerate(columns):
        places = [y * (len(columns) + 1) + i for y in range(len(table))]
        bars = ax.barh(places, table[column], height=0.85, color=GREY if i == 0 else "#0072B2", alpha=1 - 0.15 * i)
        ax.bar_label(bars, [f"  {value:,.0f}  {column}" for value in table[column]], fontsize=8.5)
    ax.set_yticks([y * (len(columns) + 1) + len(columns) / 2 - 0.5 for y in range(len(table))], table.model)
    ax.invert_yaxis()
    ax.set_xlabel("MB a request")
    ax.grid(axis="y", visible=False)
    ax.set_xlim(0, ax.get_xlim()[1] * 1.2)
    return fig
