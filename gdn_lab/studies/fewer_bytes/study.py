"""The study of fewer bytes: notebook 12."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ..declaration import Section, Study
from ..parameters import ModelParameters, RecordedGPU, Samples, Seed, batch_list, by_device, whole_numbers

GPU_BATCHES = (32, 128, 256, 512)


def _updates(value) -> list[int]:
    """ "16,32" -> [16, 32]."""
    from ...ring import UPDATES

    found = whole_numbers(value)
    if bad := [number for number in found if number not in UPDATES]:
        raise ValueError(f"expected some of {', '.join(map(str, UPDATES))}, got {bad[0]}")
    return found


class Parameters(ModelParameters):
    """What notebook 12 takes."""

    batches: batch_list(cpu=(1,), gpu=GPU_BATCHES) = Field(
        "auto", description="comma-separated batch sizes; auto is 32,128,256,512; a CPU times none"
    )
    updates: Annotated[Any, BeforeValidator(_updates)] = Field(
        "16,32", description="comma-separated ring sizes: updates that a slot holds back; 16, 32 or 64"
    )
    drift_steps: by_device(cpu=51, gpu=2000) = Field(
        0, description="decode steps over which rounding errors add up; 0 is 2000, on a CPU 51"
    )
    samples: Samples = Field(0, description="timed samples of each variant and batch; 0 is 50")
    seed: Seed = Field(0, description="of the random inputs, states and slots")
    gpu_reference: RecordedGPU = Field(
        "h200", description="a recorded GPU, or a run folder, whose bandwidth and times to show"
    )


def section(run: dict, rows: list[dict]) -> Section:
    """What docs/results_<gpu>.md shows of a recorded run."""
    from . import analysis, figures

    return Section(
        conditions=analysis.conditions(rows),
        sentences=analysis.recorded_answers(rows),
        figures={"fewer_bytes": figures.over_flashinfer(rows, run)},
        not_timed=analysis.not_timed(rows),
    )


STUDY = Study(
    number="12",
    name="fewer_bytes",
    question="How far below one read and one write of the state can a decode step go, and what does it cost?",
    parameters=Parameters,
    section=section,
    section_name="fewer_bytes",
    records={"12_fewer_bytes": {}},
)
