"""What rows of all-reduces say: which variant is fastest at which size, and what the norm adds. Imports no torch."""

import pandas

from ...engine.communicator_choice import ADD_NORM, DEFAULT, SUM, Choice, chosen
from ...engine.communicator_variants import VARIANTS
from ...report.nearest import candidate_runs
from ...report.recorded import DATA, recorded_gpu
from ...report.text import byte_size, listed, micro, percent

NOTEBOOK = "08_all_reduce"
STEP = (256, 4096)  # rows, hidden: a decode step of the 397B model with 256 requests
POINT = ["ranks", "operation", "hidden", "rows"]
WORDS = {SUM: "all-reduce", ADD_NORM: "all-reduce, residual and norm"}


def recorded_rows(gpu: str, data=DATA) -> tuple[dict, list[dict]]:
    """(run, rows) of all recorded runs of this notebook on a GPU, or of a run folder; ({}, []) where there is none.

    run: of those the one with most rows, for the figures' titles and provenance.
    """
    runs = list(candidate_runs(gpu, NOTEBOOK, data).values())
    run = max(runs, key=lambda one: len(one[1]), default=({}, []))[0]
    return run, [row for _, rows in runs for row in rows]


def recorded_choice(gpu: str, ranks: int, data=DATA) -> Choice:
    """The fastest variant for each size as recorded on a number of GPUs; the default where that is not recorded."""
    _, rows = recorded_rows(gpu, data)
    measured = {row["operation"] for row in rows if "median_us" in row and row["ranks"] == ranks}
    return chosen(rows, ranks, f"recorded on {ranks} {gpu.upper()}") if measured == {SUM, ADD_NORM} else DEFAULT


def choice_on(device_name: str, ranks: int, data=DATA) -> Choice:
    """The fastest variant for each size on a GPU of this name, as recorded; the default where that is not recorded."""
    gpu = recorded_gpu(device_name, data)
    return recorded_choice(gpu, ranks, data) if gpu else DEFAULT


def timed(rows: list[dict]) -> pandas.DataFrame:
    """A line for each timed row, in the order of POINT and of VARIANTS."""
    found = pandas.DataFrame([row for row in rows if "median_us" in row])
    if found.empty:
        return pandas.DataFrame(columns=[*POINT, "variant", "median_us", "bytes", "device", "p20_us", "p80_us"])
    order = {name: place for place, name in enumerate(VARIANTS)}
    found["place"] = found.variant.map(order)
    return found.sort_values([*POINT, "place"], ignore_index=True).drop(columns="place")


def ranks_of(rows: list[dict]) -> list[int]:
    """Numbers of ranks that were timed, ascending."""
    return sorted(int(count) for count in timed(rows).ranks.unique())


def hidden_of(rows: list[dict]) -> int:
    """The hidden size to draw and speak of: that of STEP, else the largest that was timed."""
    there = set(timed(rows).hidden)
    return int(STEP[1] if STEP[1] in there else max(there))


def time_table(rows: list[dict]) -> pandas.DataFrame:
    """Median µs: a line for each POINT, a column for each variant, and which is fastest."""
    lines = timed(rows)
    if lines.empty:
        return pandas.DataFrame()
    names = list(dict.fromkeys(name for name in VARIANTS if name in set(lines.variant)))
    table = lines.pivot_table(index=[*POINT, "bytes"], columns="variant", values="median_us")[names]
    table["fastest"] = table[names].idxmin(axis="columns")
    table = table.reset_index().rename_axis(columns=None)
    table["bytes"], table["operation"] = table["bytes"].map(byte_size), table["operation"].map(WORDS)
    return table.rename(columns={"bytes": "size"})


def check_table(rows: list[dict]) -> pandas.DataFrame:
    """What was checked: the largest error of each point as a share of what is allowed, or why there is none."""
    columns = {"ranks": "ranks", "variant": "variant", "operation": "operation", "hidden": "hidden", "rows": "rows"}
    table = pandas.DataFrame(rows).reindex(columns=[*columns, "error_of_allowed", "reason"])
    table["operation"] = table["operation"].map(WORDS)
    table["reason"] = table.reason.fillna("right")
    names = {"error_of_allowed": "largest error / allowed", "reason": "result"}
    return table.rename(columns=columns | names)


# ---- sentences


def conditions(rows: list[dict]) -> str:
    """What the times hold for, in one line."""
    lines = timed(rows)
    if lines.empty:
        return "nothing was timed"
    row = lines.iloc[0]
    chained = f"{int(row.calls_per_sample)} calls one after the other"
    return f"bf16 · {row.timer}, {chained}, the slowest rank of each, median of {int(row['count'])} samples"


def at_step(rows: list[dict], ranks: int, operation: str) -> dict[str, float]:
    """{variant: µs} at the rows and hidden size nearest to STEP, the fastest first; {} if nothing was timed."""
    lines = timed(rows)
    lines = lines[(lines.ranks == ranks) & (lines.operation == operation)]
    if lines.empty:
        return {}
    lines = lines[lines.hidden == (STEP[1] if STEP[1] in set(lines.hidden) else lines.hidden.max())]
    near = min(lines.rows.unique(), key=lambda count: abs(count - STEP[0]))
    lines = lines[lines.rows == near].sort_values("median_us")
    return {"bytes": float(lines.bytes.iloc[0])} | dict(zip(lines.variant, lines.median_us, strict=True))


