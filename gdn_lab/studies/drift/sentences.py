"""The answer of the drift study in sentences, each computed from rows."""

import itertools
import math

from ...models import FP8_RING
from ...report.text import listed, micro, number_range, percent, signed_percent
from . import analysis
from .analysis import ENOUGH, OUTPUT, STATE, WORST, final

BF16, FP16, FLOAT32 = "bfloat16", "float16", "float32"
FP16_NORMAL = 2.0**-14  # the smallest of float16's normal numbers
RARE_WRITES = "rare writes"
BF16_STOCHASTIC, FP16_STOCHASTIC = "bfloat16, stochastic", "float16, stochastic"
FP8 = "float8_e4m3fn, stochastic"


def answer(rows: list[dict]) -> list[str]:
    """The answer as it stands on top of the page: in short where steps were timed; FP8's last."""
    lines = [line.replace("**", "") for line in in_short(rows)]
    return [*lines, *fp8(rows)] if lines else answers(rows)


def answers(rows: list[dict]) -> list[str]:
    """Everything that the rows say, a sentence each: the verdict first, then what it rests on."""
    if not analysis.of_ways(rows):
        return ["Nothing was run, so nothing is known of the drift."]
    makers = (
        verdict,
        cost,
        growth_of_state,
        against_bfloat16,
        stochastic,
        fp8,
        gates_in_bfloat16,
        exponentials,
        backends,
    )
    makers += (magnitudes,)
    return [sentence for make in makers for sentence in make(rows)]


def in_short(rows: list[dict]) -> list[str]:
    """Three lines: what bfloat16 is enough for, what float16 adds, and what is needed where neither is, and costs."""
    found = {where: analysis.precisions(rows, where) for where in analysis.regimes(rows)}
    found = {where: each for where, each in found.items() if {BF16, FP16, FLOAT32} <= set(each)}
    times = _times(rows)
    if not found or BF16 not in times:
        return []
    enough = [where for where, each in found.items() if final(each[BF16], OUTPUT) <= ENOUGH]
    worst = max(found, key=lambda where: final(found[where][BF16], OUTPUT))
    neither = [where for where, each in found.items() if final(each[FP16], OUTPUT) > ENOUGH]
    shown = [found[where] for where in neither or [worst]]
    kinds = set.intersection(*map(set, shown))  # of a run that was cut off a regime may lack some
    errors = {kind: [final(each[kind], OUTPUT) for each in shown] for kind in kinds}
    us = {kind: row["median_us"] for kind, row in times.items()}
    rounded = [kind for kind in (BF16_STOCHASTIC, FP16_STOCHASTIC) if kind in errors and kind in us]
    best = min(rounded, key=lambda kind: max(errors[kind]), default=None)
    to = f"stochastic rounding to {best.partition(',')[0]}" if best else ""
    steps = next(iter(found[worst].values()))["steps"][-1]
    lines = [
        f"A **bfloat16** state is enough in {len(enough)} of {len(found)} regimes of gates and keys: after {steps:,} "
        f"decode steps the median error of its output over requests and heads is at most {ENOUGH:.0%}"
        f"{_of_worst_head([found[where][BF16] for where in enough])}.",
        f"A **float16** state takes the same bytes and time (without a ring), the error of its output after these "
        f"steps is {number_range(_ratios(rows, BF16, FP16, OUTPUT).values(), 1)} times smaller, and the largest "
        f"element stays a factor of {limit(rows):,.0f} below its limit.",
        (
            f"A **float32** state{f' or {to}' if best and max(errors[best]) <= ENOUGH else ''} is needed with "
            f"{listed(neither)}"
            if neither
            else f"A **float32** state is needed nowhere, not with {worst}, the worst regime"
        )
        + f": float32 errs by {_errors(errors[FLOAT32])} there, bfloat16 by {_errors(errors[BF16])}, float16 by "
        f"{_errors(errors[FP16])}.",
    ]
    if FLOAT32 in us:
        gb = {kind: analysis.gb_of_1000(times[BF16], kind) for kind in (BF16, FLOAT32)}
        lines[-1] += (
            f" A call takes {us[FLOAT32]:.0f} instead of {us[BF16]:.0f} µs at B = {times[BF16]['batch']}, 1,000 "
            f"requests of {times[BF16]['model']} {gb[FLOAT32]:.0f} instead of {gb[BF16]:.0f} GB."
        )
    if best:
        change = us[best] / us[BF16] - 1
        lines[-1] += (
            f" {to.capitalize()} errs by {_errors(errors[best])} and takes {percent(abs(change))} "
            f"{'more' if change >= 0 else 'less'} time than bfloat16."
        )
    return lines


