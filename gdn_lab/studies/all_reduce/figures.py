"""The figures of notebook 08: time over size, a panel for the sum alone and one with residual and norm."""

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ...engine.communicator_choice import ADD_NORM, SUM
from ...engine.communicator_variants import VARIANTS
from ...report.style import STYLE, empty_figure, label_ends, new_figure, plain_log_axis
from ...report.text import byte_size, device_name, micro
from . import analysis


@rc_context(STYLE)
def times(rows: list[dict], ranks: int, run: dict | None = None) -> Figure:
    """Median µs over bytes of each variant on a number of ranks; a ring marks the fastest at each size.

    run: what run.json holds; its GPU is in the title. Bars: 20th to 80th percentile.
    """
    lines = analysis.timed(rows)
    lines = lines[(lines.ranks == ranks)]
    if lines.empty:
        return empty_figure(f"No all-reduce on {ranks} GPUs was timed", analysis.not_timed(rows))
    lines = lines[lines.hidden == analysis.hidden_of(lines.to_dict("records"))]
    operations = [operation for operation in (SUM, ADD_NORM) if operation in set(lines.operation)]
    notes = [f"x [rows, {int(lines.hidden.iloc[0]):,}] · {analysis.conditions(rows)} · ring: the fastest at that size"]
    fig, panels = new_figure(_title(rows, ranks, run), 12.5, 4.8, len(operations), notes, sharey=True)
    for axes, operation in zip(panels, operations, strict=True):
        _panel(axes, lines[lines.operation == operation])
        axes.set_title(analysis.WORDS[operation])
    panels[0].set_ylabel("µs, slowest rank")
    return fig


def closing(rows: list[dict], run: dict | None = None) -> Figure | None:
    """times() of the most GPUs; None where none was timed on GPUs."""
    on_gpus = [row for row in rows if row["device"] == "cuda"]
    counts = analysis.ranks_of(on_gpus)
    return times(on_gpus, counts[-1], run) if counts else None


def closing_name(rows: list[dict]) -> str:
    """The file name, without suffix, under which a notebook saves closing() of its own rows."""
    counts = analysis.ranks_of([row for row in rows if row["device"] == "cuda"])
    return f"all_reduce_{counts[-1]}" if counts else "all_reduce"


def _title(rows, ranks: int, run: dict | None) -> str:
    """ "two-shot is fastest at 2.1 MB with residual and norm: 13.1 µs, nccl 36.0 µs (recorded: H200, 2 GPUs)"."""
    operation = ADD_NORM if analysis.at_step(rows, ranks, ADD_NORM) else SUM
    found = analysis.at_step(rows, ranks, operation)
    size = byte_size(found.pop("bytes"))
    best = min(found, key=found.get)
    finding = f"{best}: {micro(found[best])} for {size}"
    if len(found) > 1:
        finding = f"{best} is fastest at {size}"
        finding += " with residual and norm" if operation == ADD_NORM else ""
        other = "nccl" if "nccl" in found and best != "nccl" else max(found, key=found.get)
        finding += f": {micro(found[best])}, {other} {micro(found[other])}"
    run = run or {}
    if analysis.timed(rows).device.iloc[0] != "cuda":
        return f"CPU times: {finding} ({ranks} processes)"
    where = f"recorded: {run['recorded_on'].upper()}" if run.get("recorded_on") else device_name(run)
    return f"{finding} ({where}, {ranks} GPUs)"


def _panel(axes, lines) -> None:
    best = lines.loc[lines.groupby("bytes").median_us.idxmin()]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ends, largest = [], lines.bytes.max()
    for name, there in lines.groupby("variant", sort=False):
        look = VARIANTS[name]
        spread = (there.median_us - there.p20_us, there.p80_us - there.median_us)
        axes.errorbar(
            there.bytes,
            there.median_us,
            yerr=spread,
            color=look.colour,
            marker=look.marker,
            markersize=6,
            linewidth=1.6,
            elinewidth=0.8,
            label=name,
        )
        last = there.iloc[-1]
        at = "" if last.bytes == largest else f" at {byte_size(last.bytes)}"
        ends.append((last.median_us, f"{name}  {micro(last.median_us)}{at}", look.colour))
    ring = {"markersize": 14, "markerfacecolor": "none", "markeredgecolor": "black", "markeredgewidth": 1.0}
    axes.plot(best.bytes, best.median_us, linestyle="none", marker="o", **ring)
    sizes = sorted(lines.bytes.unique())
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: byte_size(x)))
    axes.tick_params(axis="x", rotation=35)
    axes.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.4)
    plain_log_axis(axes.yaxis)
    axes.set_xlabel(f"bytes of x on each rank (labels: times at {byte_size(largest)})")
    label_ends(axes, ends)
