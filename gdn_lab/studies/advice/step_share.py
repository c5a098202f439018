"""What share of a recorded decode step the GDN kernel is (notebook 03), for advice. Imports no torch."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from ...bench.run_folder import load
from ...models import MODELS, GDNShape
from ...report.nearest import recorded_folders
from ...report.recorded import DATA
from .recorded_calls import Recording, Times, called, estimate, recording

STEPS = "03_decode_step"
STEP_DTYPE = "bfloat16"
BEFORE, LAST = "before", "best"  # the configurations that every recorded model has
PARTS = {"step": "cuda_graph_replay", "gdn": "cupti_kernel", "traced step": "cupti_kernel"}


class StepShare(NamedTuple):
    """One layer's step of BEFORE, and what LAST saves of it. how, batches: as of an Estimate.

    same_model: whether model and tp are those asked about; if not, they have the same GDN heads on each GPU.
    """

    recording: Recording
    model: str
    tp: int
    same_model: bool
    precision: str
    how: str
    batches: tuple[int, ...]
    step_us: float
    gdn_share: float
    last_us: float

    @property
    def saving(self) -> float:
        """What LAST saves of the whole step, as a share; it changes other parts as well as the GDN kernel."""
        return 1 - self.last_us / self.step_us


def step_share(gpu: str, model: str, tp: int, batch: int, data: Path = DATA) -> StepShare | None:
    """The step of `model` at `tp`; where that was not recorded, of a model with the same heads; None if of none."""
    loaded = ((folder.name, *load(folder)) for folder in recorded_folders(gpu, data))
    info, rows = next(((run, rows) for name, run, rows in loaded if run.get("notebook", name) == STEPS), ({}, []))
    points, precisions = step_points(rows)
    shape, found = GDNShape.from_model(model, tp), []
    for (other, other_tp), times in points.items():
        known = set(PARTS) <= set(times[BEFORE]) and "step" in times[LAST]
        if known and other in MODELS and GDNShape.from_model(other, other_tp) == shape:
            found.append((other, other_tp))
    found.sort(key=lambda key: (key != (model, tp), MODELS[key[0]].hidden != MODELS[model].hidden))
    if not found:
        return None
    key = found[0]
    first = {part: estimate(points[key][BEFORE][part], batch) for part in PARTS}
    return StepShare(
        recording=recording(called(gpu), STEPS, info),
        model=key[0],
        tp=key[1],
        same_model=key == (model, tp),
        precision=precisions[key],
        how=first["step"].how,
        batches=first["step"].batches,
        step_us=first["step"].times.us,
        gdn_share=first["gdn"].times.us / first["traced step"].times.us,
        last_us=estimate(points[key][LAST]["step"], batch).times.us,
    )


def step_points(rows) -> tuple[dict, dict]:
    """({(model, tp): {configuration: {part: {batch: Times}}}}, {(model, tp): precision}) of steps at real size."""
    points = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    precisions = {}
    for row in rows:
        if (
            row.get("status") != "ok"
            or row.get("phase") != "step"
            or row.get("toy")
            or row["state_dtype"] != STEP_DTYPE
        ):
            continue
        if PARTS.get(row["part"]) == row["timer"]:
            key = row["model"], row["tp"]
            precisions[key] = row["precision"]
            times = Times(row["median_us"], row["p20_us"], row["p80_us"])
            points[key][row["configuration"]][row["part"]].setdefault(row["batch"], times)
    return points, precisions
