"""What rows of decode say: ratios, tables and the sentences that answer the questions of notebooks 00, 01 and 02."""

import math
from typing import NamedTuple

import pandas

from ...report.recorded import published, published_ratios
from ...report.text import byte_size, gb, micro, number_range, percent
from ...report.timed import held_for, name_of, series, timed, times
from ..pool_layouts.formulas import slot_table, warp_load

INDEXING = {"in_place": "in place", "gather_scatter": "gather, run, scatter"}
GATHER_SCATTER_TRAFFIC = 3  # gather reads and writes the state, the kernel does, scatter does; in place only the kernel


def conditions(rows, run=None) -> str:
    """What the figures of timed rows hold for, in one line: device, heads, dtype, timer, count, roof."""
    if not rows:
        return ""
    heads = f"HK {rows[0]['num_k_heads']}, HV {rows[0]['num_v_heads']}"
    return held_for(f"T = 1 decode, {heads}, {rows[0]['state_dtype']} state", rows, run)


# ---- ratios ---------------------------------------------------------------------------------------------------------


def indexing_ratios(rows, timer=None) -> dict[str, dict[int, float]]:
    """{variant: {batch: time with gather and scatter over time in place}} where both were timed."""
    here = times(timed(rows, timer=timer))
    moved = times(timed(rows, indexing="gather_scatter", timer=timer))
    ratios = {
        name: {batch: moved[name][batch] / us for batch, us in of.items() if batch in moved.get(name, {})}
        for name, of in here.items()
    }
    return {name: of for name, of in ratios.items() if of}


def ratios_to(rows, over: str, timer=None) -> dict[str, dict[int, float]]:
    """{variant: {batch: its time over that of the variant `over`}}, in place, `over` itself left out."""
    of = times(timed(rows, timer=timer))
    base = of.pop(over, {})
    ratios = {name: {batch: us / base[batch] for batch, us in at.items() if batch in base} for name, at in of.items()}
    return {name: at for name, at in ratios.items() if at}


def layout_ratios(rows, timer=None) -> tuple[str, dict[str, dict[int, float]]]:
    """(VK variant, {KV variant of the same backend: {batch: its time over that one's}}), in place.

    Triton's is the VK variant that does not overlap its launch, as the KV ones do not: the memory order alone differs.
    """
    present = times(timed(rows, timer=timer))
    for base in ("triton/vk-serial", "triton/vk", "torch/vk"):
        ratios = ratios_to(rows, base, timer) if base in present else {}
        kv = {name: at for name, at in ratios.items() if name.startswith(f"{base.split('/')[0]}/kv")}
        if kv:
            return base, kv
    return "", {}


def published_band(smallest_batch=32) -> tuple[float, float]:
    """Least and greatest Triton over FlashInfer that the pull request published from `smallest_batch` up."""
    table = published_ratios()
    ratios = table.tri_over_fi[table.batch >= smallest_batch]
    return float(ratios.min()), float(ratios.max())


class Reproduction(NamedTuple):
    """Triton's KV baselines over FlashInfer from B = 32 up, held against the published Triton over FlashInfer."""

    band: tuple[float, float]  # published, least and greatest
    ranges: dict[str, tuple[float, float]]  # baseline -> least and greatest measured
    nearest: str | None  # the baseline whose ratios lie nearest; None: nothing measured

    @property
    def within(self) -> bool:
        """Whether the range of the nearest baseline touches the published one."""
        low, high = self.ranges[self.nearest]
        return low <= self.band[1] and high >= self.band[0]


def reproduction(rows, timer=None) -> Reproduction:
    """Which baseline reproduces the published 2.4 to 2.8 times, judged by the geometric middle of each range."""
    measured = ratios_to(rows, "flashinfer/vk", timer)
    band, ranges = published_band(), {}
    for name in ("triton/kv8", "triton/kv32"):
        at = [ratio for batch, ratio in measured.get(name, {}).items() if batch >= 32]
        if at:
            ranges[name] = (min(at), max(at))
    distance = {name: abs(math.log(low * high / (band[0] * band[1]))) for name, (low, high) in ranges.items()}
    return Reproduction(band, ranges, min(distance, key=distance.get, default=None))


# ---- sentences ------------------------------------------------------------------------------------------------------


def answers(rows) -> list[str]:
    """What in-place rows say to the question of notebook 02, a sentence each; only what the rows can answer."""
    drawn = timed(rows)
    if not drawn:
        return ["No row was timed, so nothing is answered."]
    sayings = (_say_fastest(drawn), _say_layout(drawn), _say_indexing(rows), _say_published(rows), _say_pair(rows))
    return [sentence for sentence in sayings if sentence]


