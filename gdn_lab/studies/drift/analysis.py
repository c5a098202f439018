"""What rows of the drift study say: final errors, whether they grow, what each way costs. Imports no torch."""

import math

from ...models import STATE_BYTES, GDNShape, model, slot_nbytes
from ...report.nearest import candidate_runs
from ...report.recorded import DATA

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
    ("float8_e4m3fn", "stochastic"),
)
DEFERRED = "triton/replay-fp8"  # the only one with an FP8 state
FAST = "fast exponentials"  # the shortcut of cutedsl: its inputs are bfloat16, as those without a shortcut
ENOUGH = 0.02  # of the output's error that counts as enough: about 5 times what rounding the output to bfloat16 costs
STATE, OUTPUT, RETURNED = "state_error", "output_error_of_state", "output_error"
WORST = "output_error_of_state_worst"  # of the worst head of any request; OUTPUT is the median over them


def recorded_rows(gpu: str, data=DATA) -> tuple[dict, list[dict]]:
    """(run, rows) recorded on a GPU, of several runs the first folder's, or of a run folder; ({}, []) of none."""
    return next(iter(candidate_runs(gpu, NOTEBOOK, data).values()), ({}, []))


def precision(dtype: str, rounding: str) -> str:
    """ "bfloat16", "bfloat16, stochastic"."""
    return dtype if rounding == "nearest" else f"{dtype}, {rounding}"


def regime(row: dict) -> str:
    """ "typical / full rank", gates and keys; "as trained" brings its own keys."""
    return row["gates"] if row["keys"] == "its own" else f"{row['gates']} / {row['keys']}"


def of_ways(rows: list[dict]) -> list[dict]:
    """Rows with errors over steps, but for ways that were wrong: what a broken kernel drifts says nothing."""
    wrong = wrong_ways(rows)
    return [row for row in rows if STATE in row and row["way"] not in wrong]


def wrong_ways(rows: list[dict]) -> set[str]:
    """Ways that were further from the float64 reference, in one step before timing, than tolerated."""
    return {row["way"] for row in rows if row["status"] == "wrong"}


def of_regimes(rows: list[dict]) -> list[dict]:
    """A regime's own rows: magnitudes and decay."""
    return [row for row in rows if "largest_state" in row]


def timed(rows: list[dict]) -> list[dict]:
    """Rows with the time of a step."""
    return [row for row in rows if row["status"] == "ok" and "median_us" in row and "way" in row]


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
    """{precision: row} of the main backend in a regime, FP8 of the one that has it, bfloat16 inputs."""
    main = main_backend(rows)
    found = {
        (row["state_dtype"], row["rounding"]): row
        for row in of_ways(rows)
        if regime(row) == where and backend_of(row) in (main, DEFERRED) and not row["shortcut"]
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
    found = [row for row in of_ways(rows) if regime(row) == where and row["shortcut"] not in ("", FAST)]
    return {row["shortcut"]: row for row in found}


def fast_exponentials(rows: list[dict]) -> dict[str, tuple[dict, dict]]:
    """{regime: (row of fast exponentials, row of exact ones on the same backend)}."""
    found = {}
    for row in of_ways(rows):
        exact = backends(rows, regime(row), row["state_dtype"]).get(backend_of(row))
        if row["shortcut"] == FAST and exact is not None:
            found[regime(row)] = row, exact
    return found


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
    """Whether an error no longer grows over the last decade of steps, and is finite."""
    return math.isfinite(final(row, name)) and growth(row, name) < FLAT


def settled_after(row: dict, name: str = STATE) -> int:
    """The first step whose error is 0.9 of the last one or more."""
    last = final(row, name)
    found = zip(row["steps"], row[name], strict=True)
    return next((step for step, error in found if error is not None and error >= 0.9 * last), row["steps"][-1])


def gb_of_1000(row: dict, dtype: str = "") -> float:
    """GB that 1,000 requests' states and windows take on one of tp GPUs in all GDN layers of a timed row's model."""
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
