"""What timed rows of decode say: ratios between variants, tables, and the sentences that answer notebook 02's question.

Every function takes a Timed of one indexing and timer, by default in place and the timer that figures are drawn from.
Which variants are ours, baselines or eager PyTorch is what their records say.
"""

import math
from collections import defaultdict
from typing import NamedTuple

import pandas
import torch

from ...backends.registry import variant, vk_twin
from ...bench.agreement import FROM_US, GAP_US, TOLERANCE, disagreements
from ...report.nearest import led
from ...report.recorded import PUBLISHED_BASE, PUBLISHED_BASELINE, published_ratios, published_times
from ...report.text import gb, listed, micro, number_range, percent
from ...report.timed import Timed, largest_batch, name_of, ratios

PUBLISHED_OVER = "flashinfer/vk"  # the pull request's new kernel: the denominator of its ratios
LARGE, SMALL = 32, 8  # batches from LARGE up and up to SMALL are summarised apart; the published ratios start at LARGE
INDEXING = {"in_place": "in place", "gather_scatter": "gather, run, scatter"}
MOST_VARIANTS = 7  # columns of one table of times
GATHER_SCATTER_TRAFFIC = 3  # gather, kernel and scatter each read and write the state; in place the kernel alone does


def conditions(timed: Timed) -> str:
    """What the figures of timed rows hold for, in one line: device, heads, dtype, timer, samples, bandwidth."""
    if not timed:
        return ""
    row = timed.rows[0]
    heads = f"HK {row['num_k_heads']}, HV {row['num_v_heads']}"
    return timed.conditions(f"T = 1 decode, {heads}, {row['state_dtype']} state")


def label(name: str) -> str:
    """A variant's label with its note, if it has one: "triton/vk-serial (without PDL)"."""
    record = variant(name)
    return f"{record.label} ({record.note})" if record.note else record.label


# ---- ratios ---------------------------------------------------------------------------------------------------------


def indexing_ratios(timed: Timed) -> dict[str, dict[int, float]]:
    """{variant: {batch: time with gather and scatter over time in place}} where both were timed."""
    in_place, moved = (timed.selected(indexing=indexing).times() for indexing in INDEXING)
    found = {name: ratios({name: by_batch}, in_place.get(name, {})) for name, by_batch in moved.items()}
    return {name: ratio[name] for name, ratio in found.items() if ratio}


def layout_ratios(timed: Timed) -> dict[str, dict[int, float]]:
    """{KV variant: {batch: its time over its VK twin's}}, in place; eager PyTorch only where nothing else was timed."""
    times = timed.kernels().times()
    found = {name: ratios({name: by_batch}, times.get(twin_of(name, times), {})) for name, by_batch in times.items()}
    return {name: ratio[name] for name, ratio in found.items() if ratio}


def twin_of(name: str, timed_names) -> str | None:
    """The VK variant to compare the KV variant `name` with; None if there is none, or if `name` is VK.

    That is its twin, which differs from it in layout and value tile, or where that was not timed the first VK variant
    of the same backend.
    """
    if variant(name).layout != "KV":
        return None
    twin = vk_twin(name, "decode")
    same = [
        other
        for other in timed_names
        if variant(other).layout == "VK" and variant(other).backend == variant(name).backend
    ]
    return twin if twin in timed_names else next(iter(same), None)


def published_band() -> tuple[float, float]:
    """Least and greatest Triton over FlashInfer that the pull request published from B = 32 up."""
    table = published_ratios()
    large = table[(table.kernel == PUBLISHED_BASELINE) & (table.batch >= LARGE)].ratio
    return float(large.min()), float(large.max())


class Reproduction(NamedTuple):
    """The baselines' times over FlashInfer's from B = 32 up, next to the published Triton over FlashInfer."""

    band: tuple[float, float]  # published, least and greatest
    ranges: dict[str, tuple[float, float]]  # baseline -> least and greatest measured
    nearest: str | None  # the baseline whose ratios are nearest; None: nothing measured

    @property
    def verdict(self) -> str:
        """How the nearest baseline's range relates to the published one: "reproduces", "stays below" or "exceeds"."""
        low, high = self.ranges[self.nearest]
        return "stays below" if high < self.band[0] else "exceeds" if low > self.band[1] else "reproduces"