def answers(rows: list[dict]) -> list[str]:
    """The answer, a sentence each, for each number of ranks; of CPUs only what was checked."""
    lines = timed(rows)
    if len(lines) and set(lines.device) == {"cpu"}:
        counts = listed(f"{count} processes" for count in ranks_of(rows))
        return [f"{len(lines)} of {len(rows)} sums over {counts} were right; times of a CPU rank nothing."]
    return [sentence for ranks in ranks_of(rows) for sentence in _answers(rows, ranks)] or [
        "No all-reduce was timed: that takes two GPUs of one host, and `gdn-lab run 08` on them."
    ]


def _answers(rows: list[dict], ranks: int) -> list[str]:
    where = f"{ranks} GPUs"
    plain, fused = (at_step(rows, ranks, operation) for operation in (SUM, ADD_NORM))
    sentences, size = [], ""
    for words, times in (("all-reduce", plain), ("all-reduce with residual and norm", fused)):
        if times:
            size = byte_size(times.pop("bytes"))
            sentences.append(f"{where}, {size}: the fastest {words} is {_against_nccl(times)}.")
    if plain and fused:
        us, alone = min(fused.values()), min(plain.values())
        more = f"add {percent(us / alone - 1)}" if us > alone else "add no time"
        sentences.append(
            f"{where}, {size}: residual and norm {more} to the fastest all-reduce; a layer's two take {micro(2 * us)}."
        )
    operation, words = (ADD_NORM, "with residual and norm") if fused else (SUM, "the all-reduce alone")
    if found := by_size(rows, ranks, operation):
        sentences.append(f"{where}, {words}: {found}.")
    return sentences


def _against_nccl(times: dict[str, float]) -> str:
    best = min(times, key=times.get)
    text = f"{best}, {micro(times[best])}"
    others = [f"{name} {micro(us)}" for name, us in times.items() if name != best]
    return text + (f" ({', '.join(others)})" if others else "")


def by_size(rows: list[dict], ranks: int, operation: str = ADD_NORM) -> str:
    """Which variant is fastest at which size: "one-shot is fastest up to 65.5 kB, two-shot from 524 kB"."""
    lines = timed(rows)
    lines = lines[(lines.ranks == ranks) & (lines.operation == operation) & (lines.hidden == hidden_of(rows))]
    steps = []  # [variant, first size, last size]
    for nbytes, there in lines.groupby("bytes"):
        best = there.loc[there.median_us.idxmin()].variant
        if steps and steps[-1][0] == best:
            steps[-1][2] = nbytes
        else:
            steps.append([best, nbytes, nbytes])
    named = [(best, byte_size(first), byte_size(last)) for best, first, last in steps]
    if len(named) < 2:
        every = "at {0}" if lines.bytes.nunique() == 1 else "at every size, {0} to {1}"
        return "".join(f"{best} is fastest {every.format(*ends)}" for best, *ends in named)
    (first, _, until), *between, (last, since, _) = named
    parts = [f"{first} is fastest up to {until}"]
    parts += [f"{best} at {low}" if low == high else f"{best} from {low} to {high}" for best, low, high in between]
    return ", ".join([*parts, f"{last} from {since}"])


def unresolved_norm(rows: list[dict]) -> list[str]:
    """Where the times of a variant with a norm kernel of its own do not show that kernel: a sentence for each.

    They do not where the ranges from the 20th to the 80th percentile, with residual and norm and without, overlap.
    """
    return [
        sentence
        for ranks in ranks_of([row for row in rows if row["device"] == "cuda"])
        for sentence in _unresolved_norm(rows, ranks)
    ]


def _unresolved_norm(rows: list[dict], ranks: int) -> list[str]:
    lines = timed(rows)
    lines = lines[(lines.ranks == ranks) & (lines.hidden == hidden_of(rows))]
    added, overlapping = {}, {}
    for name in (name for name in VARIANTS if not VARIANTS[name].fused):
        plain, normed = (lines[(lines.variant == name) & (lines.operation == one)] for one in (SUM, ADD_NORM))
        both = plain.merge(normed, on="bytes", suffixes=("", "_normed"))
        if len(both):
            added[name] = both.median_us_normed - both.median_us
            overlapping[name] = (both.p20_us_normed <= both.p80_us) & (both.p20_us <= both.p80_us_normed)
    seen = {name: us for name, us in added.items() if not overlapping[name].any()}
    ends = dict.fromkeys(f"{end(map(end, seen.values())):.1f}" for end in (min, max) if seen)
    more = f"; after {listed(seen)} the same kernel adds {' to '.join(ends)} µs" if seen else ""
    return [
        f"{ranks} GPUs: at {sum(there)} of {len(there)} sizes the times do not resolve the norm kernel after {name}, "
        f"as the 20th to 80th percentiles with and without it overlap{more}."
        for name, there in overlapping.items()
        if there.any()
    ]


def checked(rows: list[dict]) -> list[str]:
    """Why something was not timed, and which variants were right at all sizes."""
    refused = {row["variant"] for row in rows if row["status"] == "refused"}
    right = [name for name in dict.fromkeys(row["variant"] for row in rows) if name not in refused]
    was = "was" if len(right) == 1 else "were"
    return not_timed(rows) + ([f"{listed(right)} {was} right at all sizes checked here."] if right else [])


def not_timed(rows: list[dict]) -> list[str]:
    """A sentence for each reason why something was not timed."""
    reasons: dict[tuple, int] = {}
    for row in rows:
        if row["status"] == "refused":
            key = (row["variant"], row["ranks"], row["reason"])
            reasons[key] = reasons.get(key, 0) + 1
    return [
        f"{variant} on {ranks} ranks, {count} {'size' if count == 1 else 'sizes'} not timed: {reason}"
        for (variant, ranks, reason), count in reasons.items()
    ]
