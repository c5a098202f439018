"""What rows of serving say: what a backend is worth to a server at each concurrency, and why."""

from typing import NamedTuple

import pandas

from ...report.recorded import published
from .serving_rows import GDN_KERNEL, Point, ServingRows
from .tpot import breakdown, gap_share, kernel_share, step_spread, unexplained

BEFORE, AFTER = "before", "after"  # what the pull request compares
FAIR, BEST = "before-32", "best"  # the fastest Triton kernel on a KV pool, and the fastest here


class Worth(NamedTuple):
    """What one configuration is worth over another at one concurrency.

    change: of TPOT, as a share; negative is faster. kernel_share: of the GDN kernels in the first one's TPOT.
    kernel_speed: the first one's time of the GDN kernel over the second's. expected: the change of TPOT if nothing but
    the GDN kernel changed. None where the kernel was not timed.
    """

    concurrency: int
    before_ms: float
    after_ms: float
    kernel_share: float | None
    kernel_speed: float | None
    expected: float | None

    @property
    def change(self) -> float:
        return self.after_ms / self.before_ms - 1


def worth(rows: ServingRows, before: str = BEFORE, after: str = AFTER) -> list[Worth]:
    """What `after` is worth over `before` wherever both were served, by concurrency."""
    found = []
    for concurrency in rows.concurrencies:
        points = rows.at(concurrency)
        if before in points and after in points:
            found.append(_worth(concurrency, points[before], points[after]))
    return found


def _worth(concurrency: int, first: Point, second: Point) -> Worth:
    share = speed = expected = None
    if GDN_KERNEL in first.parts and GDN_KERNEL in second.parts:
        old, new = first.part_us(GDN_KERNEL), second.part_us(GDN_KERNEL)
        share, speed, expected = kernel_share(first), old / new, (new - old) / first.tpot_us
    return Worth(concurrency, first.run["tpot_ms"], second.run["tpot_ms"], share, speed, expected)


def compared(rows: ServingRows) -> tuple[str, str] | None:
    """The pair that the question is about: BEFORE and AFTER; without them the first and the last configuration."""
    names = rows.configurations
    pair = (BEFORE, AFTER) if {BEFORE, AFTER} <= set(names) else (names[0], names[-1]) if len(names) > 1 else None
    return pair if pair and worth(rows, *pair) else None


def shown_point(rows: ServingRows) -> Point | None:
    """The point of the waterfall: the last configuration with a breakdown, at rows.compared_at if one has it there."""
    able = [point for point in rows.points.values() if breakdown(point)]
    able = [point for point in able if point.concurrency == rows.compared_at] or able
    order = {name: place for place, name in enumerate(rows.configurations)}
    return max(able, key=lambda point: (point.concurrency, order[point.configuration]), default=None)


# ---- tables ---------------------------------------------------------------------------------------------------------


def point_table(rows: ServingRows) -> pandas.DataFrame:
    """A line for each concurrency and configuration: throughput, TPOT, ITL, TTFT, steps, energy."""
    lines = []
    for concurrency in rows.concurrencies:
        for name, point in rows.at(concurrency).items():
            run, spread = point.run, step_spread(point)
            lines.append(
                {
                    "C": concurrency,
                    "configuration": name,
                    "output tokens/s": run["output_throughput"],
                    "total tokens/s": run["total_throughput"],
                    "TPOT, ms": run["tpot_ms"],
                    "ITL per chunk, ms": run["itl_chunk_ms"],
                    "TTFT, ms": run["ttft_ms"],
                    "tokens/s/user": run["tokens_per_s_user"],
                    "step on the GPU, ms, p20": spread[0] / 1e3 if spread else None,
                    "p80": spread[1] / 1e3 if spread else None,
                    "host gap, %": _percent(gap_share(point)),
                    "J/token": run.get("joules_per_token"),
                }
            )
    return pandas.DataFrame(lines).dropna(axis="columns", how="all")


def breakdown_table(rows: ServingRows, concurrency: int | None = None) -> pandas.DataFrame:
    """µs of TPOT: a line for each part, a column for each configuration, at one C; by default rows.compared_at."""
    concurrency = concurrency or rows.compared_at
    columns = {name: breakdown(point) for name, point in rows.at(concurrency).items()}
    columns = {name: parts for name, parts in columns.items() if parts}
    if not columns:
        return pandas.DataFrame()
    order = list(dict.fromkeys(part for parts in columns.values() for part in parts))
    table = pandas.DataFrame(columns).reindex(order)
    table.loc["TPOT, measured"] = {name: rows.points[name, concurrency].tpot_us for name in columns}
    return table.rename_axis("part").reset_index()


