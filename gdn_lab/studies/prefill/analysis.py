"""What rows of prefill say: tokens per second, who is fastest where, the pool in place against the detour.

A workload is a number of sequences and a number of tokens of each, "8 × 1,024". Every function takes a Timed of the
prefill rows of one run, of any indexing.
"""

import pandas

from ...backends.registry import VARIANTS, in_order, variant, vk_twin
from ...report.nearest import led
from ...report.recorded import published
from ...report.text import listed, number_range, percent
from ...report.timed import Timed

DETOUR = "detour"
POINT = ["num_v_heads", "batch", "length"]  # the fields of a row that say what is compared with what
FEW = 3  # workloads that a title can name


# ---- tables


def frame(timed: Timed) -> pandas.DataFrame:
    """The timed rows in the order of tables, with `workload` ("8 × 1,024") and `label` ("triton/kv32, detour").

    Most heads first, then by tokens and sequences, then in the order of variants, in place before by the detour.
    """
    rows = timed.frame()
    if rows.empty:
        return rows
    rows["workload"] = [f"{batch} × {length:,}" for batch, length in zip(rows.batch, rows.length, strict=True)]
    rows["detour"] = rows.indexing == DETOUR
    rows["label"] = [
        variant(name).label + (", detour" if detour else "")
        for name, detour in zip(rows.name, rows.detour, strict=True)
    ]
    rows["rank"] = rows.name.map({name: rank for rank, name in enumerate(in_order(rows.name))})
    keys = ["num_v_heads", "tokens", "batch", "detour", "rank"]
    return rows.sort_values(keys, ascending=[False, True, True, True, True], ignore_index=True)


def labels(rows: pandas.DataFrame) -> list[str]:
    """Labels of the variants in `rows`, a frame(), in order, in place before by the detour."""
    return list(rows.sort_values(["detour", "rank"]).label.unique()) if len(rows) else []


def time_table(timed: Timed) -> pandas.DataFrame:
    """Median µs: a line for each number of value heads and workload, a column for each variant, and who is fastest."""
    rows = frame(timed)
    if rows.empty:
        return pandas.DataFrame()
    index = {"num_v_heads": "HV", "workload": "sequences × tokens"}
    lines = rows[[*index]].drop_duplicates()
    table = rows.pivot(index=[*index], columns="label", values="median_us")[labels(rows)]
    table = table.loc[pandas.MultiIndex.from_frame(lines)].reset_index().rename(columns=index)
    table["fastest"] = table[labels(rows)].idxmin(axis="columns")
    return table.rename_axis(columns=None)


def detail_table(timed: Timed) -> pandas.DataFrame:
    """Each timed row: time, tokens per second, GB/s, share of the measured bandwidth, TFLOP/s, the largest error."""
    rows = frame(timed)
    if rows.empty:
        return rows
    rows["thousand tokens/s"] = rows.tokens_per_s / 1e3
    rows["% of measured bandwidth"] = 100 * rows.share_of_roof
    columns = {
        "num_v_heads": "HV",
        "workload": "sequences × tokens",
        "label": "variant",
        "median_us": "µs",
        "p20_us": "p20",
        "p80_us": "p80",
        "thousand tokens/s": "thousand tokens/s",
        "gb_per_s": "GB/s",
        "% of measured bandwidth": "% of measured bandwidth",
        "tflops": "TFLOP/s",
        "l2": "L2",
        "max_abs_error": "largest error",
    }
    return rows[[*columns]].rename(columns=columns)


def earlier_table(timed: Timed) -> pandas.DataFrame:
    """µs in place, for the workloads that were measured before this workbook had prefill kernels; then those figures.

    64 value heads. data/published/first_measurements/prefill.csv says how the earlier figures were made.
    """
    before = published("prefill", "first_measurements")
    before = before.set_index(pandas.MultiIndex.from_arrays([before.sequences, before.length]))
    earlier = {"flashinfer, earlier": before.flashinfer_us, "fla, earlier": before.fla_us}
    rows = frame(timed)
    rows = rows[(rows.num_v_heads == 64) & ~rows.detour] if len(rows) else rows
    here = rows.pivot(index=["batch", "length"], columns="label", values="median_us") if len(rows) else before[[]]
    table = here.reindex(before.index)[labels(rows)].assign(**earlier).dropna(axis="columns", how="all")
    table.insert(0, "sequences × tokens", [f"{sequences} × {length:,}" for sequences, length in before.index])
    return table.reset_index(drop=True).rename_axis(columns=None)


