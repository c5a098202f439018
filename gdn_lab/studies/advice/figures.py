"""The figure of notebook 07: which variant is fastest at each recorded batch and tp, a panel for each model."""

from collections import Counter
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ...backends.registry import in_order
from ...models import MODELS, GDNShape, divisions
from ...report.recorded import DATA, recorded_gpus
from ...report.style import GREY, STYLE, colour, empty_figure, ink_on, label, new_figure
from ...report.text import listed
from .analysis import Comparison, best_comparison
from .recorded_calls import KERNEL, RECORDED, Series, all_series, called

EMPTY, HATCH = "#F7F7F7", "////"
IN_STEP = "*"  # marks times of a part of a decode step


def recorded_cells(found: list[Series], dtype: str) -> dict[tuple[str, int, int], Comparison]:
    """{(model, tp, batch): comparison} of what is recorded at these heads and batch, whichever model has the heads."""
    usable, cells = [series for series in found if series.dtype == dtype], {}
    for name in MODELS:
        for tp in divisions(name):
            shape = GDNShape.from_model(name, tp)
            same = [series for series in usable if series.shape == shape]
            for batch in sorted({batch for series in same for batch in series.batches}):
                one = best_comparison(same, shape, batch)
                if one and one.how == RECORDED and len(one.names) > 1:
                    cells[name, tp, batch] = one
    return cells


@rc_context(STYLE)
def fastest(gpu: str, dtype: str, data: Path = DATA) -> Figure:
    """Batch across, tp down, the fastest variant's colour and µs in each cell; hatched where nothing is recorded."""
    found, place = all_series(gpu, data), gpu.upper() if gpu in recorded_gpus(data) else called(gpu)
    cells = recorded_cells(found, dtype)
    if not cells:
        return empty_figure(f"{place}: no decode with a {dtype} state is recorded", [])
    batches = sorted({batch for _, _, batch in cells})
    rows = sum(len(divisions(name)) for name in MODELS)
    distinct = {(one.series.shape, batch): one for (_, _, batch), one in cells.items()}  # models share times
    wins = Counter(one.names[0] for one in distinct.values())
    first, count = wins.most_common(1)[0]
    timed = sorted({len(one.names) for one in distinct.values()})
    variants = " to ".join(map(str, dict.fromkeys((timed[0], timed[-1]))))
    title = (
        f"{place}, {dtype} state: {label(first)} is fastest in {count} of {len(distinct)} recorded calls, of "
        f"{variants} variants"
    )
    ratios = {name: len(divisions(name)) for name in MODELS}
    fig, axes = new_figure(
        title, 9.5, 2.2 + 0.42 * rows, 1, notes(cells), rows=len(MODELS), height_ratios=list(ratios.values())
    )
    for ax, name in zip(axes, MODELS, strict=True):
        _panel(ax, name, batches, cells)
    axes[-1].set_xlabel("batch B (requests in one decode step)")
    handles = [Patch(facecolor=colour(name), label=label(name)) for name in in_order(wins)]
    handles.append(Patch(facecolor=EMPTY, edgecolor=GREY, hatch=HATCH, label="not recorded"))
    look = {"ncols": len(handles), "frameon": False, "fontsize": 9, "borderpad": 0, "borderaxespad": 0.2}
    axes[0].legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), **look)
    return fig


def notes(cells) -> list[str]:
    """What a cell's numbers are, and which runs they come from."""
    runs = dict.fromkeys(one.series.recording.name for one in cells.values())
    return [
        "A cell: µs of a call of the GDN kernel, and of how many timed variants it is the fastest. Models "
        "whose heads on a GPU are equal share times.",
        f"{IN_STEP} timed as a part of a decode step, by CUPTI; others: calls of the kernel alone, by graph replay.",
        f"From {listed(runs)}.",
    ]


def _panel(ax, name: str, batches: list[int], cells) -> None:
    """One model: a row for each tp."""
    tps = divisions(name)
    for y, tp in enumerate(tps):
        for x, batch in enumerate(batches):
            _cell(ax, x, y, cells.get((name, tp, batch)))
    ax.set_xlim(0, len(batches))
    ax.set_ylim(len(tps), 0)
    ax.set_xticks([x + 0.5 for x in range(len(batches))], [str(batch) for batch in batches])
    ax.set_yticks([y + 0.5 for y in range(len(tps))], [f"tp {tp}" for tp in tps])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_title(f"{name} (HK {MODELS[name].num_k_heads}, HV {MODELS[name].num_v_heads} at tp 1)")


def _cell(ax, x: int, y: int, one: Comparison | None) -> None:
    """A filled cell with µs and the number of variants, or a hatched one."""
    if one is None:
        ax.add_patch(Rectangle((x, y), 1, 1, facecolor=EMPTY, edgecolor="#D0D0D0", hatch=HATCH, linewidth=0))
        return
    fill = colour(one.names[0])
    ax.add_patch(Rectangle((x, y), 1, 1, facecolor=fill, edgecolor="white", linewidth=1.5))
    us = one.us(one.names[0])
    words = (f"{us:,.1f}" if us < 100 else f"{us:,.0f}") + ("" if one.series.source == KERNEL else IN_STEP)
    ax.text(x + 0.5, y + 0.5, f"{words} of {len(one.names)}", ha="center", va="center", fontsize=8, color=ink_on(fill))
