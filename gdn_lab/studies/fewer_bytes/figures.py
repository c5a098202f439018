"""The figures of notebook 12: bytes by design with the measured times, and drift over steps."""

from matplotlib import rc_context
from matplotlib.figure import Figure

from ...backends.registry import variant
from ...models import GDNShape
from ...report.recorded import titled
from ...report.style import (
    STYLE,
    batch_axis,
    empty_figure,
    label_ends,
    new_figure,
    other_colours,
    plain_log_axis,
)
from ...report.text import percent
from . import analysis
from .byte_designs import DESIGNS, IN_PLACE


@rc_context(STYLE)
def step_bytes(shape: GDNShape, batch: int, rows: list[dict]) -> Figure:
    """Bytes of a step over bf16 in place, a bar for each design; dots: times over FlashInfer's, where measured."""
    base = IN_PLACE.step_bytes(shape, batch)
    ratios = {design: design.step_bytes(shape, batch) / base for design in DESIGNS}
    least = min(DESIGNS, key=ratios.get)
    notes = [f"K = V = 128, HK {shape.num_k_heads}, HV {shape.num_v_heads}, B = {batch}"]
    title = f"{least.label}: {percent(ratios[least])} of the bytes of bf16 in place"
    fig, (axes,) = new_figure(title, 9.5, 4.2, notes=notes)
    colours = other_colours([design.label for design in DESIGNS])
    measured = _measured(rows, batch)
    for place, (design, ratio) in enumerate(reversed(ratios.items())):
        axes.barh(place, ratio, color=colours[design.label], edgecolor="white")
        taken = measured.get(design.label)
        label = f"{ratio:.2f}" + (f" (time {taken:.2f})" if taken is not None else "")
        axes.text(max(ratio + 0.02, (taken or 0.0) + 0.04), place, label, va="center")
        if taken is not None:
            axes.plot(taken, place, "o", color="black", markersize=7)
    axes.set_yticks(range(len(DESIGNS)), [design.label for design in reversed(DESIGNS)])
    axes.set_xlabel(
        "bytes of a step ÷ bf16 in place" + (" (dots: measured time ÷ FlashInfer's in place)" if measured else "")
    )
    axes.set_xlim(0, max(ratios.values()) * 1.12)
    return fig


def _measured(rows: list[dict], batch: int) -> dict[str, float]:
    """{label of a design: time over FlashInfer's} of the rings timed at a batch."""
    lines = analysis.timed(rows)
    if "ring_updates" not in lines:
        return {}
    lines = lines[(lines.batch == batch) & lines.ring_updates.notna()]
    return {
        f"{dtype}, ring of {int(updates)}": ratio
        for dtype, updates, ratio in zip(lines.state_dtype, lines.ring_updates, lines.over_flashinfer, strict=True)
    }


@rc_context(STYLE)
def over_flashinfer(rows: list[dict], run: dict | None = None) -> Figure:
    """Time over FlashInfer's in place against the batch, a line for each variant and ring. run: what run.json holds."""
    lines, best = (table.dropna(subset="over_flashinfer") for table in (analysis.timed(rows), analysis.rings(rows)))
    if best.empty:
        return empty_figure("No time of a ring and of FlashInfer is recorded", analysis.not_timed(rows))
    last = best.iloc[-1]
    finding = f"{last['name']} takes {last.over_flashinfer:.2f} of FlashInfer's time at B = {last.batch}"
    fig, (axes,) = new_figure(titled(finding, run, rows), 9.5, 4.6, notes=[analysis.conditions(rows)])
    ends, rings = [], [name for name in dict.fromkeys(lines.name) if "ring" in name]
    colours = other_colours(rings)
    for name, there in lines.sort_values("batch").groupby("name", sort=False):
        record = variant(f"{there.backend.iloc[0]}/{there.variant.iloc[0]}")
        look = {"color": colours.get(name, record.colour), "marker": record.marker}
        axes.plot(there.batch, there.over_flashinfer, **look)
        ends.append((there.over_flashinfer.iloc[-1], f"{name}  {there.over_flashinfer.iloc[-1]:.2f}", look["color"]))
    axes.set_ylim(0, max(1.05, lines.over_flashinfer.max() * 1.05))
    axes.set_ylabel("time ÷ FlashInfer's in place")
    batch_axis(axes, sorted(lines.batch.unique()))
    label_ends(axes, ends)
    return fig


@rc_context(STYLE)
def drift(drifted: list[dict]) -> Figure:
    """Relative error of the state over decode steps, a panel for each kind of inputs."""
    kinds = list(dict.fromkeys(row["kind"] for row in drifted))
    labels = list(dict.fromkeys(row["design"] for row in drifted))
    colours = other_colours(labels)
    ratio = analysis.ratio_to(drifted, analysis.REPLAY, IN_PLACE, kinds[0])
    last = max(row["step"] for row in drifted)
    title = (
        f"After {last:,} steps a bf16 ring of {analysis.REPLAY.updates} has {ratio:.2f} of the error of bf16 in place"
    )
    notes = ["Roundings of each design in PyTorch, float32 between them, against float64; FP8 rounds stochastically."]
    fig, panels = new_figure(title, 12.5, 4.6, len(kinds), notes, sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        ends = []
        for label in labels:
            points = [(r["step"], r["relative_error"]) for r in drifted if (r["kind"], r["design"]) == (kind, label)]
            steps, errors = zip(*points, strict=True)
            axes.plot(steps, errors, color=colours[label], marker="o", markersize=4)
            ends.append((errors[-1], label, colours[label]))
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_log_axis(axes.xaxis, subs=(1,))
        axes.set_xlabel("decode step")
        axes.set_title(kind)
        label_ends(axes, ends)
    panels[0].set_ylabel("‖S - S₆₄‖ ÷ ‖S₆₄‖")
    return fig
