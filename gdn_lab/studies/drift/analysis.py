"""What rows of the drift study say: final errors, whether they grow, what each way costs. Imports no torch."""

import math

import pandas

from ...models import STATE_BYTES, model, slot_nbytes

NOTEBOOK = "10_drift"
FLAT = 0.15  # power of the step below which an error counts as settled
DECADE = 10  # growth is fitted over the last steps, from a tenth of them on
MAIN = ("triton/vk", "torch/vk")  # whose rows have every rounding and shortcut, on a GPU and on a CPU
PRECISIONS = (
    ("float32", "nearest"),
    ("bfloat16", "nearest"),
    ("float16", "nearest"),
    ("bfloat16", "stochastic"),
    ("float16", "stochastic"),
)
ENOUGH = 0.02  # of the output's error that counts as enough: about 5 times what rounding the output to bfloat16 costs
STATE, OUTPUT, RETURNED = "state_error", "output_error_of_state", "output_error"


def precision(dtype: str, rounding: str) -> str:
    """ "bfloat16", "bfloat16, stochastic"."""
    return dtype if rounding == "nearest" else f"{dtype}, {rounding}"


def regime(row: dict) -> str:
    """ "typical / full rank", gates and keys; "as trained" brings its own keys."""
    return row["gates"] if row["keys"] == "its own" else f"{row['gates']} / {row['keys']}"


def of_ways(rows: list[dict]) -> list[dict]:
    """Rows with errors over steps."""
    return [row for row in rows if STATE in row]


def of_regimes(rows: list[dict]) -> list[dict]:
    """A regime's own rows: magnitudes and decay."""
    return [row for row in rows if "largest_state" in row]


def timed(rows: list[dict]) -> list[dict]:
    """Rows with the time of a step."""
    return [row for row in rows if "median_us" in row and "way" in row]


def main_backend(rows: list[dict]) -> str:
    """The backend whose rows have every precision: Triton's, on a CPU eager PyTorch."""
    there = {backend_of(row) for row in of_ways(rows)}
    return next((name for name in MAIN if name in there), MAIN[-1])


def backend_of(row: dict) -> str:
    return f"{row['backend']}/{row['variant']}"


def regimes(rows: list[dict]) -> list[str]:
    """Names of the regimes, in the order of the rows."""
    return list(dict.fromkeys(regime(row) for row in of_ways(rows)))


def precisions(rows: list[dict], where: str) -> dict[str, dict]:
    """{precision: row} of the main backend in a regime, bfloat16 inputs."""
    main = main_backend(rows)
    found = {
        (row["state_dtype"], row["rounding"]): row
        for row in of_ways(rows)
        if regime(row) == where and backend_of(row) == main and not row["shortcut"]
    }
    return {precision(*key): found[key] for key in PRECISIONS if key in found}


def backends(rows: list[dict], where: str, dtype: str = "float32") -> dict[str, dict]:
    """{backend: row} of a dtype rounded to nearest in a regime, bfloat16 inputs."""
    return {
        backend_of(row): row
        for row in of_ways(rows)
        if regime(row) == where and row["state_dtype"] == dtype and row["rounding"] == "nearest" and not row["shortcut"]
    }


def shortcuts(rows: list[dict], where: str) -> dict[str, dict]:
    """{what of the gates is rounded to bfloat16: row}, of float32 state and inputs, in a regime."""
    return {row["shortcut"]: row for row in of_ways(rows) if regime(row) == where and row["shortcut"]}


def final(row: dict, name: str = STATE) -> float:
    """The last error of a row; infinity where a number was not finite."""
    last = row[name][-1]
    return math.inf if last is None else last


def growth(row: dict, name: str = STATE) -> float:
    """The power of the step with which an error grows over the last decade of steps, by least squares in logarithms."""
    last = row["steps"][-1]
    points = [
        (math.log(step), math.log(error))
        for step, error in zip(row["steps"], row[name], strict=True)
        if step * DECADE >= last and error
    ]
    if len(points) < 2:
        return 0.0
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    square = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / square