def reproduction(timed: Timed) -> Reproduction:
    """Which baseline reproduces the published 2.4 to 2.8, judged by the geometric middle of each range."""
    measured = timed.ratios_to(PUBLISHED_OVER)
    band, ranges = published_band(), {}
    for name in timed.named("baseline"):
        large = [ratio for batch, ratio in measured.get(name, {}).items() if batch >= LARGE]
        if large:
            ranges[name] = (min(large), max(large))
    distance = {name: abs(math.log(low * high / (band[0] * band[1]))) for name, (low, high) in ranges.items()}
    return Reproduction(band, ranges, min(distance, key=distance.get, default=None))


def launch_gaps(timed: Timed, largest: int = LARGE) -> dict[str, dict[int, float]]:
    """{variant: {batch: replay time less kernel-only time, µs}} up to a batch, without eager PyTorch."""
    replay, kernel = both_timers(timed)
    gaps = {
        name: {batch: us - kernel[name][batch] for batch, us in by_batch.items() if batch in kernel.get(name, {})}
        for name, by_batch in replay.items()
        if variant(name).role != "eager"
    }
    gaps = {name: {batch: us for batch, us in by_batch.items() if batch <= largest} for name, by_batch in gaps.items()}
    return {name: by_batch for name, by_batch in gaps.items() if by_batch}


def both_timers(timed: Timed) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    """(times by CUDA-graph replay, kernel-only times by CUPTI)."""
    return tuple(timed.selected(timer=timer).times() for timer in ("cuda_graph_replay", "cupti_kernel"))


# ---- sentences ------------------------------------------------------------------------------------------------------


def answers(timed: Timed) -> list[str]:
    """What the rows say to the question of notebook 02, a sentence each; only what they can answer."""
    if not timed:
        return ["No row was timed, so nothing is answered."]
    said = (fastest_sentence, layout_sentence, indexing_sentence, published_sentence, pair_sentence, timers_sentence)
    sentences = [sentence for say in said if (sentence := say(timed))]
    return led(timed.run, sentences + timed.outside_tolerance())


def fastest_sentence(timed: Timed) -> str:
    """Which variant is fastest at the largest batch, and how near it is to the measured bandwidth."""
    batch = timed.batches[-1]
    rows = sorted(timed.at(batch).values(), key=lambda row: row["median_us"])
    sentence = f"At B = {batch} {variant(name_of(rows[0])).label} is fastest: {_time_and_bandwidth(rows[0])}."
    plain = next((row for row in rows if not variant(name_of(row)).ring), rows[0])
    if plain is rows[0]:
        return sentence
    less = f"{rows[0]['bytes'] / plain['bytes']:.2f} of the bytes"
    return (
        f"{sentence} It defers state writes: {less}, and a pool with a ring of updates. Of the others "
        f"{variant(name_of(plain)).label} is fastest: {_time_and_bandwidth(plain)}."
    )


def _time_and_bandwidth(row: dict) -> str:
    bandwidth = f"{gb(row['gb_per_s'])} GB/s, {percent(row['share_of_roof'])} of the measured bandwidth"
    return f"{micro(row['median_us'])}, {bandwidth}"


def layout_sentence(timed: Timed) -> str | None:
    """What the layout costs, with the value tile that goes with it: KV variants over their VK twins."""
    found = layout_ratios(timed)
    if not found:
        return None
    batch, by_twin = largest_batch(found), {}
    for name, by_batch in found.items():
        if batch in by_batch:
            each = by_twin.setdefault(twin_of(name, timed.names), [])
            each.append(f"{variant(name).label} takes {by_batch[batch]:.2f}×")
    each = [f"{listed(parts)} the time of {label(twin)}" for twin, parts in by_twin.items()]
    return f"Layout, value tile and order of stores, KV against VK, both in place at B = {batch}: {listed(each)}."


def indexing_sentence(timed: Timed) -> str | None:
    """What gathering and scattering the states costs; eager PyTorch only where nothing else was timed."""
    found = indexing_ratios(timed.kernels())
    if not found:
        return None
    batch = largest_batch(found)
    ordered = sorted((by_batch[batch], name) for name, by_batch in found.items() if batch in by_batch)
    ends = dict.fromkeys(f"{ratio:.2f}× ({variant(name).label})" for ratio, name in (ordered[0], ordered[-1]))
    sentence = f"With gather and scatter instead of in-place indexing a call at B = {batch} takes {' to '.join(ends)}."
    share = copies_share(timed, batch, ordered[-1][1])
    if share is None:
        return sentence
    return f"{sentence} The copies themselves run at {percent(share)} of the measured bandwidth."


