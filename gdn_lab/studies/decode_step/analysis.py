"""What the rows of decode steps say: what a step is made of, what each configuration saves, and in which part.

Whole steps are untraced replays of a CUDA graph. Parts, and differences between parts, come from replays that CUPTI
recorded, whose gaps differ a little; `StepRows.tracing_differences` says by how much. A configuration that fuses a part
away has 0 µs of it.
"""

from collections import defaultdict
from collections.abc import Iterable
from math import nan
from typing import NamedTuple

import pandas

from ...layer.configurations import CONFIGURATIONS
from ...layer.step_parts import ALL_REDUCE, CPU_TIMER, EAGER_TIMER, GAPS, GRAPH_TIMER, TRACED, WHOLE
from ...report.recorded import published, titled
from ...report.text import device_name, gb

WHOLE_TIMERS = (GRAPH_TIMER, CPU_TIMER)
GDN = "gdn"
OTHERS = "other parts"
BEFORE, AFTER = "before", "after"  # the configurations that the published step compares
GROUPS = {  # {part: its group where two configurations divide the same work differently}
    "in_proj ba": "in_proj ba + conv",  # `best` runs both in one launch
    "split": "in_proj ba + conv",
    "conv": "in_proj ba + conv",
    "shared expert": "experts",
    "combine": "experts",
}
SHOWN = 0.003  # of the first step: parts that change by less are shown as OTHERS


class StepRows:
    """The rows of one run, selected once for tables, sentences and figures.

    Of the step sweep only the largest batch counts. whole, eager, traced: {configuration: row} of untraced replays (on
    a CPU by the host's clock), of steps launched kernel by kernel, and of recorded replays. parts: {configuration:
    {part: row}} of the recorded replays, GAPS included, in the order of a step. part_order: every part that some
    configuration has, GAPS last. heatmap: the rows of the heatmap's sweep. all_reduce: the row of what one GPU cannot
    run, or None. all_rows: everything given, with what was refused or wrong. run: what run.json holds, or None.
    """

    def __init__(self, rows: Iterable[dict], run: dict | None = None):
        self.all_rows, self.run = list(rows), run
        timed = [row for row in self.all_rows if row.get("status") == "ok" and row["phase"] == "step"]
        self.heatmap = [row for row in timed if row["sweep"] == "share"]
        timed = _of_largest_batch([row for row in timed if row["sweep"] == "step"])
        self.whole = {
            row["configuration"]: row for row in timed if row["part"] == WHOLE and row["timer"] in WHOLE_TIMERS
        }
        self.eager = {row["configuration"]: row for row in timed if row["timer"] == EAGER_TIMER}
        self.traced = {row["configuration"]: row for row in timed if row["part"] == TRACED}
        self.parts = defaultdict(dict)
        for row in timed:
            if row["part"] not in (WHOLE, TRACED):
                self.parts[row["configuration"]][row["part"]] = row
        self.parts = dict(self.parts)
        names = dict.fromkeys(part for parts in self.parts.values() for part in parts if part != GAPS)
        self.part_order = [*names, GAPS] if names else []
        facts = [row for row in self.all_rows if row.get("part") == ALL_REDUCE and row.get("sweep") == "step"]
        self.all_reduce = max(facts, key=lambda row: row["batch"], default=None)

    def us(self, configuration: str, part: str) -> float:
        """Median µs of a part; 0 where the configuration has none of it."""
        row = self.parts.get(configuration, {}).get(part)
        return row["median_us"] if row else 0.0

    def change(self, part: str, before: str, after: str) -> float:
        """µs of a part in one configuration, less that in another; negative where `after` is faster."""
        return self.us(after, part) - self.us(before, part)

    def gdn_share(self, configuration: str) -> float | None:
        """GDN's share of the recorded step; None if its parts were not measured."""
        total = self.traced.get(configuration)
        return self.us(configuration, GDN) / total["median_us"] if total else None

    def label(self, configuration: str) -> str:
        """What figures call a configuration: its own label, or "before (triton/kv8)" with the GDN kernel that ran."""
        entry = CONFIGURATIONS.get(configuration)
        if entry and entry.label != f"{entry.name} ({entry.gdn})":
            return entry.label
        row = self.whole.get(configuration) or self.traced.get(configuration)
        return f"{configuration} ({row['backend']}/{row['variant']})" if row else configuration

    @property
    def deferring(self) -> dict[str, str]:
        """{configuration: its GDN kernel} of those that took the one that defers its writes."""
        kernels = {name: f"{row['backend']}/{row['variant']}" for name, row in self.whole.items()}
        return {
            name: kernel
            for name, kernel in kernels.items()
            if name in CONFIGURATIONS and kernel == CONFIGURATIONS[name].deferred
        }

    @property
    def transitions(self) -> list[tuple[str, str]]:
        """Pairs of neighbouring configurations whose parts were measured."""
        names = list(self.traced)
        return list(zip(names, names[1:], strict=False))

    @property
    def tracing_differences(self) -> dict[str, float]:
        """{configuration: how much longer the recorded step is than the untraced replay, as a share}."""
        return {
            name: row["median_us"] / self.whole[name]["median_us"] - 1
            for name, row in self.traced.items()
            if name in self.whole
        }

    @property
    def on_cpu(self) -> bool:
        return any(row["timer"] == CPU_TIMER for row in [*self.whole.values(), *self.heatmap])

    def titled(self, finding: str, rows: list[dict] | None = None) -> str:
        """A figure's title: the finding, and that these are times of a CPU, or where and of which model recorded.

        rows: those drawn, by default the steps of the step sweep.
        """
        rows = list(self.whole.values()) if rows is None else rows
        return titled(finding, self.run, rows, self.on_cpu)

    def conditions(self, rows: dict[str, dict] | None = None) -> str:
        """What times of steps hold for, in one line; "" where none was timed. rows: `whole`, or `traced`."""
        rows = self.whole if rows is None else rows
        if not rows:
            return ""
        row = next(iter(rows.values()))
        place = f"on one of {row['tp']} tensor-parallel GPUs" if row["tp"] > 1 else "on one GPU"
        words = [device_name(self.run)] if self.run else []
        words.append(f"one layer of {row['model']} {'at toy size' if row['toy'] else place}")
        words.append(f"B = {row['batch']}, {row['precision']} weights, {row['state_dtype']} state")
        words.append(f"{row['timer']} of {row['layers']} layers, median of {row['count']} samples")
        words.append(f"measured bandwidth {gb(row['roof_gb_per_s'])} GB/s")
        return " · ".join(words)


