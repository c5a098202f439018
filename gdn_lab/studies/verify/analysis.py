"""What rows of verify say: the cost of a step of speculative decoding in a GDN layer, its gain, its memory.

One step verifies T tokens: the token known from the step before, and T - 1 drafts. If each draft is accepted with
probability alpha, given that those before it are, a step yields on average

    1 + alpha + … + alpha^(T - 1) = (1 - alpha^T) / (1 - alpha)        tokens

(Leviathan, Kalman, Matias: Fast inference from transformers via speculative decoding, 2023, equation 1.) The
rejected drafts must then leave no trace in the state. Two ways to roll it back:

    store     verify stores the state after each token; commit() copies the one after the last accepted token
    replay    verify gives the output only; a second call updates the state by the accepted tokens. It is counted as an
              update by all T, an upper bound.

Every function takes a Timed of the rows of one run; those about steps need its decode rows too.
"""

import pandas
import torch

from ...backends.base import dtype_name
from ...backends.registry import in_order, variant
from ...models import MODELS, GDNShape
from ...pool import StatePool
from ...report.nearest import led
from ...report.text import byte_size, listed, micro, percent
from ...report.timed import Timed, name_of

MODES = {"update": "update the state", "intermediate": "store T states", "output": "output only"}
COMMIT = "commit"  # mode and variant of the rows that time pool.commit()
RATES = (0.6, 0.8, 0.9)  # acceptance rates of gain_table()


# ---- times of a call


def compared(timed: Timed) -> Timed:
    """The verify rows at the largest batch, commit() among them; without eager PyTorch unless it is all there is."""
    verified = timed.selected(phase="verify")
    largest = max(verified.batches, default=0)
    verified = verified.where(lambda row: row["batch"] == largest)
    kernels = verified.where(lambda row: row["mode"] != COMMIT).kernels().names
    return verified.where(lambda row: row["mode"] == COMMIT or name_of(row) in kernels)


def by_mode(timed: Timed, value: str = "median_us") -> dict[str, pandas.DataFrame]:
    """{mode: `value` with a line for each T and a column for each variant}, of compared(), in the order of MODES."""
    rows = compared(timed)
    if not rows:
        return {}
    modes = dict(list(rows.frame().groupby("mode")))
    order = [mode for mode in (*MODES, COMMIT) if mode in modes]
    tables = {mode: modes[mode].pivot(index="tokens", columns="name", values=value) for mode in order}
    return {mode: table[[name for name in rows.names if name in table]] for mode, table in tables.items()}


def bandwidth_floors(timed: Timed) -> dict[str, pandas.Series]:
    """{mode: µs by T that the bytes of a call take at the measured bandwidth}."""
    sizes, bandwidths = by_mode(timed, "bytes"), by_mode(timed, "roof_gb_per_s")
    return {mode: (sizes[mode] / bandwidths[mode] / 1e3).max(axis="columns") for mode in sizes}


def verify_table(timed: Timed) -> pandas.DataFrame:
    """Median µs by mode, B and T (index) and variant (columns), eager PyTorch too; empty where nothing was timed."""
    rows = timed.selected(phase="verify")
    if not rows:
        return pandas.DataFrame()
    frame = rows.frame().replace({"mode": MODES}).rename(columns={"batch": "B", "tokens": "T"})
    table = frame.pivot(index=["mode", "B", "T"], columns="name", values="median_us")[rows.names]
    order = [mode for mode in (*MODES.values(), COMMIT) if mode in table.index.levels[0]]
    return table.reindex(order, level="mode").rename(columns=lambda name: variant(name).label).rename_axis(columns=None)


def conditions(timed: Timed) -> str:
    """What the figures hold for, in one line."""
    rows = compared(timed)
    if not rows:
        return ""
    row = rows.rows[0]
    where = f"B = {row['batch']}, HK {row['num_k_heads']}, HV {row['num_v_heads']}"
    return rows.conditions(f"{where} · {row['state_dtype']} state")


# ---- steps from pool to pool


def step_times(timed: Timed) -> pandas.Series:
    """µs of a step, indexed by variant, way ("store", "replay") and T, where every call of it was timed."""
    times, ways = by_mode(timed), {}
    if {"intermediate", COMMIT} <= set(times):
        ways["store"] = times["intermediate"].add(times[COMMIT].iloc[:, 0], axis="index")
    if {"output", "update"} <= set(times):
        ways["replay"] = times["output"] + times["update"]
    if not ways:
        return pandas.Series(dtype=float)
    steps = pandas.concat(ways, names=["way", "T"]).stack().dropna().rename_axis(index={"name": "variant"})
    steps = steps.reorder_levels(["variant", "way", "T"]).sort_index()
    return steps.reindex(in_order(steps.index.unique("variant")), level="variant")


def decode_time(timed: Timed) -> tuple[str, float] | None:
    """(variant, median µs) of the fastest decode step at the batch of the verify steps, which compete with it."""
    batches = timed.selected(phase="verify").batches
    decoded = timed.selected(phase="decode")
    decoded = decoded.where(lambda row: batches and row["batch"] == batches[-1]).kernels()
    return min(((name_of(row), row["median_us"]) for row in decoded.rows), key=lambda step: step[1], default=None)


def expected_tokens(alpha: float, tokens: int) -> float:
    """Tokens that a step of T yields on average."""
    return float(sum(alpha**n for n in range(tokens)))


