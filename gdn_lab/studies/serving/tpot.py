"""TPOT of one serving run, built up from its parts: time of a step on the GPU, host gaps, prefill between steps.

Each request in flight waits for every step, so a step counts once for each request in it: means are weighted by batch.

    parts        µs of one x count, timed alone at the run's concurrency (rows of type "part"); all-reduces by what they
                 add to the layers
    inside       the whole graph of a full step takes longer or shorter than its parts alone: gaps, cache, clocks
    smaller      steps with fewer requests than the concurrency: at the beginning and at the end of a run
    host gaps    from one step's end to the next one's, less the time that the GPU works
    prefill      steps that take prompts while these requests wait; one without its first token does not wait
    late reads   a first token that the host reads late, while it launches the next prefill step, shortens TPOT: TPOT
                 counts from the reading
    rest         what is left of the measured TPOT
"""

from itertools import accumulate
from typing import NamedTuple

from ...engine.metrics import FINISHED
from .serving_rows import ALL_REDUCES, ATTENTION_LAYER, GDN_KERNEL, GDN_LAYER, Point

DECODE, VERIFY, PREFILL, MIXED = "decode", "verify", "prefill", "mixed"
KERNELS, LAYERS = "GDN kernels", "GDN layers without them"
INSIDE, SMALLER, GAPS, PREFILL_WAIT, LATE, REST = (
    "unexplained, in the graph",
    "smaller batches",
    "host gaps",
    "prefill between steps",
    "first tokens read late",
    "unexplained, rest",
)
UNEXPLAINED = (INSIDE, REST)  # not measured as a part of their own
NAMES = {GDN_LAYER: "GDN layers", ATTENTION_LAYER: "attention layers", ALL_REDUCES: "all-reduces"}
GOAL = 0.03  # of TPOT that may stay unexplained


class Steps(NamedTuple):
    """Means over the steps of one run, µs, weighted by batch; `full` over those with all requests in flight."""

    gpu: float
    full: float
    gap: float
    prefill: float


def steps(point: Point) -> Steps | None:
    """The means of a run's steps; None where it has no decode step."""
    columns = point.steps
    if not columns:
        return None
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    tokens = gpu = gap = waited = 0.0
    mixed = []  # a decode step each, and what their prompts add
    full, full_tokens = 0.0, 0
    for number, row in enumerate(rows):
        before = rows[number - 1]["end_s"] if number else row["start_s"]
        period = 1e6 * (row["end_s"] - before)
        if row["kind"] == PREFILL:
            waited += _waiting(rows[number:]) * period
            continue
        made = row["batch"]
        tokens += made
        if row["kind"] == MIXED:
            mixed.append(row)
        else:
            gpu += made * row["gpu_us"]
        gap += made * (period - row["gpu_us"])
        if row["batch"] == point.concurrency and row["kind"] != MIXED:
            full += made * row["gpu_us"]
            full_tokens += made
    if not tokens:
        return None
    alone = tokens - sum(row["batch"] for row in mixed)
    usual = full / full_tokens if full_tokens else gpu / alone if alone else 0.0
    gpu += sum(row["batch"] * usual for row in mixed)
    waited += sum(row["batch"] * (row["gpu_us"] - usual) for row in mixed)
    mean = gpu / tokens
    return Steps(mean, full / full_tokens if full_tokens else mean, gap / tokens, waited / tokens)


def _waiting(rows: list[dict]) -> int:
    """How many requests have their first token when rows[0], a prefill step, begins, and wait for it.

    Those of the next decode step, less all whose prompts are taken until then: in this step or in one that follows.
    """
    joining = 0
    for row in rows:
        if row["kind"] != PREFILL:
            return max(0, row["batch"] - joining)
        joining += row["batch"]
    return 0


def late_reads(point: Point) -> float:
    """What the time from a prefill step's end to the reading of its first tokens takes from TPOT, µs, at most 0.

    A mean over requests, as TPOT is. Prompts are taken in the order in which first tokens are read, so the step that
    ends a prompt is the first that has taken as many tokens as this prompt and all before it have.
    """
    steps, requests = point.steps, point.requests
    if not requests or not steps:
        return 0.0
    ends, taken = [], []
    for kind, batch, tokens, end_s in zip(*(steps[name] for name in ("kind", "batch", "tokens", "end_s")), strict=True):
        if kind in (PREFILL, MIXED):
            ends.append(end_s)
            taken.append(tokens - batch * (kind == MIXED))
    taken = list(accumulate(taken))
    fields = ("first_token_s", "input_tokens", "output_tokens", "outcome")
    read = sorted(row for row in zip(*(requests[name] for name in fields), strict=True) if row[0] is not None)
    found, prompts, step = [], 0, 0
    for first_s, prompt, output, outcome in read:
        prompts += prompt
        while step < len(taken) and taken[step] < prompts:
            step += 1
        if step == len(taken):
            return 0.0  # steps are missing, as in a run that was cut off
        if outcome == FINISHED and output > 1:
            found.append(1e6 * (ends[step] - first_s) / (output - 1))
    return min(0.0, sum(found) / len(found)) if found else 0.0


def breakdown(point: Point) -> dict[str, float]:
    """{part: µs of TPOT}, in order; they add up to the measured TPOT. {} without steps or parts, or with drafts."""
    means = steps(point)
    if means is None or not point.parts or point.run["draft_tokens"]:
        return {}
    found = {}
    for part in point.parts:
        if part == GDN_KERNEL:
            continue
        found[NAMES.get(part, part)] = point.part_us(part)
        if part == GDN_LAYER and GDN_KERNEL in point.parts:
            kernels = point.part_us(GDN_KERNEL)
            del found[NAMES[GDN_LAYER]]
            found |= {KERNELS: kernels, LAYERS: point.part_us(GDN_LAYER) - kernels}
    found[INSIDE] = means.full - sum(found.values())
    found |= {SMALLER: means.gpu - means.full, GAPS: means.gap, PREFILL_WAIT: means.prefill, LATE: late_reads(point)}
    return found | {REST: point.tpot_us - sum(found.values())}


def unexplained(point: Point) -> float | None:
    """The share of TPOT that no measured part explains, with its sign; None where there is no breakdown."""
    parts = breakdown(point)
    return sum(parts[name] for name in UNEXPLAINED) / point.tpot_us if parts else None


def gap_share(point: Point) -> float | None:
    """Host gaps as a share of a decode step, from one step's end to the next one's."""
    means = steps(point)
    return means.gap / (means.gpu + means.gap) if means else None


def kernel_share(point: Point) -> float | None:
    """The GDN kernels of all layers as a share of TPOT; None where they were not timed."""
    return point.part_us(GDN_KERNEL) / point.tpot_us if GDN_KERNEL in point.parts else None


def step_spread(point: Point) -> tuple[float, float] | None:
    """p20 and p80 of the time of full decode steps on the GPU, µs."""
    columns = point.steps
    if not columns:
        return None
    times = sorted(
        us
        for kind, batch, us in zip(columns["kind"], columns["batch"], columns["gpu_us"], strict=True)
        if kind != PREFILL and batch == point.concurrency
    )
    return (times[int(0.2 * (len(times) - 1))], times[int(0.8 * (len(times) - 1))]) if times else None