def _of_largest_batch(rows: list[dict]) -> list[dict]:
    largest = max((row["batch"] for row in rows), default=0)
    return [row for row in rows if row["batch"] == largest]


# ---- where the time goes --------------------------------------------------------------------------------------------


def shown_parts(step: StepRows) -> list[str]:
    """The parts that change by at least SHOWN of the first step in some transition, in the order of a step."""
    if not step.traced:
        return []
    least = SHOWN * next(iter(step.traced.values()))["median_us"]
    return [
        part
        for part in step.part_order
        if any(abs(step.change(part, before, after)) >= least for before, after in step.transitions)
    ]


class Bar(NamedTuple):
    """A bar of a waterfall: a whole step from 0 to `end` (part None), or a part that changes it from start to end."""

    label: str
    part: str | None
    start: float
    end: float


def waterfall(step: StepRows) -> list[Bar]:
    """The recorded steps from the first configuration to the last, with the parts that change between them.

    Largest saving first; parts that change by less than SHOWN of the first step are added up as OTHERS.
    """
    if not step.traced:
        return []
    first = next(iter(step.traced))
    bars = [Bar(first, None, 0.0, step.traced[first]["median_us"])]
    least = SHOWN * bars[0].end
    for before, after in step.transitions:
        position, end = bars[-1].end, step.traced[after]["median_us"]
        changes = {part: step.change(part, before, after) for part in step.part_order}
        shown = sorted((us, part) for part, us in changes.items() if abs(us) >= least)
        rest = end - position - sum(us for us, _ in shown)
        for us, part in [*shown, *([(rest, OTHERS)] if abs(rest) >= 0.05 else [])]:
            bars.append(Bar(part, part, position, position + us))
            position += us
        bars.append(Bar(after, None, 0.0, end))
    return bars


def main_changes(step: StepRows) -> dict[str, float]:
    """{group of parts: µs} between the first and the last configuration, largest saving first.

    Parts that configurations divide differently are one group (GROUPS). Without those that change by less than SHOWN of
    the first step.
    """
    if len(step.traced) < 2:
        return {}
    names = list(step.traced)
    changes = defaultdict(float)
    for part in step.part_order:
        changes[GROUPS.get(part, part)] += step.change(part, names[0], names[-1])
    least = SHOWN * step.traced[names[0]]["median_us"]
    kept = {group: us for group, us in changes.items() if abs(us) >= least}
    return dict(sorted(kept.items(), key=lambda change: change[1]))


class Saving(NamedTuple):
    """What a step saves, and what of it the GDN kernel saves, µs; `rest` is everything else."""

    total: float
    gdn: float

    @property
    def rest(self) -> float:
        return self.total - self.gdn


def published_saving() -> Saving:
    """The saving that the pull request reports."""
    table = published("step_profile").set_index("part")
    saved = table.triton - table.flashinfer
    return Saving(float(saved["decode step"]), float(saved["GDN kernel"]))


def saving(step: StepRows, before: str = BEFORE, after: str = AFTER) -> Saving | None:
    """Between two configurations: of the recorded step, and of its gdn part; None where one was not measured."""
    if not {before, after} <= step.traced.keys() & step.parts.keys():
        return None
    total = step.traced[before]["median_us"] - step.traced[after]["median_us"]
    return Saving(total, -step.change(GDN, before, after))


# ---- the heatmap ----------------------------------------------------------------------------------------------------


def heatmap_points(step: StepRows) -> pandas.DataFrame:
    """A line for each model, tp and batch B of the heatmap.

    share: GDN's share of the first configuration's recorded step. gain: what the last configuration saves of the first
    one's untraced step. First and last are those of the whole map; NaN at a point where one was not measured.
    """
    points = defaultdict(lambda: defaultdict(dict))
    for row in step.heatmap:
        if row["part"] in (WHOLE, TRACED, GDN):
            points[row["model"], row["tp"], row["batch"]][row["configuration"]][row["part"]] = row["median_us"]
    names = sorted({name for times in points.values() for name in times}, key=list(CONFIGURATIONS).index)
    lines = []
    for (model, tp, batch), times in points.items():
        first, last = times.get(names[0], {}), times.get(names[-1], {})
        lines.append(
            {
                "model": model,
                "tp": tp,
                "B": batch,
                "first": names[0],
                "last": names[-1],
                "share": first.get(GDN, nan) / first.get(TRACED, nan),
                "gain": 1 - last.get(WHOLE, nan) / first.get(WHOLE, nan) if len(names) > 1 else nan,
            }
        )
    return pandas.DataFrame(lines, columns=["model", "tp", "B", "first", "last", "share", "gain"])