def pool_answers(rows, model: str, tp: int) -> list[str]:
    """What formulas and rows say to the question of notebook 01, a sentence each."""
    kv8, kv32, vk = warp_load("KV", 8), warp_load("KV", 32), warp_load("VK", 32)
    said = [
        f"In bfloat16 a warp's load of {vk.used} B touches {len(kv8.sectors)} sectors in {len(kv8.lines)} cache lines "
        f"under KV with tiles of 8 and uses {kv8.used / kv8.fetched:.0%} of what it fetches; {len(kv32.sectors)} in "
        f"{len(kv32.lines)} with tiles of 32; {len(vk.sectors)} in {len(vk.lines)} under VK."
    ]
    sizes = [row for row in slot_table(tp) if row["model"] == model and "reason" not in row]
    each = " and ".join(f"{byte_size(row['state_bytes'] + row['conv_bytes'])} in {row['state_dtype']}" for row in sizes)
    where = f"on each of {tp} GPUs" if tp > 1 else "on one GPU"
    said.append(f"A request of {model} keeps {each} {where}, however long it is.")
    said += [sentence for sentence in (_say_layout(timed(rows)), _say_indexing(rows)) if sentence]
    return said


def _largest(of_variants) -> int:
    """The largest batch of {variant: {batch: …}}."""
    return max(batch for at in of_variants.values() for batch in at)


def _say_fastest(drawn) -> str:
    at, batch = series(drawn), max(row["batch"] for row in drawn)
    rows = [row for of in at.values() for row in of if row["batch"] == batch]
    best = min(rows, key=lambda row: row["median_us"])
    return (
        f"At B = {batch} {name_of(best)} is fastest: {micro(best['median_us'])}, {gb(best['gb_per_s'])} GB/s, "
        f"{percent(best['share_of_roof'])} of the roof measured beside it."
    )


def _say_layout(drawn) -> str | None:
    base, ratios = layout_ratios(drawn)
    if not ratios:
        return None
    batch = _largest(ratios)
    each = " and ".join(f"{at[batch]:.2f} ({name})" for name, at in ratios.items() if batch in at)
    return f"The memory order alone, KV over {base}, both in place, at B = {batch}: {each}."


def _say_indexing(rows) -> str | None:
    ratios = indexing_ratios(rows)
    if not ratios:
        return None
    ratios = {name: at for name, at in ratios.items() if not name.startswith("torch/")} or ratios
    batch = _largest(ratios)
    at = sorted((of[batch], name) for name, of in ratios.items() if batch in of)
    each = " to ".join(dict.fromkeys(f"{ratio:.2f} ({name})" for ratio, name in (at[0], at[-1])))
    told = f"Indexing the pool in place alone, gather and scatter over in place, at B = {batch}: {each}."
    share = _copies_share_of_roof(rows, batch, at[-1][1])
    if share is None:
        return told
    return f"{told} The gather and the scatter move their own bytes at {share:.0%} of the roof."


def _copies_share_of_roof(rows, batch: int, name: str) -> float | None:
    """Share of the roof that a variant's gather and scatter reach; each reads and writes every state once."""
    pair = {
        row["indexing"]: row for row in timed(rows, indexing=None) if name_of(row) == name and row["batch"] == batch
    }
    if len(pair) < 2:
        return None
    row = pair["in_place"]
    heads = row["num_v_heads"] * row["head_k_dim"] * row["head_v_dim"]
    moved = 4 * batch * heads * {"float32": 4, "bfloat16": 2, "float16": 2}[row["state_dtype"]]
    extra_us = pair["gather_scatter"]["median_us"] - row["median_us"]
    return moved / extra_us / 1e3 / row["roof_gb_per_s"] if extra_us > 0 else None


def _say_published(rows) -> str | None:
    found = reproduction(rows)
    if not found.nearest:
        return None
    each = " and ".join(f"{name} takes {number_range(at)}" for name, at in found.ranges.items())
    verdict = "reproduces them" if found.within else f"comes nearest, and stays {_side(found)} them"
    return (
        f"The pull request's {found.band[0]:.1f} to {found.band[1]:.1f} times FlashInfer's time (B from 32 up): here "
        f"{each} times; {found.nearest} {verdict}."
    )


def _side(found) -> str:
    return "below" if found.ranges[found.nearest][1] < found.band[0] else "above"


