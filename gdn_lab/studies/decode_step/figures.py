"""The figures of notebook 03, drawn from rows of a step. Nothing here measures; drawing.py is how they look."""

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...report.recorded import published
from ...report.style import GREY, STYLE, empty_figure, ink_on, new_figure, part_colours
from ...report.text import device_name, micro, percent
from . import analysis as findings

LEAST_LABELLED = 0.035  # of the longest bar: narrower pieces carry no number
TOTAL_INK = "#333333"
OTHER_INK = "#C9B8D9"  # parts too small to be told apart


@rc_context(STYLE)
def waterfall(rows, run=None) -> Figure:
    """From the first configuration's step to the last one's: what each part gives or takes, as recorded by CUPTI."""
    bars = findings.waterfall(rows)
    notes = [findings.conditions(rows, run), *findings.not_timed(rows, "step")]
    if sum(bar.part is None for bar in bars) < 2:
        return empty_figure("No two configurations were taken apart: there is no way from one to the other", notes)
    notes.insert(1, _recorded_note(rows))
    fig, (ax,) = new_figure(_waterfall_title(rows), 11.5, 1.9 + 0.3 * len(bars), 1, notes)
    colours, longest = _colours(rows), max(bar.end for bar in bars)
    for y, bar in enumerate(bars):
        low, high = sorted((bar.start, bar.end))
        ink = TOTAL_INK if bar.part is None else colours[bar.part]
        edge = ink if bar.part is None else GREY
        ax.barh(y, high - low, left=low, color=ink, height=0.74, edgecolor=edge, linewidth=0.6)
        if bar.part is None:
            spread = findings.traced(rows)[bar.label]
            ax.plot([spread["p20_us"], spread["p80_us"]], [y, y], color="#BBBBBB", linewidth=3, solid_capstyle="butt")
            text, high = micro(bar.end), max(high, spread["p80_us"])
        else:
            text = findings.signed(bar.end - bar.start)
        ax.annotate(text, (high, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
        if y + 1 < len(bars):
            ax.plot([bar.end, bar.end], [y, y + 1], color=GREY, linewidth=0.7)
    ax.set_yticks(range(len(bars)), [bar.label for bar in bars])
    for tick, bar in zip(ax.get_yticklabels(), bars, strict=True):
        tick.set_fontweight("bold" if bar.part is None else "normal")
    ax.set(ylim=(len(bars) - 0.4, -0.6), xlim=(0, longest * 1.13))
    _time_axis(ax, "µs of one step, as recorded (light line in a whole bar: p20 to p80)")
    return fig


def _time_axis(ax, label: str) -> None:
    ax.set_xlabel(label)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda us, _: f"{us:,.0f}"))
    ax.grid(axis="y", visible=False)


def _colours(rows) -> dict[str, str]:
    return part_colours(findings.part_order(rows)) | {findings.OTHERS: OTHER_INK}


def _waterfall_title(rows) -> str:
    names = list(findings.traced(rows))
    us = findings.whole(rows)
    steps = " → ".join(f"{name} {micro(us[name]['median_us'])}" for name in names)
    changes = {
        part: findings.part_us(rows, names[-1], part) - findings.part_us(rows, names[0], part)
        for part in findings.part_order(rows)
    }
    part = min(changes, key=changes.get)
    gave = f"; {part} gives {micro(-changes[part])} of the difference" if changes[part] < 0 else ""
    return f"{findings.prefix(rows)}{steps}{gave}"


def _recorded_note(rows) -> str:
    if findings.prefix(rows):
        return ""
    differences = findings.tracing_differences(rows)
    each = ", ".join(f"{name} {f'{share:+.1%}'.replace('-', '−')}" for name, share in differences.items())
    return (
        f"Parts as CUPTI recorded them in graph replays; a kernel counts from when those before it have ended. The "
        f"recorded step against the untraced replay: {each}."
    )


