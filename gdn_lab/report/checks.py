"""What was checked, without the times: for a machine without a GPU, whose times rank nothing."""

import pandas

from ..backends.registry import variant
from .text import listed
from .timed import name_of

WHOLE = "step"  # the part of a step that is all of it
SIZES = {"batch": "B", "tokens": "T"}
ERRORS = {"largest error of o": "max_abs_error", "largest error of the state": "max_abs_error_state"}


def check_table(rows: list[dict]) -> pandas.DataFrame:
    """Return a line for each kernel and call that ran: sizes, verdict, largest errors, and on what inputs.

    A step's line is of all its parts, which are checked together. A column that says nothing of any line is left out.
    """
    lines = {}
    for row in rows:
        if row["status"] in ("ok", "wrong") and row.get("part", WHOLE) == WHOLE:
            lines.setdefault((_name(row), _call(row)), []).append(row)
    table = pandas.DataFrame([{"kernel": name, "call": call} | _line(same) for (name, call), same in lines.items()])
    return table.drop(columns=[name for name in table if table[name].isin(["", float("nan")]).all()])


def check_caption(rows: list[dict]) -> str:
    """Return what was checked where: "Checked on this CPU, and not ranked, at HK 1, HV 4"."""
    heads = dict.fromkeys(
        f"HK {row['num_k_heads']}, HV {row['num_v_heads']}" for row in rows if row["status"] in ("ok", "wrong")
    )
    return f"Checked on this CPU, and not ranked, at {listed(heads)}" if heads else "Nothing was checked"


def _name(row: dict) -> str:
    if "configuration" in row:
        return row["configuration"]
    return variant(name_of(row)).label


def _call(row: dict) -> str:
    words = [row.get("part") or row["phase"], row.get("mode"), row.get("indexing")]
    return " ".join(str(word).replace("_", " ") for word in words if word)


def _line(rows: list[dict]) -> dict:
    sizes = {short: listed(map(str, sorted({row[name] for row in rows}))) for name, short in SIZES.items()}
    errors = {name: [row[field] for row in rows if row.get(field) is not None] for name, field in ERRORS.items()}
    wrong = any(row["status"] == "wrong" for row in rows)
    found = {name: max(values, default=float("nan")) for name, values in errors.items()}
    inputs = list(dict.fromkeys(kind for row in rows for kind in row.get("checked", ())))
    return sizes | {"verdict": "wrong" if wrong else "right"} | found | {"inputs": ", ".join(inputs)}
