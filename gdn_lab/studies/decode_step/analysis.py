"""What rows of sweeps/step.py say: what a decode step is made of, what each configuration saves, and where.

Whole steps are untraced replays. Parts, and differences between parts, are of the replays that CUPTI recorded, whose
gaps differ a little; `tracing_differences` says by how much. A configuration that fuses a part away has 0 of it.
"""

from collections import defaultdict
from typing import NamedTuple

import pandas

from ...layer.step_parts import ALL_REDUCE, CPU_TIMER, EAGER_TIMER, GAPS, GRAPH_TIMER, TRACED, WHOLE
from ...report.recorded import published
from ...report.text import byte_size, device_name, gb, micro, percent

WHOLE_TIMERS = (GRAPH_TIMER, CPU_TIMER)
GDN = "gdn"
OTHERS = "other parts"
AIM = 0.10  # the pull request's saving, which `best` over `before-32` aims at
SMALL = 0.01  # of a step: less than this is called nothing
LEAST_BAR = 0.003  # of a step: a part that changes by less has no bar of its own in a waterfall


# ---- choosing rows --------------------------------------------------------------------------------------------------


def timed(rows, sweep="step") -> list[dict]:
    """The timed rows of one sweep; of "step" those at the largest batch."""
    rows = [row for row in rows if row.get("status") == "ok" and row["phase"] == "step" and row["sweep"] == sweep]
    largest = max((row["batch"] for row in rows), default=0)
    return rows if sweep == "share" else [row for row in rows if row["batch"] == largest]


def whole(rows) -> dict[str, dict]:
    """{configuration: row of the whole step}: replays of a CUDA graph, on a CPU by the host's clock."""
    return {row["configuration"]: row for row in timed(rows) if row["part"] == WHOLE and row["timer"] in WHOLE_TIMERS}


def eager(rows) -> dict[str, dict]:
    """{configuration: row of the step launched kernel by kernel}; empty on a CPU."""
    return {row["configuration"]: row for row in timed(rows) if row["timer"] == EAGER_TIMER}


def parts(rows) -> dict[str, dict[str, dict]]:
    """{configuration: {part: row}}, GAPS among them, in the order of a step."""
    found = defaultdict(dict)
    for row in timed(rows):
        if row["part"] not in (WHOLE, TRACED):
            found[row["configuration"]][row["part"]] = row
    return dict(found)


def traced(rows) -> dict[str, dict]:
    """{configuration: row of the step as recorded}, what parts and gaps add up to."""
    return {row["configuration"]: row for row in timed(rows) if row["part"] == TRACED}


def part_order(rows) -> list[str]:
    """Every part that some configuration has, in the order of a step, GAPS last."""
    names = dict.fromkeys(part for of in parts(rows).values() for part in of if part != GAPS)
    return [*names, GAPS] if names else []


def part_us(rows, configuration: str, part: str) -> float:
    """Median µs of a part; 0 where the configuration has none of it."""
    row = parts(rows).get(configuration, {}).get(part)
    return row["median_us"] if row else 0.0


def not_timed(rows, sweep: str | None = None) -> list[str]:
    """What refused, a sentence for each reason, and what was wrong; of one sweep ("step", "share") or of all rows."""
    refused, wrong = defaultdict(dict), {}
    for row in rows:
        if sweep and row.get("sweep") != sweep:
            continue
        if row.get("status") == "refused":
            what = row.get("configuration") or f"{row['model']} at tp {row['tp']}"
            refused[row["reason"], row.get("timer")][what] = None
        elif row.get("status") == "wrong":
            error = "not finite" if row["max_abs_error"] is None else f"{row['max_abs_error']:.2g}"
            parts = "".join(f", {part}" for part in row.get("wrong_parts", ()))
            where = f"{row['model']}, tp {row['tp']}, B = {row['batch']}"
            wrong[f"{row['configuration']} outside its tolerance at {where} (largest error {error}{parts})"] = None
    said = [
        f"{', '.join(names)} {'not taken apart' if timer else 'refused'}: {reason}"
        for (reason, timer), names in refused.items()
    ]
    return said + list(wrong)


