"""The study of verify steps: notebook 05."""

from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from ..declaration import Section, Study
from ..parameters import Dtype, RecordedGPU, Samples, Seed, Variants, by_device, whole_numbers
from ..pool_parameters import PoolParameters


def _draft_tokens(value) -> list[int]:
    from ...ops import DRAFT_TOKENS

    return whole_numbers(value, *DRAFT_TOKENS)


class Parameters(PoolParameters):
    """What notebook 05 takes."""

    phase: ClassVar[str] = "verify"
    gathers: ClassVar[bool] = False

    batch: by_device(cpu=1, gpu=64) = Field(0, description="requests in the step; 0 is 64 on a GPU, 1 on a CPU")
    tokens: Annotated[list[int], BeforeValidator(_draft_tokens)] = Field(
        "2,4,8,16", description="comma-separated numbers of tokens verified in one step, 2 to 16"
    )
    dtype: Dtype = Field("bfloat16", description="of the state: bfloat16, float16 or float32")
    backends: Variants = Field(
        "triton/vk,flashinfer/vk,torch/vk", description="comma-separated: all, or backends and variants"
    )
    samples: Samples = Field(
        0, description="timed samples of each variant, mode and T; 0 is 50, on a CPU 1 at toy size"
    )
    seed: Seed = Field(0, description="of the random inputs, states and slots")
    gpu_reference: RecordedGPU = Field(
        "h100", description="a recorded GPU, or a run folder, whose results to show next to this machine's"
    )


def section(run: dict, rows: list[dict]) -> Section:
    """What docs/results_<gpu>.md shows of a recorded run; it names the device itself."""
    from ...report.timed import Timed
    from . import analysis, figures

    timed = Timed(rows, run)
    p = Parameters.parse(run["parameters"], "the recorded run")
    return Section(
        conditions=analysis.conditions(Timed(rows)),
        sentences=analysis.answers(timed, p.model, p.tp, max(p.tokens), p.dtype),
        figures={"verify_time": figures.verify_time(timed)},
        not_timed=timed.not_timed(),
    )


STUDY = Study(
    number="05",
    name="verify",
    question="What does verifying several draft tokens at once cost, and when does it pay?",
    parameters=Parameters,
    section=section,
    section_name="verify",
    records={"05_verify": {}},
)