def copies_share(timed: Timed, batch: int, name: str) -> float | None:
    """Share of the measured bandwidth that a variant's gather and scatter reach; each reads and writes every state."""
    in_place, moved = (timed.selected(indexing=indexing).at(batch).get(name) for indexing in INDEXING)
    if not in_place or not moved:
        return None
    elements = in_place["num_v_heads"] * in_place["head_k_dim"] * in_place["head_v_dim"]
    nbytes = 4 * batch * elements * getattr(torch, in_place["state_dtype"]).itemsize
    extra_us = moved["median_us"] - in_place["median_us"]
    return nbytes / extra_us / 1e3 / in_place["roof_gb_per_s"] if extra_us > 0 else None


def published_sentence(timed: Timed) -> str | None:
    """Which baseline gives the published speed-up."""
    found = reproduction(timed)
    if not found.nearest:
        return None
    each = [f"{variant(name).label} {number_range(ends)}" for name, ends in found.ranges.items()]
    nearest = variant(found.nearest).label
    verdict = "reproduces that" if found.verdict == "reproduces" else f"is nearest and {found.verdict} that"
    return (
        f"Published: Triton takes {found.band[0]:.1f} to {found.band[1]:.1f}× FlashInfer's time from B = {LARGE} up. "
        f"Here: {listed(each)}; {nearest} {verdict}."
    )


def pair_sentence(timed: Timed) -> str | None:
    """Every kernel but the baselines over FlashInfer's, small and large batches apart."""
    found, each = timed.ratios_to(PUBLISHED_OVER), []
    for name in timed.named("ours", "peer", "yours"):
        by_batch = found.get(name, {})
        small = [ratio for batch, ratio in by_batch.items() if batch <= SMALL]
        large = [ratio for batch, ratio in by_batch.items() if batch >= LARGE]
        parts = [f"{number_range(small)} at B ≤ {SMALL}"] if small else []
        parts += [f"{number_range(large)} from B = {LARGE} up"] if large else []
        each += [f"{label(name)} {', '.join(parts)}"] if parts else []
    return f"Times over {variant(PUBLISHED_OVER).label}'s, both in place: {'; '.join(each)}." if each else None


def timers_sentence(timed: Timed) -> str | None:
    """Where the two GPU timers disagree, and whether single calls of the kernel explain it."""
    replay, kernel = both_timers(timed)
    if not replay or not kernel:
        return None
    sentences = [
        f"Graph replay and kernel-only time agree within {percent(TOLERANCE)} above {FROM_US:.0f} µs, apart from up to "
        f"{GAP_US} µs between two launches."
    ]
    found = defaultdict(list)
    for one in disagreements(row for row in timed.all_rows if row.get("indexing") == timed.indexing):
        found[one.name].append(one)
    for name, ones in found.items():
        worst = ones[0]
        batches = sorted({one.replay["batch"] for one in ones})
        where = f"at B = {worst.replay['batch']} " if len(batches) > 1 else ""
        sentences.append(
            f"They disagree for {variant(name).label} at B = {listed(map(str, batches))}: {where}graph replay "
            f"gives {micro(worst.replay['median_us'])}, CUPTI {micro(worst.kernel['median_us'])}."
        )
        if worst.varies:
            low, high = (micro(worst.kernel[name]) for name in ("p20_us", "p80_us"))
            sentences.append(
                f"Its calls differ among themselves (from {low} to {high}, 20th to 80th percentile), and a replay "
                "averages over them."
            )
    return " ".join(sentences)


# ---- tables ---------------------------------------------------------------------------------------------------------


def by_label(by_variant: dict[str, dict[int, object]]) -> pandas.DataFrame:
    """{variant: {batch: value}} as a table: batches down, labels across, empty where there is no value."""
    table = pandas.DataFrame({variant(name).label: by_batch for name, by_batch in by_variant.items()})
    return table.sort_index().rename_axis("B")


def time_table(timed: Timed) -> pandas.DataFrame:
    """Median µs by batch (index) and variant (columns); empty cells were not timed."""
    return by_label(timed.times())