def _say_pair(rows) -> str | None:
    """Our VK kernels over FlashInfer's, small and large batches apart."""
    ratios, each = ratios_to(rows, "flashinfer/vk"), []
    notes = {"cutedsl/vk": "", "triton/vk": "", "triton/vk-serial": " (without overlapping its launch)"}
    for name, note in notes.items():
        at = ratios.get(name, {})
        large, small = ([r for batch, r in at.items() if keep(batch)] for keep in (lambda b: b >= 32, lambda b: b <= 8))
        said = [f"{number_range(of)} {where}" for of, where in ((small, "at B ≤ 8"), (large, "from B = 32 up")) if of]
        each += [f"{name}{note} {', '.join(said)}"] if said else []
    return f"Over flashinfer/vk, both in place: {'; '.join(each)}." if each else None


# ---- tables ---------------------------------------------------------------------------------------------------------


def time_table(rows, *, indexing="in_place", timer=None) -> pandas.DataFrame:
    """Median µs by batch (index) and variant (columns); empty cells were not timed."""
    table = pandas.DataFrame(times(timed(rows, indexing=indexing, timer=timer)))
    return table.sort_index().rename_axis("B")


def detail_table(rows) -> pandas.DataFrame:
    """Every timed row: batch, variant, indexing, timer, median, p20, p80, count, GB/s, share of the roof, error."""
    fields = ["median_us", "p20_us", "p80_us", "count", "gb_per_s", "share_of_roof", "max_abs_error"]
    lines = [
        {"B": row["batch"], "variant": name_of(row), "indexing": INDEXING[row["indexing"]], "timer": row["timer"]}
        | {field: row[field] for field in fields}
        for row in rows
        if row.get("status") == "ok"
    ]
    return pandas.DataFrame(lines, columns=["B", "variant", "indexing", "timer", *fields])


def check_table(rows) -> pandas.DataFrame:
    """A line for each variant: its largest errors against the oracle and what came of it."""
    lines = {}
    for row in rows:
        said = {"ok": "right", "wrong": "wrong"}.get(row["status"]) or f"refused: {row['reason']}"
        line = {"variant": name_of(row), "error of the output": row.get("max_abs_error")}
        line |= {"error of the new state": row.get("max_abs_error_state"), "verdict": said}
        lines.setdefault(name_of(row), line)
    return pandas.DataFrame(lines.values()).astype({"error of the output": float, "error of the new state": float})


def check_answers(rows) -> list[str]:
    """What checked rows say to the question of notebook 00."""
    verdicts = {name_of(row): row["status"] for row in rows}
    right, wrong, refused = ([name for name, of in verdicts.items() if of == s] for s in ("ok", "wrong", "refused"))
    said = [
        f"{len(right)} of {len(verdicts)} variants run here and agree with the oracle: {', '.join(right) or 'none'}."
    ]
    said += [f"{', '.join(wrong)} ran and disagree with it; do not use them here."] if wrong else []
    said += [f"{', '.join(refused)} cannot serve here, for the reasons in the table."] if refused else []
    return said


def beside_published(rows, timer=None) -> pandas.DataFrame:
    """Our in-place times in µs, then the published B200 columns, by batch; empty where one has no such batch."""
    theirs = published("decode_microbenchmark").rename(columns={"batch": "B"}).set_index("B")
    theirs.columns = ["B200 Triton KV", "B200 CuTe DSL VK", "B200 FlashInfer VK"]
    return time_table(rows, timer=timer).join(theirs, how="outer")


def markdown_table(rows) -> str:
    """The README's table: in-place medians in µs, bandwidth and share of the roof of triton/vk, the ratios."""
    of, moved = times(timed(rows)), times(timed(rows, indexing="gather_scatter"))
    ours = {row["batch"]: row for row in timed(rows) if name_of(row) == "triton/vk"}
    names = [name for name in of if not name.startswith("torch/")] or list(of)
    heads = ["B", *(f"{name} µs" for name in names)]
    heads += ["triton/vk GB/s", "of the roof", "with gather, scatter µs", "kv8 / flashinfer", "kv32 / flashinfer"]
    heads.append("published, B200")
    theirs = published_ratios().set_index("batch").tri_over_fi
    over = ratios_to(rows, "flashinfer/vk")
    lines = [heads, ["---:"] * len(heads)]
    for batch in sorted({batch for at in of.values() for batch in at}):
        row = ours.get(batch)
        cells = [str(batch), *(_cell(of[name].get(batch), "{:,.1f}") for name in names)]
        cells += [_cell(row and row["gb_per_s"], "{:,.0f}"), _cell(row and row["share_of_roof"], "{:.0%}")]
        cells.append(_cell(moved.get("triton/vk", {}).get(batch), "{:,.1f}"))
        cells += [_cell(over.get(name, {}).get(batch), "{:.2f}") for name in ("triton/kv8", "triton/kv32")]
        lines.append([*cells, _cell(theirs.get(batch), "{:.2f}")])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value, form: str) -> str:
    return "" if value is None else form.format(value)