def worth_table(rows: ServingRows) -> pandas.DataFrame:
    """What the compared configurations are worth at each concurrency, and why."""
    pair = compared(rows)
    if pair is None:
        return pandas.DataFrame()
    before, after = pair
    return pandas.DataFrame(
        [
            {
                "C": one.concurrency,
                f"TPOT of {before}, ms": one.before_ms,
                f"TPOT of {after}, ms": one.after_ms,
                "change, %": 100 * one.change,
                "GDN kernels, % of TPOT": _percent(one.kernel_share),
                "kernel's speed, ×": one.kernel_speed,
                "change by the kernel alone, %": _percent(one.expected),
            }
            for one in worth(rows, *pair)
        ]
    ).dropna(axis="columns", how="all")


PUBLISHED_C = 256  # requests in flight in the pull request's table
PUBLISHED = {  # the metrics of the pull request's table, as fields of a run row
    "output throughput": "output_throughput",
    "TPOT": "tpot_ms",
    "mean ITL": "itl_chunk_ms",
    "total throughput": "total_throughput",
}


def published_pair(rows: ServingRows) -> pandas.DataFrame:
    """The pull request's table, and next to it `before` and `after` as served here, at its C if they have it."""
    table = published("end_to_end")
    names = {"triton": "PR: Triton", "flashinfer": "PR: FlashInfer", "change_percent": "PR: change, %"}
    shared = [concurrency for concurrency in rows.concurrencies if {BEFORE, AFTER} <= set(rows.at(concurrency))]
    shown = table.rename(columns=names)
    if not shared or rows.toy:
        return shown
    at = PUBLISHED_C if PUBLISHED_C in shared else shared[-1]
    for name in (BEFORE, AFTER):
        run = rows.points[name, at].run
        shown[f"{name}, C = {at}"] = [run[PUBLISHED[metric]] for metric in table.metric]
    before, after = shown.columns[-2:]
    shown["change, %"] = 100 * (shown[after] / shown[before] - 1)
    return shown


def speculation_table(rows: ServingRows) -> pandas.DataFrame:
    """A line for each run with draft tokens: tokens per second against those without, at the same concurrency."""
    lines = []
    for point in rows.speculation:
        plain = rows.points.get((point.configuration, point.concurrency))
        lines.append(
            {
                "configuration": point.configuration,
                "C": point.concurrency,
                "T": point.run["draft_tokens"],
                "acceptance": point.run["acceptance"],
                "output tokens/s": point.run["output_throughput"],
                "speed-up": point.run["output_throughput"] / plain.run["output_throughput"] if plain else None,
                "TPOT, ms": point.run["tpot_ms"],
                "ITL per chunk, ms": point.run["itl_chunk_ms"],
            }
        )
    return pandas.DataFrame(lines)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


# ---- what others published ------------------------------------------------------------------------------------------


def published_serving() -> pandas.DataFrame:
    """Published figures of whole servers, data/published/serving.csv: each with its source and what differs."""
    return published("serving", "")


def published_table(rows: ServingRows) -> pandas.DataFrame:
    """Published figures of this model, or of all models where there are none of it; then what was served here."""
    table = published_serving()
    model = rows.first["model"] if rows else None
    table = table[table.model == model] if (table.model == model).any() else table
    columns = {
        "model": "model",
        "gpus": "GPUs",
        "concurrency": "C",
        "output_tokens_per_s": "output tokens/s",
        "tpot_ms": "TPOT, ms",
        "total_tokens_per_s_gpu": "total tokens/s/GPU",
        "tokens_per_s_user": "tokens/s/user",
        "what_differs": "how it differs from what runs here",
        "source": "source",
    }
    theirs = table[[*columns]].rename(columns=columns)
    return pandas.concat([pandas.DataFrame(_own_lines(rows)), theirs], ignore_index=True)[list(columns.values())]


def _own_lines(rows: ServingRows) -> list[dict]:
    if not rows or rows.toy:
        return [dict.fromkeys(("model",), None)][:0]
    name = BEST if BEST in rows.configurations else rows.configurations[-1]
    return [
        {
            "model": point.run["model"],
            "GPUs": rows.place().split(",")[0],
            "C": concurrency,
            "output tokens/s": point.run["output_throughput"],
            "TPOT, ms": point.run["tpot_ms"],
            "total tokens/s/GPU": point.run["total_throughput"] / point.run["tp"],
            "tokens/s/user": point.run["tokens_per_s_user"],
            "how it differs from what runs here": f"this workbook, {name}",
            "source": "this workbook",
        }
        for (own, concurrency), point in sorted(rows.points.items())
        if own == name
    ]


def largest_unexplained(rows: ServingRows) -> tuple[float, Point] | None:
    """The largest unexplained share of TPOT over all points, with its sign, and where."""
    found = [(share, point) for point in rows.points.values() if (share := unexplained(point)) is not None]
    return max(found, key=lambda one: abs(one[0]), default=None)
