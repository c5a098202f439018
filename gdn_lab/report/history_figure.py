"""The history of a GPU's records as a figure: a line for each variant, its times relative to its first record."""

import statistics
from collections import defaultdict

from matplotlib import rc_context
from matplotlib.figure import Figure

from ..backends.registry import VARIANTS
from .history import changed_versions
from .style import GREY, STYLE, label_ends, new_figure

LEAST = 0.01  # a change below is not told from noise


@rc_context(STYLE)
def draw(lines: list[dict], gpu: str) -> Figure:
    """Median over a variant's headline numbers of the time relative to its first record, against the record.

    What has changed by LEAST or more is drawn in its colour with its name; the rest in grey.
    """
    lines = pieces_joined(lines)
    times = relative_times(lines)
    last = max((points[-1][0] for points in times.values()), default=0)
    still = [name for name, points in times.items() if all(abs(ratio - 1) < LEAST for _, ratio in points)]
    notes = [f"grey: changed by less than {LEAST:.0%}: {', '.join(sorted(still))}"] if still else []
    fig, (axes,) = new_figure(_title(times, gpu), 10, 4.6, notes=notes)
    ends = []
    for name, points in sorted(times.items(), key=lambda item: item[0] not in still):
        variant = VARIANTS.get(name.split()[-1])
        colour, marker = (variant.colour, variant.marker) if variant and name not in still else (GREY, "o")
        style = {"decode": "-", "verify": "--", "prefill": ":"}.get(name.split()[0], "-.")
        axes.plot(*zip(*points, strict=True), style, color=colour, marker=marker, alpha=0.4 if name in still else 1)
        ends += [] if name in still else [(points[-1][1], f"{name}  {points[-1][1]:.2f}", colour)]
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.set(xlim=(-0.3, last + 0.3), ylabel="time relative to its first record")
    axes.set_xticks(range(last + 1), [_label(lines, number) for number in range(last + 1)], fontsize=8)
    label_ends(axes, ends)
    return fig


def pieces_joined(lines: list[dict]) -> list[dict]:
    """The lines with runs, those that follow each other with other pieces of one commit's record as one."""
    joined: list[dict] = []
    for line in (line for line in lines if line["runs"]):  # without runs: the seconds of tests
        commits = {run["commit"] for run in line["runs"].values()}
        before = joined[-1]["runs"] if joined else {}
        if (
            before
            and len(commits | {run["commit"] for run in before.values()}) == 1
            and not before.keys() & line["runs"]
        ):
            joined[-1] = joined[-1] | {"runs": before | line["runs"]}
        else:
            joined.append(line)
    return joined


def relative_times(lines: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """{"decode triton/vk": [(number of the line, time relative to the first)]} of what at least two records hold.

    A headline is compared with that of the same folder: others are of another model or dtype. Its newest time counts
    until it is recorded again, since a record may hold some of the folders.
    """
    times, found = defaultdict(lambda: defaultdict(list)), {}  # {group: {(folder, headline): [(line, time)]}}
    for number, line in enumerate(lines):
        for folder, run in line["runs"].items():
            for name, value in run["headlines"].items():
                times[_group(name)][folder, name].append((number, value))
    for group, series in times.items():
        again = [points for points in series.values() if len(points) > 1]
        numbers = sorted({number for points in again for number, _ in points})
        if again:
            found[group] = [(number, statistics.median(_ratios(again, number))) for number in numbers]
    return found


def _ratios(series: list[list[tuple[int, float]]], number: int) -> list[float]:
    """The newest time of each series up to a line, relative to its first."""
    known = [[value for at, value in points if at <= number] for points in series]
    return [values[-1] / values[0] for values in known if values]


def _group(headline: str) -> str:
    """ "decode bfloat16, batch 64, triton/vk" -> "decode triton/vk"; "step best, batch 256" -> "step best"."""
    parts = headline.split(", ")
    return f"{headline.split()[0]} {parts[-1]}" if "/" in parts[-1] else parts[0]


def _label(lines: list[dict], number: int) -> str:
    """Date and commits of a record, and which versions changed."""
    runs = lines[number]["runs"]
    commits = sorted({(run["commit"] or "no commit")[:9] for run in runs.values()})
    text = [lines[number]["utc"][:10], commits[0] if len(commits) == 1 else f"{len(commits)} commits"]
    changed: list[str] = []
    for folder, run in runs.items():
        before = next((line["runs"][folder] for line in reversed(lines[:number]) if folder in line["runs"]), None)
        changed += changed_versions(before, run) if before else []
    return "\n".join(text + list(dict.fromkeys(changed))[:3])


def _title(times: dict[str, list[tuple[int, float]]], gpu: str) -> str:
    """The finding: what changed the most since its first record."""
    if not times:
        return f"{gpu.upper()}: nothing was recorded twice yet"
    most = max(times, key=lambda name: abs(times[name][-1][1] - 1))
    ratio = times[most][-1][1]
    return f"{gpu.upper()}: {most} changed most since its first record, to {ratio:.2f} times its time (median)"