def gain(step_us: float, decode_us: float, tokens: int, alpha: float) -> float:
    """Tokens per second of verify steps over those of decode steps, in this layer alone."""
    return expected_tokens(alpha, tokens) * decode_us / step_us


def break_even(step_us: float, decode_us: float, tokens: int) -> float | None:
    """The least acceptance rate at which a step of T gains, to a hundredth; None if it never does."""
    rates = (hundredths / 100 for hundredths in range(101))
    return next((alpha for alpha in rates if gain(step_us, decode_us, tokens, alpha) >= 1), None)


def gain_table(timed: Timed) -> pandas.DataFrame:
    """A line for each variant, way and T: µs of a step, gain over decode at RATES, acceptance from which it pays."""
    decode, lines = decode_time(timed), []
    for (name, way, T), us in step_times(timed).items() if decode else ():
        line = {"variant": variant(name).label, "rollback": way, "T": T, "step µs": us}
        line |= {f"gain at {percent(rate)}": gain(us, decode[1], T, rate) for rate in RATES}
        least = break_even(us, decode[1], T)
        lines.append(line | {"pays from": "never" if least is None else percent(least)})
    return pandas.DataFrame(lines)


# ---- memory


def memory_table(tokens: list[int], tp: int = 1, dtype=torch.bfloat16) -> pandas.DataFrame:
    """MB per request in all GDN layers of each model: state and window, and what verify adds until commit().

    dtype: of the state.
    """
    lines = []
    for name, model in MODELS.items():
        if model.num_k_heads % tp or model.num_v_heads % tp:
            continue
        shape = GDNShape.from_model(name, tp)
        sizes = {"state and window": StatePool.slot_nbytes(shape, dtype)}
        sizes |= {f"drafts, T = {T}": StatePool.draft_nbytes(shape, T, dtype) for T in tokens}
        line = {what: sum(parts.values()) * model.gdn_layers / 1e6 for what, parts in sizes.items()}
        lines.append({"model": name} | line)
    return pandas.DataFrame(lines)


# ---- sentences


def answers(timed: Timed, model: str, tp: int, tokens: int = 8, dtype=torch.bfloat16) -> list[str]:
    """What the rows say to the question of notebook 05, a sentence each; only what they can answer.

    model, tp, tokens, dtype: of the last sentence, on memory, which is computed.
    """
    sentences = [_who_is_fastest(mode, times) for mode, times in by_mode(timed).items() if mode in MODES]
    table = gain_table(timed)
    if len(table):
        best = table.loc[table["gain at 80%"].idxmax()]
        sentences.append(
            f"At 80% acceptance this layer does best with T = {best['T']} on {best['variant']} by {best['rollback']}: "
            f"{best['gain at 80%']:.2f}× the tokens per second of {variant(decode_time(timed)[0]).label} decode steps. "
            f"It pays from an acceptance of {best['pays from']}."
        )
    sentences += timed.selected(phase="verify").outside_tolerance()
    return [*led(timed.run, sentences), memory_sentence(model, tp, tokens, dtype)]


def memory_sentence(model: str, tp: int, tokens: int, dtype=torch.bfloat16) -> str:
    """What storing the states after each of `tokens` tokens takes, in all GDN layers on one of `tp` GPUs."""
    shape, layers = GDNShape.from_model(model, tp), MODELS[model].gdn_layers
    kept, drafts = StatePool.slot_nbytes(shape, dtype), StatePool.draft_nbytes(shape, tokens, dtype)
    where = f"at tp {tp}, on each GPU" if tp > 1 else "at tp 1"
    return (
        f"Computed for {model} {where}: storing the {dtype_name(dtype)} states after each of {tokens} tokens takes "
        f"{byte_size(sum(drafts.values()) * layers)} per request in flight, in addition to the "
        f"{byte_size(sum(kept.values()) * layers)} that it keeps anyway; replay stores none."
    )


def _who_is_fastest(mode: str, times: pandas.DataFrame) -> str:
    """Who is fastest at which T in one mode, with the times of the one at the largest T, and its strongest rival."""
    name = times.iloc[-1].idxmin()
    fastest_at = times.idxmin(axis="columns").groupby(lambda T: times.loc[T].idxmin(), sort=False).groups
    own = times[name].dropna()
    spent = ", ".join(f"{micro(us)} at T = {T}" for T, us in own.items())
    sentence = f"{MODES[mode][0].upper()}{MODES[mode][1:]}: {variant(name).label} is fastest ({spent})"
    if len(fastest_at) > 1:
        who = listed(f"{variant(each).label} at T = {', '.join(map(str, Ts))}" for each, Ts in fastest_at.items())
        sentence = f"{sentence.partition(':')[0]}: fastest are {who}; {variant(name).label} takes {spent}"
    if rival := _rival(times, name):
        ratios = (times[rival] / own).dropna()
        sentence += f"; {variant(rival).label} takes {', '.join(f'{ratio:.2f}' for ratio in ratios)} times as long"
    return sentence + "."


def _rival(times: pandas.DataFrame, name: str) -> str | None:
    """The fastest at the largest T of a peer's kernels, or of ours if `name` is a peer's; None if there is none."""
    is_peer = {each: variant(each).role == "peer" for each in times}
    others = times[[each for each in times if is_peer[each] != is_peer[name]]].iloc[-1].dropna()
    return others.idxmin() if len(others) else None