def error(value: float) -> str:
    """An error: "2.2%", "0.17%", "0.031%", below that "1.2e-05"."""
    if not math.isfinite(value):
        return "not finite"
    if value < 1e-4:
        return f"{value:.1e}"
    return f"{value:.3%}" if value < 1e-3 else f"{value:.2%}" if value < 0.01 else f"{value:.1%}"


def _errors(values: list[float]) -> str:
    """The least and the greatest of some errors: "4.7% to 15.1%"."""
    return " to ".join(dict.fromkeys(error(value) for value in (min(values), max(values))))


def _of_worst_head(found: list[dict]) -> str:
    """ ", that of the worst head at most 15.2%"; "" where rows do not hold it."""
    worst = [final(row, WORST) for row in found if WORST in row]
    return f", that of the worst head at most {error(max(worst))}" if worst else ""


def verdict(rows: list[dict]) -> list[str]:
    """For which regimes bfloat16 is enough, and what is enough elsewhere."""
    enough, other = [], []
    for where in analysis.regimes(rows):
        found = {kind: final(row, OUTPUT) for kind, row in analysis.precisions(rows, where).items()}
        if BF16 not in found:
            continue
        if found[BF16] <= ENOUGH:
            enough.append(f"{where} {error(found[BF16])}")
        else:
            best = next((kind for kind in (FP16, FP16_STOCHASTIC, FLOAT32) if found.get(kind, 1.0) <= ENOUGH), None)
            instead = f"{best} has {error(found[best])}" if best else "no precision here stays below"
            other.append(f"{where} ({error(found[BF16])}; {instead})")
    after = f"after {analysis.of_ways(rows)[0]['steps'][-1]:,} steps"
    sentences = []
    if enough:
        sentences.append(
            f"A bfloat16 state is enough (error of the output at most {ENOUGH:.0%} {after}) in {len(enough)} of "
            f"{len(enough) + len(other)} regimes: {listed(enough)}."
        )
    if other:
        sentences.append(f"It is not enough in {len(other)}: {listed(other)}.")
    return sentences


def cost(rows: list[dict]) -> list[str]:
    """What each precision costs: µs of a step, GB of 1,000 slots."""
    main, found = analysis.main_backend(rows), _times(rows)
    if BF16 not in found:
        return []
    base = found[BF16]
    parts = [
        f"{kind} {micro(row['median_us'])} ({signed_percent(row['median_us'] / base['median_us'] - 1)})"
        for kind, row in found.items()
        if kind != BF16
    ]
    gb = {dtype: analysis.gb_of_1000(base, dtype) for dtype in (BF16, FLOAT32)}
    return [
        f"A call of {main} at B = {base['batch']} (HV {base['num_v_heads']}) takes {micro(base['median_us'])} with a "
        f"bfloat16 state; {listed(parts)}.",
        f"1,000 requests of {base['model']} keep {gb[BF16]:.1f} GB in either 16-bit dtype and {gb[FLOAT32]:.1f} GB in "
        f"float32; the same memory holds {gb[BF16] / gb[FLOAT32]:.2f} times as many in float32.",
    ]


def fp8(rows: list[dict]) -> list[str]:
    """In how many regimes an FP8 state with a ring is enough, its worst, and where it errs less than bfloat16."""
    found = {where: analysis.precisions(rows, where) for where in analysis.regimes(rows)}
    errors = {
        where: (final(row[FP8], OUTPUT), final(row[BF16], OUTPUT))
        for where, row in found.items()
        if FP8 in row and BF16 in row
    }
    if not errors:
        return []
    enough = sum(own <= ENOUGH for own, _ in errors.values())
    worst = max(errors, key=errors.get)
    text = (
        f"An FP8 state, written back once in {FP8_RING} steps, is enough in {enough} of {len(errors)} regimes; its "
        f"output errs most with {worst}, {error(errors[worst][0])}"
    )
    less = [f"{where} ({error(own)} against {error(other)})" for where, (own, other) in errors.items() if own < other]
    return [f"{text}. It errs less than bfloat16 with {listed(less)}." if less else f"{text}."]