def how_indexed(row: dict) -> str:
    """How a call reaches its states: a kernel that takes no pool gathers and scatters them, whatever is asked."""
    return INDEXING["gather_scatter" if variant(name_of(row)).copies else row["indexing"]]


def detail_table(timed: Timed) -> pandas.DataFrame:
    """Every timed row of a run, all indexings and timers."""
    fields = ["median_us", "p20_us", "p80_us", "count", "gb_per_s", "share_of_roof", "max_abs_error"]
    lines = [
        {
            "B": row["batch"],
            "variant": variant(name_of(row)).label,
            "indexing": how_indexed(row),
            "timer": row["timer"],
        }
        | {field: row[field] for field in fields}
        for row in timed.all_rows
        if row.get("status") == "ok"
    ]
    return pandas.DataFrame(lines, columns=["B", "variant", "indexing", "timer", *fields])


def published_table() -> pandas.DataFrame:
    """The published times in µs and their ratios to FlashInfer's, by batch."""
    table = published_ratios()
    table["column"] = table.gpu + " " + table.kernel + f" ÷ {PUBLISHED_BASE}"
    wide = table.pivot(index="batch", columns="column", values="ratio")[list(dict.fromkeys(table.column))]
    return published_times().rename(columns=lambda column: f"{column}, µs").join(wide)


def next_to_published(timed: Timed) -> pandas.DataFrame:
    """In-place times in µs, then the published B200 columns, by batch; empty where one has no such batch."""
    return time_table(timed).join(published_times(), how="outer")


def ratio_table(timed: Timed) -> pandas.DataFrame:
    """The second table of a GPU, as text: bandwidth and gathered time of the fastest variant, ratios of the baselines.

    The fastest is that of the largest batch, of those that write the state in every step where one was timed. Ratios
    are over FlashInfer's, next to those published.
    """
    timed = timed.kernels()
    best = min(timed.at(timed.batches[-1]).values(), key=lambda row: (variant(name_of(row)).ring, row["median_us"]))
    name, text = name_of(best), variant(name_of(best)).label
    rows = {row["batch"]: row for row in timed.by_variant()[name]}
    moved = timed.selected(indexing="gather_scatter").times().get(name, {})
    over = timed.ratios_to(PUBLISHED_OVER)
    columns = {
        f"{text} GB/s": {batch: f"{row['gb_per_s']:,.0f}" for batch, row in rows.items()},
        "of measured bandwidth": {batch: percent(row["share_of_roof"]) for batch, row in rows.items()},
        "with gather, scatter": {batch: f"{us:,.1f} µs" for batch, us in moved.items()},
    }
    for baseline in timed.named("baseline"):
        columns[f"{variant(baseline).label} ÷ {variant(PUBLISHED_OVER).label}"] = {
            batch: f"{ratio:.2f}" for batch, ratio in over.get(baseline, {}).items()
        }
    theirs = published_ratios()
    for gpu, rows in theirs[theirs.kernel == PUBLISHED_BASELINE].groupby("gpu"):
        columns[f"published, {gpu}"] = {row.batch: f"{row.ratio:.2f}" for row in rows.itertuples()}
    table = pandas.DataFrame({column: pandas.Series(values, dtype=object) for column, values in columns.items()})
    return table.reindex(timed.batches).rename_axis("B")


def markdown_tables(timed: Timed) -> str:
    """The tables of a GPU: in-place medians in µs by variant, then ratio_table(). Eager PyTorch is left out.

    The medians of more than MOST_VARIANTS take two tables, so that a page shows them whole.
    """
    if not timed:
        return ""
    times = time_table(timed.kernels()).map(lambda us: "" if pandas.isna(us) else f"{us:,.1f}")
    half = times.shape[1] if times.shape[1] <= MOST_VARIANTS else (times.shape[1] + 1) // 2
    parts = [part for part in (times.iloc[:, :half], times.iloc[:, half:]) if part.shape[1]]
    tables = [table.fillna("").reset_index() for table in (*parts, ratio_table(timed))]
    texts = [
        table.to_markdown(index=False, disable_numparse=True, colalign=["right"] * table.shape[1]) for table in tables
    ]
    return "\n\n".join(["Median time of a call in place, µs:", *texts])