# ---- what they say --------------------------------------------------------------------------------------------------


def share_of_gdn(rows, configuration: str) -> float | None:
    """GDN's part of the recorded step."""
    total = traced(rows).get(configuration)
    return part_us(rows, configuration, GDN) / total["median_us"] if total else None


def tracing_differences(rows) -> dict[str, float]:
    """{configuration: the recorded step over the untraced replay, less 1}."""
    of = whole(rows)
    return {name: row["median_us"] / of[name]["median_us"] - 1 for name, row in traced(rows).items() if name in of}


class Bar(NamedTuple):
    """Of a waterfall: a whole step (part None) from 0 to `end`, or what one part takes it on by, from `start` on."""

    label: str
    part: str | None
    start: float
    end: float


def waterfall(rows) -> list[Bar]:
    """From the first configuration's recorded step to the last one's, part by part, the largest saving first.

    What changes by less than LEAST_BAR of the first step is added up as OTHERS.
    """
    steps, order, bars = traced(rows), part_order(rows), []
    names = list(steps)
    for before, after in zip([None, *names], names, strict=False):
        end = steps[after]["median_us"]
        if before is not None:
            least, at = LEAST_BAR * steps[names[0]]["median_us"], bars[-1].end
            changes = {part: part_us(rows, after, part) - part_us(rows, before, part) for part in order}
            shown = {part: us for part, us in changes.items() if abs(us) >= least}
            shown = dict(sorted(shown.items(), key=lambda change: change[1]))
            rest = end - at - sum(shown.values())
            for part, us in [*shown.items(), *([(OTHERS, rest)] if abs(rest) >= 0.05 else [])]:
                bars.append(Bar(part, part, at, at + us))
                at += us
        bars.append(Bar(after, None, 0.0, end))
    return bars


class Unexplained(NamedTuple):
    """What a step saves, what of it the GDN kernel saves, and what is left, µs."""

    total: float
    gdn: float

    @property
    def rest(self) -> float:
        return self.total - self.gdn


def published_saving() -> Unexplained:
    table = published("step_profile").set_index("part")
    saved = table.triton - table.flashinfer
    return Unexplained(float(saved["decode step"]), float(saved["GDN kernel"]))


def saving(rows, before: str = "before", after: str = "after") -> Unexplained | None:
    """Between two configurations: of the untraced step, and of the gdn part; None where one was not measured."""
    of, apart = whole(rows), parts(rows)
    if not {before, after} <= of.keys() & apart.keys():
        return None
    total = of[before]["median_us"] - of[after]["median_us"]
    return Unexplained(total, part_us(rows, before, GDN) - part_us(rows, after, GDN))


def shares(rows) -> pandas.DataFrame:
    """A line for each model, tp and batch of the share sweep: GDN's share of the first configuration's step, and what
    the last configuration saves of it. NaN where it could not be had."""
    points = defaultdict(lambda: defaultdict(dict))
    for row in timed(rows, "share"):
        if row["part"] in (WHOLE, TRACED, GDN):
            points[row["model"], row["tp"], row["batch"]][row["configuration"]][row["part"]] = row["median_us"]
    lines = []
    for (model, tp, batch), of in points.items():
        first, last = next(iter(of.values())), list(of.values())[-1]
        line = {"model": model, "tp": tp, "B": batch, "first": next(iter(of)), "last": list(of)[-1]}
        line["share"] = first[GDN] / first[TRACED] if {GDN, TRACED} <= first.keys() else float("nan")
        line["gain"] = 1 - last[WHOLE] / first[WHOLE] if len(of) > 1 else float("nan")
        lines.append(line | {"step_us": first[WHOLE]})
    return pandas.DataFrame(lines, columns=["model", "tp", "B", "first", "last", "share", "gain", "step_us"])


# ---- sentences ------------------------------------------------------------------------------------------------------