def _times(rows: list[dict]) -> dict[str, dict]:
    """{precision: timed row} of the main backend."""
    main = analysis.main_backend(rows)
    found = [row for row in analysis.timed(rows) if analysis.backend_of(row) == main]
    return {analysis.precision(row["state_dtype"], row["rounding"]): row for row in found}


def limit(rows: list[dict]) -> float:
    """How many times below float16's limit the largest |S| of all regimes is."""
    return 1 / max(row["share_of_float16_limit"] for row in analysis.of_regimes(rows))


def growth_of_state(rows: list[dict]) -> list[str]:
    """Where bfloat16's error settles and where it grows, and that an output may not see it."""
    settled, growing = [], []
    for where in analysis.regimes(rows):
        row = analysis.precisions(rows, where).get(BF16)
        if row is None:
            continue
        if analysis.settles(row):
            settled.append(f"{where} at {error(final(row))} (from step {analysis.settled_after(row):,} on)")
        else:
            growing.append(f"{where} ({error(final(row))}, in proportion to step^{analysis.growth(row):.2f})")
    sentences = [f"The error of a bfloat16 state settles with {listed(settled)}."] if settled else []
    if growing:
        sentences.append(f"It still grows with {listed(growing)}.")
    unseen = [
        f"{where} {error(final(row, OUTPUT))} of the output, {error(final(row))} of the state"
        for where in analysis.regimes(rows)
        if (row := analysis.precisions(rows, where).get(BF16)) and final(row) > 3 * final(row, OUTPUT)
    ]
    if unseen:
        sentences.append(f"Much of it lies in directions that no query reads: {listed(unseen)}.")
    return sentences


def against_bfloat16(rows: list[dict]) -> list[str]:
    """How many times smaller float16's error is at the same bytes."""
    ratios = _ratios(rows, BF16, FP16)
    if not ratios:
        return []
    less = f"errs {number_range(ratios.values(), 1)} times less than bfloat16 in the state"
    return [f"float16 takes the same bytes and {less}.", *first_steps(rows)]


def first_steps(rows: list[dict]) -> list[str]:
    """Where float16 errs more than bfloat16 at first, and up to which step."""
    found = []
    for where in analysis.regimes(rows):
        each = analysis.precisions(rows, where)
        if not {BF16, FP16} <= set(each):
            continue
        pairs = list(zip(each[FP16]["steps"], each[FP16][STATE], each[BF16][STATE], strict=True))
        more = list(itertools.takewhile(lambda pair: None not in pair and pair[1] > pair[2], pairs))
        if more and len(more) < len(pairs):
            found.append(f"{where} to step {more[-1][0]:,} ({error(more[0][1])} against {error(more[0][2])} at first)")
    if not found:
        return []
    sentence = f"float16 errs more than bfloat16 in the first steps with {listed(found)}"
    if all(where.startswith(RARE_WRITES) for where in found):
        sentence += (
            f": writes with a beta near 0 leave elements below its normal numbers, which begin at {FP16_NORMAL:.1e}"
        )
    return [f"{sentence}."]


def stochastic(rows: list[dict]) -> list[str]:
    """Where stochastic rounding errs less than rounding to nearest, and where more."""
    sentences = []
    for kind, other in ((BF16, BF16_STOCHASTIC), (FP16, FP16_STOCHASTIC)):
        ratios = _ratios(rows, other, kind)
        if not ratios:
            continue
        pays = [f"{where} ({1 / ratio:.1f} times)" for where, ratio in ratios.items() if ratio < 0.95]
        more = [ratio for ratio in ratios.values() if ratio >= 0.95]
        text = f"Stochastic rounding to {kind}, instead of to nearest,"
        if pays:
            text += f" reduces the error of the state with {listed(pays)}"
        if more:
            text += (
                f"{'; elsewhere it makes it' if pays else ' makes the error of the state'} {number_range(more, 1)} "
                "times as large"
            )
        sentences.append(f"{text}.")
    return sentences