@rc_context(STYLE)
def parts(rows, run=None) -> Figure:
    """Each configuration's step as a bar of its parts, gaps among them; above it p20 to p80 of the untraced step."""
    apart, of = findings.parts(rows), findings.whole(rows)
    notes = [findings.conditions(rows, run), *findings.not_timed(rows, "step")]
    if not apart:
        return empty_figure("No step was taken apart", notes)
    notes.insert(1, _recorded_note(rows))
    facts = [row for row in rows if row.get("part") == findings.ALL_REDUCE and row.get("sweep") == "step"]
    if facts:
        notes.append(f"The {facts[0]['times_a_layer']} all-reduces of a layer are not run on one GPU, and not drawn.")
    order, colours = findings.part_order(rows), _colours(rows)
    fig, (ax,) = new_figure(_parts_title(rows), 12.0, 2.6 + 0.62 * len(apart), 1, notes)
    longest = max(sum(row["median_us"] for row in of_parts.values()) for of_parts in apart.values())
    for y, (name, of_parts) in enumerate(apart.items()):
        left = 0.0
        for part in order:
            us = of_parts[part]["median_us"] if part in of_parts else 0.0
            ax.barh(
                y, us, left=left, color=colours[part], edgecolor="white" if part != findings.GAPS else GREY,
                linewidth=0.7, height=0.62, hatch="////" if part == findings.GAPS else None,
                label=part if not y else None,
            )  # fmt: skip
            if us > LEAST_LABELLED * longest:
                ink = ink_on(colours[part])
                ax.text(left + us / 2, y, f"{us:,.0f}", ha="center", va="center", fontsize=9, color=ink)
            left += us
        whole = of[name]
        ax.plot([whole["p20_us"], whole["p80_us"]], [y - 0.4] * 2, color=TOTAL_INK, linewidth=3, solid_capstyle="butt")
        ax.plot([whole["median_us"]] * 2, [y - 0.46, y - 0.34], color=TOTAL_INK, linewidth=1.2)
        text = f"{micro(whole['median_us'])}, GDN {percent(findings.share_of_gdn(rows, name))}"
        ax.annotate(text, (left, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9.5)
    ax.set_yticks(range(len(apart)), list(apart))
    ax.set(ylim=(len(apart) - 0.45, -0.75), xlim=(0, longest * 1.2))
    _time_axis(ax, "µs of one step (dark line above a bar: p20 to p80 of the untraced step, its median a tick)")
    handles = {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    for part in order:  # parts that the first configuration has not
        handles.setdefault(part, ax.barh(0, 0, color=colours[part]))
    fig.legend(
        handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8.5, handlelength=1.2,
    )  # fmt: skip
    return fig


def _parts_title(rows) -> str:
    apart = findings.parts(rows)
    name = list(apart)[-1]
    busy = {part: row["median_us"] for part, row in apart[name].items() if part != findings.GAPS}
    largest = max(busy, key=busy.get)
    total = findings.traced(rows)[name]["median_us"]
    return (
        f"{findings.prefix(rows)}GDN is {percent(findings.share_of_gdn(rows, name))} of a step of {name}, the largest "
        f"part, {largest}, {percent(busy[largest] / total)}; gaps are "
        f"{percent(findings.part_us(rows, name, findings.GAPS) / total)}"
    )


@rc_context(STYLE)
def beside_published(rows, run=None) -> Figure:
    """The step and the GDN kernel, published before and after beside each configuration here."""
    of, apart = findings.whole(rows), findings.parts(rows)
    theirs = published("step_profile").set_index("part")
    notes = [
        "Published: one of 8 B200, SGLang pull request 19150, whose profile does not name its batch.",
        f"Here: {findings.conditions(rows, run)}" if of else "",
        *findings.not_timed(rows, "step"),
    ]
    fig, axes = new_figure(_published_title(rows), 11.5, 2.4 + 0.36 * (2 + len(of)), 2, notes)
    for ax, part in zip(axes, theirs.index, strict=True):
        mine = of if part == "decode step" else {name: apart[name][findings.GDN] for name in apart}
        bars = [("published before", theirs.triton[part], None), ("published after", theirs.flashinfer[part], None)]
        bars += [(name, row["median_us"], row) for name, row in mine.items()]
        for y, (_, us, row) in enumerate(bars):
            ink = TOTAL_INK if part == "decode step" else part_colours([findings.GDN])[findings.GDN]
            ax.barh(y, us, color="white" if row is None else ink, edgecolor=GREY if row is None else ink, height=0.7)
            if row:
                spread = [row["p20_us"], row["p80_us"]]
                ax.plot(spread, [y, y], color="#BBBBBB", linewidth=3, solid_capstyle="butt")
            end = max(us, row["p80_us"]) if row else us
            ax.annotate(micro(us), (end, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5)
        ax.set_yticks(range(len(bars)), [name for name, _, _ in bars])
        ax.set(ylim=(len(bars) - 0.4, -0.6), xlim=(0, max(us for _, us, _ in bars) * 1.22))
        ax.set_title(part)
        _time_axis(ax, "µs (light line: p20 to p80)")
    return fig


def _published_title(rows) -> str:
    theirs, ours = findings.published_saving(), findings.saving(rows)
    told = f"Published: {theirs.total:.0f} µs saved, {theirs.gdn:.0f} by the GDN kernel, {theirs.rest:.0f} unexplained"
    if ours is None:
        return f"{told}; here before and after were not both measured" if findings.whole(rows) else told
    numbers = (f"{value:.0f}".replace("-0", "0").replace("-", "−") for value in (ours.total, ours.gdn, ours.rest))
    return "{}; here {}, {} and {}".format(told, *numbers)


@rc_context(STYLE)
def share_map(rows, run=None) -> Figure:
    """GDN's share of the step (above) and what the last configuration saves (below): tp by batch, for each model."""
    table = findings.shares(rows)
    if table.share.isna().all():
        return empty_figure("How the share of GDN moves: nothing was measured", findings.not_timed(rows))
    models, tps, batches = (list(dict.fromkeys(table[column])) for column in ("model", "tp", "B"))
    first, last, both = table["first"].iloc[0], table["last"].iloc[0], not table.gain.isna().all()
    notes = [
        f"{device_name(run)}. " * bool(run) + f"Colour and upper number: GDN's share of the recorded step of {first}."
        + f" Lower number: what {last} saves of the whole step of {first}, untraced." * both,
        *findings.not_timed(rows, "share"),
    ]  # fmt: skip
    width, height = 1.8 + (0.9 + 0.72 * len(batches)) * len(models), 2.3 + 0.5 * len(tps)
    fig, axes = new_figure(_map_title(rows), max(width, 8.0), height, len(models), notes, sharey=True)
    points = {(line.model, line.tp, line.B): line for line in table.itertuples()}
    darkest = max(table.share.max(), 0.01)
    for ax, model in zip(axes, models, strict=True):
        shares = [[_share(points.get((model, tp, batch))) for batch in batches] for tp in tps]
        image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=darkest, aspect="auto")
        for y, tp in enumerate(tps):
            for x, batch in enumerate(batches):
                if (line := points.get((model, tp, batch))) is not None:
                    _write_cell(ax, x, y, line, dark=line.share > 0.55 * darkest)
        ax.set_xticks(range(len(batches)), batches)
        ax.set_yticks(range(len(tps)), tps)
        ax.set(title=model, xlabel="batch B")
        ax.grid(False)
    axes[0].set_ylabel("tensor-parallel size")
    fig.colorbar(image, ax=axes, format=lambda share, _: f"{share:.0%}", label="GDN's share", shrink=0.9, pad=0.01)
    return fig


def _share(line) -> float:
    return float("nan") if line is None else line.share


def _write_cell(ax, x, y, line, dark) -> None:
    ink = "white" if dark else "black"
    text = "" if line.share != line.share else percent(line.share)
    if line.gain == line.gain:
        text += f"\nsaves {findings.percent_change(line.gain)}"
    ax.text(x, y, text, ha="center", va="center", color=ink, fontsize=8.5)


def _map_title(rows) -> str:
    table = findings.shares(rows)
    said = f"GDN takes {_range(table.share)} of a step of {table['first'].iloc[0]}"
    if not table.gain.isna().all():
        said += f"; {table['last'].iloc[0]} saves {_range(table.gain)} of it"
    return findings.prefix(rows, "share") + said


def _range(shares) -> str:
    return f"{findings.percent_change(shares.min())} to {findings.percent_change(shares.max())}"
