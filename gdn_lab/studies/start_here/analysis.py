"""What checked rows say to the question of notebook 00, the table of models, and the guide to the other notebooks."""

import pandas

from ...backends.registry import variant
from ...models import MODELS
from ...report.text import listed
from ...report.timed import Timed, is_outside, name_of
from .. import studies
from .study import STUDY


def latest_rows(timed: Timed) -> dict[str, dict]:
    """{variant: the last row of it}, in the order of the rows, whatever came of it."""
    return {name_of(row): row for row in timed.all_rows}


def check_table(timed: Timed) -> pandas.DataFrame:
    """A line for each variant: its largest absolute errors against the float64 reference and the verdict."""
    lines = [
        {
            "variant": variant(name).label,
            "state": row.get("state_dtype", ""),
            "error of the output": row.get("max_abs_error"),
            "error of the new state": row.get("max_abs_error_state"),
            "verdict": _verdict(row),
        }
        for name, row in latest_rows(timed).items()
    ]
    return pandas.DataFrame(lines).astype({"error of the output": float, "error of the new state": float})


def _verdict(row: dict) -> str:
    """ "right"; "outside the tolerance" or "wrong" with the inputs on which; or "refused" with the reason."""
    if row["status"] == "refused":
        return f"refused: {row['reason']}"
    if row["status"] == "wrong":
        return f"wrong: {listed(row['wrong_on'])}" if row.get("wrong_on") else "wrong"
    return f"outside the tolerance on {listed(row['wrong_on'])}" if is_outside(row) else "right"


def check_answers(timed: Timed) -> list[str]:
    """Which variants run here and are right, which are wrong, which refuse: a sentence each."""
    rows = latest_rows(timed)
    usual = next((row["state_dtype"] for row in rows.values() if "state_dtype" in row), None)
    right, wrong, refused = (
        [_named(name, row, usual) for name, row in rows.items() if row["status"] == status and not is_outside(row)]
        for status in ("ok", "wrong", "refused")
    )
    sentences = [
        f"{len(right)} of {len(rows)} variants run here and agree with the reference: {listed(right) or 'none'}."
    ]
    sentences += [f"{listed(wrong)} ran and disagree with it; do not use them here."] if wrong else []
    sentences += timed.outside_tolerance()
    sentences += [f"{listed(refused)} cannot serve here, for the reasons in the table."] if refused else []
    return sentences


def _named(name: str, row: dict, usual: str | None) -> str:
    """The variant, with the dtype of its state where that is another than the others'."""
    dtype = row.get("state_dtype", usual)
    return variant(name).label + (f" (a state of {dtype})" if dtype != usual else "")


def model_table() -> pandas.DataFrame:
    """The model table: a line for each model, with all that is known of it, and whether that was checked."""
    columns = {
        "hidden": "hidden size",
        "gdn_layers": "GDN layers",
        "num_k_heads": "HK",
        "num_v_heads": "HV",
        "attn_q_heads": "attention q heads",
        "attn_kv_heads": "attention kv heads",
        "top_k": "experts per token",
    }
    lines = []
    for name, model in MODELS.items():
        sizes = {columns.get(field, field.replace("_", " ")): size for field, size in model._asdict().items()}
        lines.append({"model": name} | sizes | {"checked": "✓" if model.checked else "no"})
    return pandas.DataFrame(lines)


def guide() -> str:
    """All notebooks but this one with their questions, as a Markdown table."""
    others = [study for study in studies() if study.number != STUDY.number]
    table = pandas.DataFrame([{"notebook": f"`{study.notebook}`", "question": study.question} for study in others])
    return table.to_markdown(index=False)
