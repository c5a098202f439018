"""The study of a step's trace: notebook 04."""

from pydantic import Field

from ..declaration import Study, StudyParameters
from ..parameters import RecordedGPU


class Parameters(StudyParameters):
    """What notebook 04 takes."""

    capture: str = Field(
        "",
        description="the trace, .nsys-rep, .sqlite, .json or .json.gz; empty is the newest run's, else a recorded one",
    )
    step_range: str = Field(
        "", description='name of the NVTX range that is one step; empty is "decode step", or the most frequent range'
    )
    beside: str = Field("", description="a second trace of the same step, to compare part by part; empty is none")
    gpu_reference: RecordedGPU = Field("h100", description="whose recorded trace to show if no run here has one")


STUDY = Study(
    number="04",
    name="nsight_systems",
    question="Where does each microsecond of a step go: into which range, which kernel, which gap?",
    parameters=Parameters,
)
