"""What rows of prefill say: tokens a second, share of the roof, the pool in place against the detour."""

import pandas

from ...backends.registry import VARIANTS
from ...report.recorded import published
from ...report.text import number_range
from ...report.timed import held_for, name_of, not_timed
from ...report.timed import timed as timed_rows

DETOUR = "detour"
NATIVE = {"triton/kv32": "triton/vk", "torch/kv": "torch/vk"}  # what the pool in place runs where the detour runs KV


def timed(rows) -> list[dict]:
    """The timed prefill rows of the first timer of rows.TIMER_ORDER that occurs."""
    return timed_rows([row for row in rows if row.get("phase") == "prefill"], indexing=None)


def workload(row) -> str:
    """ "8 × 1,024": sequences, and tokens of each."""
    return f"{row['batch']} × {row['length']:,}"


def label(row) -> str:
    """The variant, and whether by the detour."""
    return name_of(row) + (", detour" if row["indexing"] == DETOUR else "")


def order(rows) -> list[str]:
    """Labels in the order of VARIANTS, in place before the detour."""
    rank = {name: place for place, name in enumerate(VARIANTS)}
    found = {label(row): (row["indexing"] == DETOUR, rank.get(name_of(row), 99), name_of(row)) for row in rows}
    return sorted(found, key=found.get)


def time_table(rows) -> pandas.DataFrame:
    """Median µs: a line for each number of heads and workload, a column for each variant."""
    rows, lines = timed(rows), {}
    for row in rows:
        key = (row["num_v_heads"], row["batch"], row["length"])
        line = lines.setdefault(key, {"HV": key[0], "sequences × tokens": workload(row)})
        line[label(row)] = row["median_us"]
    return pandas.DataFrame(lines.values(), columns=["HV", "sequences × tokens", *order(rows)] if rows else None)


def detail_table(rows) -> pandas.DataFrame:
    """Each timed row: tokens a second, GB/s, share of the roof, TFLOP/s, the largest error."""
    lines = []
    for row in timed(rows):
        line = {"HV": row["num_v_heads"], "sequences × tokens": workload(row), "variant": label(row)}
        line |= {"µs": row["median_us"], "p20": row["p20_us"], "p80": row["p80_us"]}
        line |= {"thousand tokens/s": row["tokens_per_s"] / 1e3, "GB/s": row["gb_per_s"]}
        line |= {"% of roof": 100 * row["share_of_roof"], "TFLOP/s": row["tflops"], "L2": row["l2"]}
        lines.append(line | {"largest error": row["max_abs_error"]})
    return pandas.DataFrame(lines)


def ratios(rows, over: str) -> dict[str, list[float]]:
    """{label: its time over that of the variant `over` in place, for each workload that has both}."""
    rows = timed(rows)
    base = {point(row): row["median_us"] for row in rows if label(row) == over}
    found: dict[str, list[float]] = {}
    for row in rows:
        if label(row) != over and point(row) in base:
            found.setdefault(label(row), []).append(row["median_us"] / base[point(row)])
    return found


def point(row) -> tuple[int, int, int]:
    """What is compared with what: (HV, sequences, length)."""
    return row["num_v_heads"], row["batch"], row["length"]


def detour_ratios(rows) -> dict[str, dict[tuple, float]]:
    """{variant on the pool in place: {(HV, sequences, length): time by the detour over its time}}."""
    rows = timed(rows)
    here = {(label(row), point(row)): row["median_us"] for row in rows}
    found: dict[str, dict[tuple, float]] = {}
    for row in rows:
        native = NATIVE.get(name_of(row))
        if row["indexing"] == DETOUR and (native, point(row)) in here:
            found.setdefault(native, {})[point(row)] = row["median_us"] / here[native, point(row)]
    return found


def answers(rows) -> list[str]:
    """Sentences that answer the notebook's question."""
    mine = timed(rows)
    if not mine:
        return ["Nothing was timed here.", *not_timed(rows)]
    own = "triton/vk" if any(label(row) == "triton/vk" for row in mine) else label(mine[0])
    best = max((row for row in mine if label(row) == own), key=lambda row: row["tokens_per_s"] * row["num_v_heads"])
    sentences = [
        f"{own} reaches {_many(best['tokens_per_s'])} tokens a second at {workload(best)} with "
        f"{best['num_v_heads']} value heads: {best['share_of_roof']:.0%} of the roof, {best['tflops']:,.3g} TFLOP/s."
    ]
    sentences.append(f"{fastest(rows)}.")
    for name, found in ratios(rows, own).items():
        if not name.endswith(DETOUR):
            sentences.append(f"{name} takes {number_range(found)} times as long as {own} in place.")
    for name, found in detour_ratios(rows).items():
        ahead = "is ahead at every size" if min(found.values()) > 1 else "is not ahead at every size"
        sentences.append(
            f"The detour by way of KV takes {number_range(found.values())} times as long as {name} in place: "
            f"the pool in place {ahead}."
        )
    return sentences + not_timed(rows)


def fastest(rows) -> str:
    """Who takes the least time, and at how many of the workloads: "triton/vk is fastest at 5 of 6 workloads"."""
    best = {}
    for row in timed(rows):
        at = best.setdefault(point(row), row)
        best[point(row)] = min(at, row, key=lambda row: row["median_us"])
    names = [label(row) for row in best.values()]
    name = max(names, key=names.count)
    return f"{name} is fastest at {names.count(name)} of {len(names)} workload{'s' * (len(names) > 1)}"


def _many(number: float) -> str:
    """ "15.1 million", "8,512"."""
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,.0f}"


def beside_first(rows) -> pandas.DataFrame:
    """The workloads that were measured before this workbook could prefill, 64 value heads: median µs of each variant of
    `rows`, in place, then those figures. data/published/first_measurements/prefill.csv says how they were made."""
    rows = [row for row in timed(rows) if row["num_v_heads"] == 64]
    lines, names = [], [name for name in order(rows) if not name.endswith(DETOUR)]
    here = {(row["batch"], row["length"], label(row)): row["median_us"] for row in rows}
    for before in published("prefill", "first_measurements").itertuples():
        line = {"sequences × tokens": f"{before.sequences} × {before.length:,}"}
        line |= {name: here.get((before.sequences, before.length, name)) for name in names}
        lines.append(line | {"flashinfer, before": before.flashinfer_us, "fla, before": before.fla_us})
    return pandas.DataFrame(lines).dropna(axis="columns", how="all")


def conditions(rows) -> str:
    """What the times hold for, in one line."""
    rows = timed(rows)
    if not rows:
        return "nothing was timed"
    return held_for(f"{rows[0]['state_dtype']} state, {rows[0]['io_dtype']} inputs", rows)
