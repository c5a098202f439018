"""What recorded drift (notebook 10) says of the state's dtype, for advice. Imports no torch."""

from pathlib import Path

from ...report.nearest import candidate_runs
from ...report.recorded import DATA, measured, recorded_gpus, recorded_runs
from ..drift import sentences
from ..drift.analysis import NOTEBOOK, of_ways


def precision(gpu: str, data: Path = DATA) -> list[str]:
    """Where a bfloat16 state is enough, what a step costs in each precision, and how far a state in FP8 errs where that
    is recorded; [] where no drift is.

    gpu: a recorded GPU or a run folder. Errors hardly depend on the GPU: without a record of it another GPU's is taken
    and named.
    """
    for name in dict.fromkeys((gpu, *recorded_gpus(data))):
        rows = _rows(name, data)
        if of_ways(rows):
            lines = [*sentences.verdict(rows), *sentences.cost(rows)[:1], *sentences.fp8(rows)]
            return lines if name == gpu else [f"Recorded on {name.upper()}: {lines[0]}", *lines[1:]]
    return []


def in_short(data: Path = DATA) -> list[str]:
    """Lines on bfloat16, float16 and float32 of the GPU whose drift was recorded last, which each names; [] of none."""
    begun = {
        gpu: measured(gpu, NOTEBOOK, data)[0]["start_utc"] for gpu, name in recorded_runs(data) if name == NOTEBOOK
    }
    for gpu in sorted(begun, key=begun.get, reverse=True):
        if lines := sentences.in_short(_rows(gpu, data)):
            where = [f"{gpu.upper()}, `{NOTEBOOK}`", *[gpu.upper()] * (len(lines) - 1)]
            return [f"{line.rstrip('.')} ({place})." for line, place in zip(lines, where, strict=True)]
    return []


def _rows(gpu: str, data: Path) -> list[dict]:
    """The recorded rows of drift; [] in the folder of another notebook's run."""
    try:
        runs = candidate_runs(gpu, NOTEBOOK, data)
    except ValueError:
        return []
    return next((rows for _, rows in runs.values()), [])