def settles(row: dict, name: str = STATE) -> bool:
    """Whether an error no longer grows over the last decade of steps."""
    return growth(row, name) < FLAT


def settled_after(row: dict, name: str = STATE) -> int:
    """The first step whose error is 0.9 of the last one or more."""
    last = final(row, name)
    found = zip(row["steps"], row[name], strict=True)
    return next((step for step, error in found if error is not None and error >= 0.9 * last), row["steps"][-1])


# ---- tables


def error_table(rows: list[dict], name: str = STATE) -> pandas.DataFrame:
    """The last error of each precision (columns) in each regime, on the main backend."""
    lines = []
    for where in regimes(rows):
        errors = {f"error, {kind}": final(row, name) for kind, row in precisions(rows, where).items()}
        lines.append({"gates / keys": where} | errors)
    return pandas.DataFrame(lines)


def backend_table(rows: list[dict]) -> pandas.DataFrame:
    """The last error of a float32 state on each backend (columns) in each regime."""
    lines = []
    for where in regimes(rows):
        errors = {f"error, {name}": final(row) for name, row in backends(rows, where).items()}
        lines.append({"gates / keys": where} | errors)
    return pandas.DataFrame(lines)


def shortcut_table(rows: list[dict], where: str) -> pandas.DataFrame:
    """A line for each way in one regime: errors of state and output, growth, µs of a step, against float32 on it."""
    us = {row["way"]: row["median_us"] for row in timed(rows)}
    lines = []
    for row in of_ways(rows):
        if regime(row) != where:
            continue
        lines.append(
            {
                "way": row["way"],
                "error of state": final(row),
                "error of output": final(row, OUTPUT),
                "of state grows as step to the": round(growth(row), 2),
                "µs a step": us.get(row["way"]),
            }
        )
    return pandas.DataFrame(lines)


def magnitude_table(rows: list[dict]) -> pandas.DataFrame:
    """The largest |S| of each regime, how near it is to float16's limit, and how fast its heads decay."""
    return pandas.DataFrame(
        {
            "gates / keys": regime(row),
            "half-life, tokens (p5)": row["half_life_p5_p50_p95"][0],
            "half-life, tokens (median)": row["half_life_p5_p50_p95"][1],
            "half-life, tokens (p95)": row["half_life_p5_p50_p95"][2],
            "largest |v|": row["largest_value"],
            "largest |S|": max(row["largest_state"]),
            "times below float16's limit": 1 / row["share_of_float16_limit"],
            "% below its normal numbers": 100 * row["share_below_float16_normal"],
        }
        for row in of_regimes(rows)
    )


def cost_table(rows: list[dict]) -> pandas.DataFrame:
    """µs of a step, GB of 1,000 requests' slots in all GDN layers of the model, and requests that fit, by way."""
    lines = []
    for row in timed(rows):
        gb = gb_of_1000(row)
        lines.append({"way": row["way"], "µs a step": row["median_us"], "GB of 1,000 slots": gb})
        lines[-1]["slots of 100 GB"] = int(100 / gb * 1000)
    return pandas.DataFrame(lines)


def gb_of_1000(row: dict, dtype: str = "") -> float:
    """GB that 1,000 requests' states and windows take on one of tp GPUs in all GDN layers of a timed row's model."""
    from ...models import GDNShape

    nbytes = slot_nbytes(GDNShape.from_model(row["model"], row["tp"]), STATE_BYTES[dtype or row["state_dtype"]])
    return 1000 * model(row["model"]).gdn_layers * sum(nbytes.values()) / 1e9


# ---- conditions


def conditions(rows: list[dict]) -> str:
    """What the errors hold for, in one line."""
    ways = of_ways(rows)
    if not ways:
        return "nothing was run"
    row = ways[0]
    heads = "HK {num_k_heads}, HV {num_v_heads}, heads of {head_k_dim} × {head_v_dim}".format(**row)
    requests = f"{row['batch']} request{'s' * (row['batch'] > 1)}"
    return (
        f"{heads}, {requests}, {row['steps'][-1]:,} decode steps from an empty state; errors relative to a float64 run "
        "of the same bfloat16 inputs, median over requests and heads"
    )