def _ratios(rows: list[dict], above: str, below: str, name: str = STATE) -> dict[str, float]:
    """{regime: last error of `above` by that of `below`}, precisions of the main backend."""
    found = {}
    for where in analysis.regimes(rows):
        both = analysis.precisions(rows, where)
        if above in both and below in both and final(both[below], name):
            found[where] = final(both[above], name) / final(both[below], name)
    return found


def gates_in_bfloat16(rows: list[dict]) -> list[str]:
    """What rounding dt_bias, A_log or beta to bfloat16 costs where the state is float32."""
    worst = {}
    for where in analysis.regimes(rows):
        for name, row in analysis.shortcuts(rows, where).items():
            if name != "none" and final(row) > worst.get(name, (0.0, ""))[0]:
                worst[name] = final(row), where
    if not worst:
        return []
    parts = [f"{name} {error(value)} ({where})" for name, (value, where) in worst.items()]
    return [f"With a float32 state, rounding to bfloat16 costs at worst: {'; '.join(parts)}."]


def exponentials(rows: list[dict]) -> list[str]:
    """What fast exponentials cost in error where the state is float32, and what they save in µs."""
    found = analysis.fast_exponentials(rows)
    if not found:
        return []
    ratios = [final(fast) / final(exact) for fast, exact in found.values() if final(exact)]
    fast, exact = next(iter(found.values()))
    text = (
        f"Fast exponentials in {analysis.backend_of(fast)} make the error of a float32 state {number_range(ratios, 1)} "
        "times that of exact ones"
    )
    us = {row["way"]: row["median_us"] for row in analysis.timed(rows)}
    if {fast["way"], exact["way"]} <= set(us):
        took, takes = micro(us[exact["way"]]), micro(us[fast["way"]])
        text += f"; a step takes {takes} instead of {took}" if takes != took else f"; a step takes {takes} with either"
    return [f"{text}."]


def backends(rows: list[dict]) -> list[str]:
    """How a float32 state drifts on each backend, against the main one."""
    main, ratios = analysis.main_backend(rows), {}
    for where in analysis.regimes(rows):
        found = analysis.backends(rows, where)
        if main in found and final(found[main]):
            for name, row in found.items():
                ratios.setdefault(name, []).append(final(row) / final(found[main]))
    parts = [f"{name} {_multiples(each)}" for name, each in ratios.items() if name != main]
    return [f"A float32 state's error, in multiples of {main}'s: {listed(parts)}."] if parts else []


def _multiples(ratios: list[float]) -> str:
    """The least and the greatest of ratios that span powers of ten, at least two digits each: "0.041 to 1,296"."""
    ends = (min(ratios), max(ratios))
    low, high = (f"{ratio:,.{max(0, 1 - math.floor(math.log10(ratio)))}f}" if ratio else "0" for ratio in ends)
    return low if low == high else f"{low} to {high}"


def magnitudes(rows: list[dict]) -> list[str]:
    """How large states get, and how near float16's limit is."""
    found = analysis.of_regimes(rows)
    if not found:
        return []
    row = max(found, key=lambda each: max(each["largest_state"]))
    largest = max(row["largest_state"])
    value = max(each["largest_value"] for each in found)
    return [
        f"The largest |S| of all regimes is {largest:.3g} ({analysis.regime(row)}), with values v up to {value:.3g}: "
        f"{1 / row['share_of_float16_limit']:,.0f} times below float16's limit. S is linear in v."
    ]


def not_run(rows: list[dict]) -> list[str]:
    """A sentence for each reason why a way or a regime was not run."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == "refused":
            reasons.setdefault(row["reason"], []).append(row.get("way") or analysis.regime(row))
    wrong = [
        f"{name}: was wrong in the check before timing, so its rows are left out"
        for name in sorted(analysis.wrong_ways(rows))
    ]
    return wrong + [f"{listed(dict.fromkeys(names))}: {reason}" for reason, names in reasons.items()]
