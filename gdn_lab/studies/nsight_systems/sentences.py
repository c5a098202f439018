"""Sentences of notebook 04: the conditions of its figures, and the answer."""

from ...report.text import cut, listed, percent
from ...trace.steps import MODES, StepTrace
from .analysis import agreement, common_mode, eager_over_replayed, gap_table, gaps, median_step, parts_of_step

MODE_NOUNS = {"graph": "replayed step", "eager": "eager step"}


def conditions(trace: StepTrace) -> str:
    """Return what the figures hold for, in one line."""
    if not trace.modes:
        return "no trace"
    gpu = ", ".join(dict.fromkeys(trace.recorded.gpus)) or "GPU not recorded"
    counts = ", ".join(f"{len(trace.steps_of(mode))} {MODES[mode]}" for mode in trace.modes)
    gpu, name, step = (cut(text, 120) for text in (gpu, trace.name, trace.step))
    return f"{gpu} · recorded by {trace.recorded.profiler}: {name} · steps: {step}, {counts}; shown: of median length"


def answers(trace: StepTrace) -> list[str]:
    """Answer the question of notebook 04, a sentence each: as far as the trace can."""
    if not trace.modes:
        return list(trace.notes)
    sentences = [_step(trace, mode) for mode in trace.modes]
    if ratio := eager_over_replayed(trace):
        busy = {mode: median_step(trace, mode)["busy_us"] for mode in MODES}
        sentences.append(
            f"Launched kernel by kernel a step takes {ratio:.2f}× as long as replayed, its kernels "
            f"{busy['eager'] / busy['graph']:.2f}×; the rest of the difference is the GPU waiting for launches."
        )
    return [*sentences, *_parts(trace), *_gaps(trace)]


def _step(trace: StepTrace, mode: str) -> str:
    step, between = median_step(trace, mode), gaps(trace, mode)["gap_us"]
    whole, busy, count = step["step_us"], step["busy_us"], int((between > 0).sum())
    share = percent(busy / (whole or 1.0))
    text = f"A step {MODES[mode]} takes {whole:,.1f} µs; kernels run for {busy:,.1f} µs of it ({share})"
    if not count:
        return f"{text}, without a gap between two kernels."
    if count == 1:
        return f"{text}, the rest is one gap of {between.max():,.1f} µs."
    return (
        f"{text}, the rest is {count:,} gaps, {step['gap_us']:,.1f} µs together, the longest {between.max():,.1f} µs."
    )


def _parts(trace: StepTrace) -> list[str]:
    mode = trace.modes[0]
    times = parts_of_step(trace, mode).drop("gaps")
    whole = median_step(trace, mode)["step_us"] or 1.0  # damaged times: kernels that take none
    shares = {part: f"{cut(part)} {us:,.1f} µs ({percent(us / whole)})" for part, us in times.items()}
    longest = times.sort_values(ascending=False).index[:3]
    sentences = [
        f"The longest parts of the {MODE_NOUNS[mode]}, with shares of it: {', '.join(map(shares.get, longest))}."
    ]
    if "gdn" in times.index and "gdn" not in longest:
        sentences.append(f"The GDN kernel: {shares['gdn'].removeprefix('gdn ')}.")
    return sentences


def _gaps(trace: StepTrace) -> list[str]:
    where = gap_table(trace, 1)
    if not len(where):
        return []
    longest = where.iloc[0]
    after, before = cut(longest["after"]), cut(longest["before"])
    place = (
        f"between kernels of {after}" if longest["after"] == longest["before"] else f"after {after} and before {before}"
    )
    share = percent(longest["% of gaps"] / 100)
    return [f"Of the time in gaps, {share} lies {place}: {longest['µs in the step']:,.1f} µs."]


def comparison(one: StepTrace, other: StepTrace, least_us: float = 5.0) -> str:
    """Say which steps of two traces are compared and which parts only one of them has, or why nothing is compared."""
    if not one.modes or not other.modes:
        return "No second trace was given: set the parameter `beside` to compare one."
    mode = common_mode(one, other)
    if mode is None:
        kinds = [f"{cut(trace.name)} has steps {listed(MODES[mode] for mode in trace.modes)}" for trace in (one, other)]
        return f"Not compared: {' and '.join(kinds)}."
    table = agreement(one, other, least_us)
    only = [
        f"; {listed(cut(part) for part in table.loc[table.iloc[:, column].isna(), 'part'])} only in {cut(trace.name)}"
        for column, trace in ((2, one), (1, other))
        if table.iloc[:, column].isna().any()
    ]
    return f"One {MODE_NOUNS[mode]}, parts of at least {least_us:g} µs in either trace" + "".join(only)
