"""What rows of verify say: what a step of speculative decoding costs a GDN layer, what it gains, what it keeps.

One step verifies T tokens: the token known from the step before, and T - 1 drafts. If each draft is accepted with
probability alpha, given that those before it are, a step yields on average

    1 + alpha + … + alpha^(T - 1) = (1 - alpha^T) / (1 - alpha)        tokens

(Leviathan, Kalman, Matias: Fast inference from transformers via speculative decoding, 2023, equation 1.) In the end the
state must be that of the accepted prefix. Two ways, both of which begin and end with the pool as decode leaves it:

    store     verify stores the state after each token, commit() copies the right one
    replay    verify leaves no state behind; a second call moves the state on by the accepted tokens. It is counted as
              an update by all T, which is the most that it can cost.
"""

from collections import defaultdict

import pandas

from ...models import MODELS, GDNShape
from ...ops import DRAFT_TOKENS
from ...pool import StatePool
from ...report.text import byte_size, micro, percent
from ...report.timed import held_for, name_of, timed

MODES = {"update": "update the state", "intermediate": "store T states", "output": "output only"}
WAYS = ("store", "replay")


def expected_tokens(alpha: float, tokens: int) -> float:
    """Tokens that a step of T yields on average."""
    return float(sum(alpha**n for n in range(tokens)))


def parse_tokens(text: str) -> list[int]:
    """ "2,4,8" -> [2, 4, 8]. ValueError for anything but whole numbers that verify() takes (ops.DRAFT_TOKENS)."""
    words, (fewest, most) = [word.strip() for word in text.split(",")], DRAFT_TOKENS
    if not all(word.isdecimal() and fewest <= int(word) <= most for word in words):
        raise ValueError(f"tokens: expected whole numbers from {fewest} to {most} such as 2,4,8, got {text!r}")
    return sorted({int(word) for word in words})


def largest_batch(rows) -> int:
    return max((row["batch"] for row in timed(rows) if row["phase"] == "verify"), default=0)


def verify_times(rows, batch: int | None = None) -> dict[str, dict[str, dict[int, float]]]:
    """{mode: {variant: {T: median_us}}} at one batch, by default the largest; modes as in rows, "commit" too."""
    batch, found = batch or largest_batch(rows), defaultdict(lambda: defaultdict(dict))
    for row in timed(rows):
        if row["phase"] == "verify" and row["batch"] == batch:
            found[row["mode"]][name_of(row)][row["tokens"]] = row["median_us"]
    return {mode: dict(of) for mode, of in found.items()}


def step_times(rows) -> dict[tuple[str, str], dict[int, float]]:
    """{(variant, way): {T: µs of a step, from pool to pool}} at the largest batch."""
    times, steps = verify_times(rows), defaultdict(dict)
    commit = times.get("commit", {}).get("pool/commit", {})
    for name in times.get("output", {}) | times.get("intermediate", {}):
        outputs, updates = (times.get(mode, {}).get(name, {}) for mode in ("output", "update"))
        for T, us in times.get("intermediate", {}).get(name, {}).items():
            if T in commit:
                steps[name, "store"][T] = us + commit[T]
        for T, us in outputs.items():
            if T in updates:
                steps[name, "replay"][T] = us + updates[T]
    return dict(steps)


def decode_time(rows) -> tuple[str, float] | None:
    """(variant, median_us) of the fastest decode step at the batch of step_times: what a verify step competes with."""
    batch = largest_batch(rows)
    of = {
        name_of(row): {1: row["median_us"]} for row in timed(rows) if row["phase"] == "decode" and row["batch"] == batch
    }
    name = fastest(of, 1)
    return name and (name, of[name][1])


def gain(steps: dict[int, float], decode_us: float, tokens: int, alpha: float) -> float:
    """Tokens a second of verify steps over those of decode steps, in this layer alone."""
    return expected_tokens(alpha, tokens) * decode_us / steps[tokens]


def break_even(steps: dict[int, float], decode_us: float, tokens: int) -> float | None:
    """The least acceptance rate at which a step of T gains, to a hundredth; None if it never does."""
    rates = (percent_ / 100 for percent_ in range(101))
    return next((alpha for alpha in rates if gain(steps, decode_us, tokens, alpha) >= 1), None)


def verify_table(rows) -> pandas.DataFrame:
    """Median µs by mode, B and T (index) and variant (columns); empty cells were not timed."""
    lines = defaultdict(dict)
    for row in timed(rows):
        if row["phase"] == "verify":
            mode = MODES.get(row["mode"], "commit")
            lines[mode, row["batch"], row["tokens"]][name_of(row)] = row["median_us"]
    table = pandas.DataFrame.from_dict(lines, orient="index")
    if len(table):
        table.index = pandas.MultiIndex.from_tuples(table.index, names=["mode", "B", "T"])
    return table.sort_index(ascending=[False, True, True]) if len(table) else table