# ---- comparisons


def in_place_times(timed: Timed, by: str) -> pandas.DataFrame:
    """Median µs in place: lines POINT, in the order of tables; columns `by`, "backend" (its fastest) or "name"."""
    rows = frame(timed)
    rows = rows[~rows.detour]
    times = rows.pivot_table(index=POINT, columns=by, values="median_us", aggfunc="min")
    return times.loc[pandas.MultiIndex.from_frame(rows[POINT].drop_duplicates())]


def leads(timed: Timed) -> pandas.DataFrame:
    """Which backend leads in place: a line for each POINT where two were timed.

    Columns: `backend`, the fastest; `over`, the backend of our kernels or, where that is the fastest, the next;
    `lead`, the time of `over` as a multiple of the fastest's.
    """
    if not timed.where(lambda row: row["indexing"] != DETOUR):
        return pandas.DataFrame(columns=["backend", "over", "lead"])
    ours, lines = [v.backend for v in VARIANTS.values() if v.role == "ours"], {}
    for point, backends in in_place_times(timed, "backend").iterrows():
        first, *others = backends.dropna().sort_values().index
        if others:
            over = next((each for each in others if each in ours), others[0])
            lines[point] = {"backend": first, "over": over, "lead": backends[over] / backends[first]}
    return pandas.DataFrame.from_dict(lines, orient="index", columns=["backend", "over", "lead"])


def detour_ratios(timed: Timed) -> pandas.DataFrame:
    """Time by the detour over that of the VK kernel that differs in the memory order alone, on the pool in place.

    Lines POINT, a column for each such VK kernel.
    """
    rows = frame(timed)
    if rows.empty or not rows.detour.any() or rows.detour.all():
        return pandas.DataFrame()
    detour, found = rows[rows.detour].pivot(index=POINT, columns="name", values="median_us"), {}
    times = in_place_times(timed, "name")
    for name in detour:
        twin = vk_twin(name, "prefill")
        if twin in times:
            found[twin] = (detour[name] / times[twin]).dropna()
    return pandas.DataFrame(found)


def workload_of(point: tuple[int, int, int]) -> str:
    """ "8 × 1,024" of a POINT."""
    return f"{point[1]} × {point[2]:,}"


# ---- sentences


def conditions(timed: Timed) -> str:
    """What the times hold for, in one line."""
    if not timed:
        return "nothing was timed"
    row = timed.rows[0]
    model = [row["model"]] if row.get("model") else []
    return timed.conditions(" · ".join([*model, f"{row['state_dtype']} state, {row['io_dtype']} inputs"]))


def answers(timed: Timed) -> list[str]:
    """What the rows say to the question of notebook 06, a sentence each."""
    rows = frame(timed)
    if rows.empty or rows.detour.all():
        return ["Nothing was timed here in place."]
    times = in_place_times(timed, "name")
    ours = next((name for name in in_order(times) if variant(name).role == "ours"), in_order(times)[0])
    peers = times[[name for name in times if variant(name).role == "peer" and name != ours]].dropna(how="all")
    peer = peers.idxmin(axis="columns").mode()[0] if len(peers) else None  # the fastest at most workloads
    sentences = [_throughput(rows[~rows.detour], [ours, peer])]
    if peer:
        sentences += [
            f"Fastest in place, by workload: {fastest(timed)}.",
            *_faster_and_slower(times[ours] / times[peer], peer, ours),
        ]
    for name in in_order(times):
        ratios = (times[name] / times[ours]).dropna()
        if name not in (ours, peer) and len(ratios):
            takes = f"{variant(name).label} takes {number_range(ratios)} times as long as"
            sentences.append(f"{takes} {variant(ours).label}.")
    for name, ratios in detour_ratios(timed).items():
        ahead = "slower at every size" if ratios.min() > 1 else "not slower at every size"
        sentences.append(
            f"The detour through KV takes {number_range(ratios.dropna())} times as long as {variant(name).label} on "
            f"the pool in place: {ahead}."
        )
    return led(timed.run, sentences + timed.outside_tolerance() + not_isolated(times))