def conditions(rows, run=None) -> str:
    """What the figures of a step hold for, in one line."""
    of = whole(rows)
    if not of:
        return ""
    row, said = next(iter(of.values())), [device_name(run)] if run else []
    rank = "at toy size" if row["toy"] else f"on one of {row['tp']} tensor-parallel ranks"
    said.append(f"one layer of {row['model']} {rank}")
    said.append(f"B = {row['batch']}, {row['precision']} weights, {row['state_dtype']} state")
    said.append(f"{row['timer']} of {row['layers']} layers, median of {row['count']}")
    said.append(f"roof {gb(row['roof_gb_per_s'])} GB/s measured")
    return " · ".join(said)


def prefix(rows, sweep="step") -> str:
    """What a title begins with: "CPU times: " where that is what they are, else nothing."""
    return "CPU times: " if any(row["timer"] == CPU_TIMER for row in timed(rows, sweep)) else ""


def answers(rows, run=None) -> list[str]:
    """What the rows say to the question of notebook 03, a sentence each; only what they can answer."""
    if not whole(rows):
        return ["No step was timed, so nothing is answered."]
    sayings = (
        _say_share(rows, run), _say_savings(rows), _say_where(rows), _say_published(rows), _say_best(rows),
        _say_launch(rows), say_elsewhere(rows), _say_tracing(rows), _say_all_reduce(rows),
    )  # fmt: skip
    return [sentence for sentence in sayings if sentence]


def _say_share(rows, run) -> str | None:
    each = []
    for name, step in traced(rows).items():
        spent = f"{micro(part_us(rows, name, GDN))} of {micro(step['median_us'])}"
        each.append(f"{percent(share_of_gdn(rows, name))} of `{name}` ({spent})")
    row = next(iter(whole(rows).values()))
    size = "at toy size" if row["toy"] else f"at tp {row['tp']}"
    where = f"{row['model']} {size} and B = {row['batch']}"
    on = f"On {device_name(run)}" if run else "Here"
    return f"{on} GDN is this share of a decode step of {where}: {', '.join(each)}." if each else None


def _say_savings(rows) -> str:
    of = whole(rows)
    each = [f"`{name}` {micro(row['median_us'])} ({_spread(row)})" for name, row in of.items()]
    first = next(iter(of.values()))["median_us"]
    last = list(of.values())[-1]["median_us"]
    told = f"A whole step, p20 to p80 in brackets: {', '.join(each)}"
    return f"{told}; the last saves {percent_change(1 - last / first)} of the first." if len(of) > 1 else f"{told}."


def _spread(row) -> str:
    return f"{micro(row['p20_us'])} to {micro(row['p80_us'])}"


def _say_where(rows) -> str | None:
    bars, said, gave = waterfall(rows), [], []
    for bar in bars:
        if bar.part is None:
            said += [f"to `{bar.label}`: {', '.join(gave)}"] if gave else []
            gave = []
        else:
            gave.append(f"{bar.label} {signed(bar.end - bar.start)}")
    return f"What gave it, in the recorded steps: {'; '.join(said)}." if said else None


def signed(us: float) -> str:
    """A difference in words: −42.0 µs."""
    return f"{'−' if us < 0 else '+'}{micro(abs(us))}"


def _say_published(rows) -> str | None:
    theirs, ours = published_saving(), saving(rows)
    if ours is None:
        return None
    told = (
        f"The pull request's step saves {theirs.total:.0f} µs, of which the GDN kernel gives {theirs.gdn:.0f} and "
        f"{theirs.rest:.0f} are not explained. Here `before` to `after` saves {_plain(ours.total)}, of which GDN gives "
        f"{_plain(ours.gdn)} and everything else {_plain(ours.rest)}"
    )
    step = whole(rows)["before"]["median_us"]
    if ours.rest >= SMALL * step:
        return f"{told}, {percent(ours.rest / step)} of the step: something beside the GDN kernel gains here too."
    if ours.rest <= -SMALL * step:
        return f"{told}: the unexplained part does not appear, the rest of the step even becomes slower."
    return f"{told}: the unexplained part does not appear."


