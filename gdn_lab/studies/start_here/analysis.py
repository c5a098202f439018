"""What checked rows say to the question of notebook 00, the table of models, and the guide to the other notebooks."""

import dataclasses

import pandas

from ...backends.registry import variant
from ...models import MODELS
from ...report.text import listed
from ...report.timed import Timed, name_of
from .. import studies
from .study import STUDY


def latest_rows(timed: Timed) -> dict[str, dict]:
    """{variant: the last row of it}, in the order of the rows, whatever came of it."""
    return {name_of(row): row for row in timed.all_rows}


def check_table(timed: Timed) -> pandas.DataFrame:
    """A line for each variant: its largest absolute errors against the float64 reference and the verdict."""
    verdicts = {"ok": "right", "wrong": "wrong"}
    lines = [
        {
            "variant": variant(name).label,
            "error of the output": row.get("max_abs_error"),
            "error of the new state": row.get("max_abs_error_state"),
            "verdict": verdicts.get(row["status"]) or f"refused: {row['reason']}",
        }
        for name, row in latest_rows(timed).items()
    ]
    return pandas.DataFrame(lines).astype({"error of the output": float, "error of the new state": float})


def check_answers(timed: Timed) -> list[str]:
    """Which variants run here and are right, which are wrong, which refuse: a sentence each."""
    rows = latest_rows(timed)
    right, wrong, refused = (
        [variant(name).label for name, row in rows.items() if row["status"] == status]
        for status in ("ok", "wrong", "refused")
    )
    sentences = [
        f"{len(right)} of {len(rows)} variants run here and agree with the reference: {listed(right) or 'none'}."
    ]
    sentences += [f"{listed(wrong)} ran and disagree with it; do not use them here."] if wrong else []
    sentences += [f"{listed(refused)} cannot serve here, for the reasons in the table."] if refused else []
    return sentences


def model_table() -> pandas.DataFrame:
    """The model table: a line for each model, with all that is known of it, and whether that was checked."""
    lines = []
    for name, model in MODELS.items():
        fields = dataclasses.asdict(model) if dataclasses.is_dataclass(model) else model._asdict()
        checked = fields.pop("checked", None)
        line = {"model": name} | {field.replace("_", " "): value for field, value in fields.items()}
        lines.append(line | {"checked": "✓" if checked else "not checked"})
    return pandas.DataFrame(lines)


def guide() -> str:
    """All notebooks but this one with their questions, as a Markdown table."""
    others = [study for study in studies() if study.number != STUDY.number]
    table = pandas.DataFrame([{"notebook": f"`{study.notebook}`", "question": study.question} for study in others])
    return table.to_markdown(index=False)
