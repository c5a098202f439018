"""The recorded run of serving that a page is about: the same model, tensor-parallel size and GPU, or none.

A whole model's time does not carry over to another model or number of GPUs, so the nearest other run is no answer.
Imports no torch.
"""

from pathlib import Path

from ...report.nearest import candidate_runs
from ...report.recorded import DATA, recorded_gpus
from ...report.text import listed, provenance

NOTEBOOK = "09_serving"
PHASE, RUN = "serving", "run"  # of serving_rows.py, which imports torch


def recorded_serving(
    gpu: str, model: str, tp: int, precision: str = "fp8", data: Path = DATA, *, drafts: bool = False
) -> tuple[dict, list]:
    """(run, rows) of the recorded run with the most points; ({}, []) where there is none. gpu: as candidate_runs().

    drafts: of the runs that have points with draft tokens.
    """
    found = [(run, own) for run, rows in _runs(gpu, data) if len(own := _of(rows, model, tp, precision))]
    if drafts:
        found = [(run, own) for run, own in found if any(row.get("draft_tokens") for row in own)]
    return max(found, key=lambda one: sum(row.get("type") == RUN for row in one[1]), default=({}, []))


def recorded_drafts(gpu: str, model: str, tp: int, precision: str = "fp8", data: Path = DATA) -> tuple[dict, list]:
    """(run, rows) of a recorded run with draft tokens, on `gpu` or else on another GPU, which the run names."""
    found = (recorded_serving(name, model, tp, precision, data, drafts=True) for name in (gpu, *recorded_gpus(data)))
    return next((one for one in found if one[1]), ({}, []))


def recorded_line(recorded: tuple[dict, list], p) -> str:
    """One sentence: what is recorded for the model, tp and GPU that parameters `p` name, or that nothing is."""
    if not recorded[1]:
        return nothing_recorded(p.gpu_reference, p.model, p.tp, p.precision)
    return f"Recorded for {p.model} at tp {p.tp}: {provenance(recorded[0])}."


def _runs(gpu: str, data: Path) -> list[tuple[dict, list]]:
    """Recorded runs of serving; none in the folder of another notebook's run."""
    try:
        return list(candidate_runs(gpu, NOTEBOOK, data).values())
    except ValueError:
        return []


def _of(rows: list[dict], model: str, tp: int, precision: str) -> list[dict]:
    """The rows of one setting at real size; [] where nothing was served in it."""
    case = {"model": model, "tp": tp, "precision": precision, "toy": False}
    served = {
        row["serve"]
        for row in rows
        if row.get("type") == RUN and "serve" in row and all(row[name] == value for name, value in case.items())
    }
    return [
        row
        for row in rows
        if row.get("phase") == PHASE
        and served
        and (row.get("serve") in served or ("serve" not in row and row["model"] == model and row["tp"] == tp))
    ]


def nothing_recorded(gpu: str, model: str, tp: int, precision: str = "fp8", data: Path = DATA) -> str:
    """One sentence: that no such run is recorded, and what is."""
    settings = {
        f"{row['model']} at tp {row['tp']}"
        for _, rows in _runs(gpu, data)
        for row in rows
        if row.get("type") == RUN and not row.get("toy")
    }
    others = f"; recorded are {listed(sorted(settings))}" if settings else ""
    return f"No serving of {model} at tp {tp} with {precision} weights is recorded on {gpu.upper()}{others}."