def _plain(us: float) -> str:
    return f"{round(us, 1) + 0.0:.1f} µs".replace("-", "−")


def _say_best(rows) -> str | None:
    of = whole(rows)
    if "best" not in of:
        return None
    said = []
    for name in ("after", "before-32"):
        if name in of:
            said.append(f"{percent_change(1 - of['best']['median_us'] / of[name]['median_us'])} of `{name}`")
    if not said:
        return None
    told = f"`best` saves {' and '.join(said)}"
    base = of.get("before-32")
    if base is None or 1 - of["best"]["median_us"] / base["median_us"] >= AIM:
        return f"{told}." if base is None else f"{told}: the aim of {percent(AIM)} is reached."
    return f"{told}, less than the {percent(AIM)} aimed at{_what_stops(rows)}."


def percent_change(share: float) -> str:
    """A saving in words, with its sign where it is a loss."""
    return percent(share) if share >= 0 else f"−{percent(-share)}"


def _what_stops(rows) -> str:
    best = {part: row for part, row in parts(rows).get("best", {}).items() if part != GAPS}
    if not best:
        return ""
    name, row = max(best.items(), key=lambda entry: entry[1]["median_us"])
    total = traced(rows)["best"]["median_us"]
    roof = f", at {percent(row['share_of_roof'])} of the roof" if row["bytes"] else ""
    told = f": {name} {_verb(name)} {percent(row['median_us'] / total)} of its step ({micro(row['median_us'])}{roof})"
    share = share_of_gdn(rows, "before-32")
    return told if share is None else f"{told}, and a GDN that took no time would save {percent(share)} of `before-32`"


def _verb(part: str) -> str:
    return "are" if part == "experts" else "is"


def _say_launch(rows) -> str | None:
    of, by_kernel = whole(rows), eager(rows)
    each = [
        f"`{name}` {micro(row['median_us'])} against {micro(of[name]['median_us'])}"
        for name, row in by_kernel.items()
        if name in of
    ]
    return f"Launched kernel by kernel instead of as a CUDA graph: {', '.join(each)}." if each else None


def say_elsewhere(rows) -> str | None:
    """How GDN's share, and what the last configuration saves, move over the share sweep."""
    table = shares(rows).dropna(subset=["share"])
    if not len(table):
        return None
    low, high = table.loc[table.share.idxmin()], table.loc[table.share.idxmax()]
    told = f"GDN's share of a step of `{high['first']}` goes from {_at(low, 'share')} to {_at(high, 'share')}"
    gains = table.dropna(subset=["gain"])
    if len(gains):
        low, high = gains.loc[gains.gain.idxmin()], gains.loc[gains.gain.idxmax()]
        told += f", and what `{high['last']}` saves of the step from {_at(low, 'gain')} to {_at(high, 'gain')}"
    return f"{told}."


def _at(line, field) -> str:
    return f"{percent_change(line[field])} ({line['model']}, tp {line['tp']}, B = {line['B']})"


def _say_tracing(rows) -> str | None:
    differences = tracing_differences(rows)
    if not differences:
        return None
    worst = max(differences.values(), key=abs)
    what = "longer" if worst >= 0 else "shorter"
    sums = [
        abs(sum(row["median_us"] for row in of.values()) / traced(rows)[name]["median_us"] - 1)
        for name, of in parts(rows).items()
    ]
    return (
        f"Parts and gaps add up to the recorded step within {percent(max([0.001, *sums]))}; recorded, a step is at "
        f"most {percent(abs(worst))} {what} than untraced."
    )


def _say_all_reduce(rows) -> str | None:
    facts = [row for row in rows if row.get("part") == ALL_REDUCE and row.get("sweep") == "step"]
    if not facts:
        return None
    row = max(facts, key=lambda row: row["batch"])
    return (
        f"Not in any of these times: {row['times_a_layer']} all-reduces of {byte_size(row['bytes'])} a layer, which "
        f"{row['tp']} GPUs would run and one cannot."
    )