def gain_table(rows) -> pandas.DataFrame:
    """A line for each variant, way and T: µs of a step, gain over the fastest decode step at three rates, rate at which
    it pays."""
    decode, lines = decode_time(rows), []
    for (name, way), steps in step_times(rows).items() if decode else ():
        for T, us in sorted(steps.items()):
            line = {"variant": name, "way": way, "T": T, "step µs": us}
            line |= {f"gain at {percent(a)}": gain(steps, decode[1], T, a) for a in (0.6, 0.8, 0.9)}
            even = break_even(steps, decode[1], T)
            lines.append(line | {"pays from": "never" if even is None else percent(even) if even else "0%"})
    return pandas.DataFrame(lines)


def memory_table(tokens, tp: int = 1) -> pandas.DataFrame:
    """MB that one request keeps in all GDN layers of each model, bf16: its state, and what verify adds until commit."""
    lines = []
    for model, entry in MODELS.items():
        if entry.num_k_heads % tp or entry.num_v_heads % tp:
            continue
        shape = GDNShape.from_model(model, tp)
        line = {"model": model, "state and window": sum(StatePool.slot_nbytes(shape).values()) * entry.gdn_layers / 1e6}
        for T in tokens:
            drafts = sum(StatePool.draft_nbytes(shape, T).values())
            line[f"drafts, T = {T}"] = drafts * entry.gdn_layers / 1e6
        lines.append(line)
    return pandas.DataFrame(lines)


def conditions(rows, run=None) -> str:
    """What the figures of verify rows hold for, in one line; as they do, it leaves eager PyTorch out where it can."""
    rows = [row for row in timed(rows) if row["phase"] == "verify"]
    if not rows:
        return ""
    rows = [row for row in rows if row["backend"] != "torch"] or rows
    where = f"B = {largest_batch(rows)}, HK {rows[0]['num_k_heads']}, HV {rows[0]['num_v_heads']}"
    return held_for(f"{where} · {rows[0]['state_dtype']} state", rows, run)


def fastest(of: dict[str, dict[int, float]], T: int) -> str | None:
    """The variant that takes the least time at T; eager PyTorch only where there is nothing else."""
    at = {name: us[T] for name, us in of.items() if T in us}
    kernels = {name: us for name, us in at.items() if not name.startswith("torch/")} or at
    return min(kernels, key=kernels.get, default=None)


def _who_is_fastest(of: dict[str, dict[int, float]], tokens: list[int]) -> str:
    """ "triton/vk is fastest:", or where that changes "flashinfer/vk is fastest at T = 2, 4, triton/vk at T = 8: it
    takes"; named last is who is fastest at the most tokens."""
    at = defaultdict(list)
    for T in sorted(tokens, reverse=True):
        at[fastest(of, T)].insert(0, str(T))
    if len(at) == 1:
        return f"{next(iter(at))} is fastest:"
    (first, Ts), *others = reversed(at.items())
    said = [f"{first} is fastest at T = {', '.join(Ts)}"]
    return ", ".join(said + [f"{name} at T = {', '.join(Ts)}" for name, Ts in others]) + ": it takes"


def answers(rows, model: str, tp: int) -> list[str]:
    """What the rows say to the question of notebook 05, a sentence each; only what they can answer."""
    times, said = verify_times(rows), []
    for mode, what in MODES.items():
        of = times.get(mode, {})
        tokens = sorted({T for us in of.values() for T in us})
        if not tokens:
            continue
        name = fastest(of, tokens[-1])
        spent = ", ".join(f"{micro(of[name][T])} at T = {T}" for T in tokens if T in of[name])
        sentence = f"To {what}, {_who_is_fastest(of, tokens)} {spent}"
        theirs = {T: us / of[name][T] for T, us in of.get("flashinfer/vk", {}).items() if T in of[name]}
        if theirs and name != "flashinfer/vk":
            sentence += f"; flashinfer/vk takes {', '.join(f'{ratio:.2f}' for ratio in theirs.values())} times as long"
        said.append(sentence + ".")
    table = gain_table(rows)
    if len(table) and not table.variant.str.startswith("torch/").all():
        table = table[~table.variant.str.startswith("torch/")]
    if len(table):
        best = table.loc[table["gain at 80%"].idxmax()]
        said.append(
            f"At an acceptance rate of 80 % this layer does best with T = {best['T']} on {best['variant']} by "
            f"{best['way']}: {best['gain at 80%']:.2f} times the tokens of {decode_time(rows)[0]} decode steps in the "
            f"same time; acceptance at which it pays: {best['pays from']}."
        )
    shape, layers = GDNShape.from_model(model, tp), MODELS[model].gdn_layers
    kept, drafts = StatePool.slot_nbytes(shape), StatePool.draft_nbytes(shape, 8)
    said.append(
        f"Storing the states after each of 8 draft tokens keeps {byte_size(sum(drafts.values()) * layers)} for a "
        f"request of {model} in flight, beside {byte_size(sum(kept.values()) * layers)} that it keeps anyway; replay "
        "keeps no state."
    )
    return said
