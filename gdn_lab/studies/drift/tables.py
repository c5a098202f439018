"""Tables of the drift study."""

import pandas

from ...report.text import token_count
from . import analysis


def error_table(rows: list[dict], name: str = analysis.STATE) -> pandas.DataFrame:
    """The last error of each precision (columns) in each regime, on the main backend."""
    lines = []
    for where in analysis.regimes(rows):
        errors = {f"error, {kind}": analysis.final(row, name) for kind, row in analysis.precisions(rows, where).items()}
        lines.append({"gates / keys": where} | errors)
    return pandas.DataFrame(lines)


def shortcut_table(rows: list[dict], where: str) -> pandas.DataFrame:
    """A line for each way in one regime: errors of state and output, growth, µs of a step, against float32 on it."""
    us = {row["way"]: row["median_us"] for row in analysis.timed(rows)}
    lines = []
    for row in analysis.of_ways(rows):
        if analysis.regime(row) != where:
            continue
        lines.append(
            {
                "way": row["way"],
                "error of state": analysis.final(row),
                "error of output": analysis.final(row, analysis.OUTPUT),
                "of state grows as step to the": round(analysis.growth(row), 2),
                "µs a step": us.get(row["way"]),
            }
        )
    return pandas.DataFrame(lines)


def magnitude_table(rows: list[dict]) -> pandas.DataFrame:
    """The largest |S| of each regime, how near it is to float16's limit, and how fast its heads decay."""
    return pandas.DataFrame(
        {
            "gates / keys": analysis.regime(row),
            "half-life, tokens (p5)": token_count(row["half_life_p5_p50_p95"][0]),
            "half-life, tokens (median)": token_count(row["half_life_p5_p50_p95"][1]),
            "half-life, tokens (p95)": token_count(row["half_life_p5_p50_p95"][2]),
            "largest |v|": row["largest_value"],
            "largest |S|": max(row["largest_state"]),
            "times below float16's limit": 1 / row["share_of_float16_limit"],
            "% below its normal numbers": 100 * row["share_below_float16_normal"],
        }
        for row in analysis.of_regimes(rows)
    )


def cost_table(rows: list[dict]) -> pandas.DataFrame:
    """µs of a step, GB of 1,000 requests' slots in all GDN layers of the model, and requests that fit, by way."""
    lines = []
    for row in analysis.timed(rows):
        gb = analysis.gb_of_1000(row)
        lines.append({"way": row["way"], "µs a step": row["median_us"], "GB of 1,000 slots": gb})
        lines[-1]["slots of 100 GB"] = int(100 / gb * 1000)
    return pandas.DataFrame(lines)