def fastest(timed: Timed) -> str:
    """Which backend is fastest in place at how many workloads, by how much at most, and where others are; or "".

    "flashinfer at 9 of 12 (up to 2.7× triton's speed); triton at 1 × 512 and 8 × 1,024 (HV 8)". Of the others only
    those with FEW workloads or fewer are named with them.
    """
    table, parts = leads(timed), []
    for backend in table.backend.value_counts().index:
        won = table[table.backend == backend]
        if not parts:
            most = won.loc[won.lead.idxmax()]
            parts.append(f"{backend} at {len(won)} of {len(table)} (up to {most.lead:.1f}× {most.over}'s speed)")
        else:
            where = _places(won.index, table.index) if len(won) <= FEW else f"{len(won)}"
            parts.append(f"{backend} at {where}")
    return "; ".join(parts)


def _places(won, every) -> str:
    """The workloads of `won`, with the number of value heads where it is not all of those timed."""
    heads = {}
    for point in won:
        heads.setdefault(workload_of(point), []).append(point[0])
    timed_heads = {work: [point[0] for point in every if workload_of(point) == work] for work in heads}
    return listed(
        work if found == timed_heads[work] else f"{work} (HV {', '.join(map(str, found))})"
        for work, found in heads.items()
    )


def _throughput(rows: pandas.DataFrame, names: list[str]) -> str:
    """Tokens per second of each of `names` where the fastest of them moves most."""
    rows = rows[rows.name.isin(names)]
    best = rows.loc[(rows.tokens_per_s * rows.num_v_heads).idxmax()]
    there = rows[(rows[POINT] == best[POINT]).all(axis="columns")].sort_values("median_us")
    parts = [
        f"{row.label} {_many(row.tokens_per_s)} ({percent(row.share_of_roof)}, {row.tflops:,.3g} TFLOP/s)"
        for row in there.itertuples()
    ]
    where = f"{best.workload} with {best.num_v_heads} value heads"
    return f"Tokens per second at {where}, and share of the measured bandwidth: {listed(parts)}."


def _faster_and_slower(speed: pandas.Series, peer: str, ours: str) -> list[str]:
    """For each number of heads, where the peer is faster than ours and where not; speed: ours' time over the peer's."""
    sentences = []
    for heads, ratios in speed.dropna().groupby(level="num_v_heads", sort=False):
        parts = []
        for word, found in (("faster", ratios[ratios > 1]), ("not faster", ratios[ratios <= 1])):
            if len(found):
                works = listed(f"{workload_of(point)} ({ratio:.2f}×)" for point, ratio in found.items())
                parts.append(f"{word} at {works}")
        who = f"{variant(peer).label}, compared with {variant(ours).label}, is"
        sentences.append(f"With {heads} value heads {who} {'; '.join(parts)}.")
    return sentences


def not_isolated(names=None) -> list[str]:
    """A sentence on those of `names`, by default all variants, whose prefill lets NaN reach another sequence."""
    names = VARIANTS if names is None else names
    leaking = [variant(name).label for name in in_order(names) if "prefill" in variant(name).leaks]
    if not leaking:
        return []
    return [
        f"{listed(leaking)}: a NaN in one sequence can reach the last chunk of its neighbour, so `auto` does not "
        f"choose {'it' if len(leaking) == 1 else 'them'} for prefill."
    ]


def _many(number: float) -> str:
    """ "15.1 million", "8,512"."""
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,.0f}"
