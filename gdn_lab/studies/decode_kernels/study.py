"""The study of decode kernels: notebook 02."""

from pydantic import Field

from ..declaration import Section, Study
from ..parameters import Dtype, OneVariant, RecordedGPU, Samples, Seed, Variants, batch_list
from ..pool_parameters import PoolParameters


class Parameters(PoolParameters):
    """What notebook 02 takes."""

    batches: batch_list(cpu=(1, 4, 8)) = Field(
        "auto", description="comma-separated batch sizes; auto is 1…512 on a GPU, 1,4,8 on a CPU"
    )
    dtype: Dtype = Field("bfloat16", description="of the state: bfloat16, float16 or float32")
    backends: Variants = Field(
        "all", description="comma-separated: all, or backends and variants such as triton,flashinfer/vk"
    )
    samples: Samples = Field(
        0, description="timed samples of each variant, batch and timer; 0 is 50, on a CPU 1 at toy size"
    )
    seed: Seed = Field(0, description="of the random inputs, states and slots")
    gpu_reference: RecordedGPU = Field(
        "h100", description="a recorded GPU, or a run folder, whose results to show next to this machine's"
    )
    baseline: OneVariant = Field(
        "triton/kv32", description="what kernels of your own (--kernel) are compared with, besides the best others"
    )


def section(run: dict, rows: list[dict]) -> Section:
    """What docs/results_<gpu>.md shows of a recorded run."""
    from ...report.timed import Timed
    from . import analysis, figures

    timed = Timed(rows, run, phase="decode")
    return Section(
        conditions=analysis.conditions(timed),
        sentences=analysis.answers(timed),
        figures={
            "decode_time": figures.decode_time(timed),
            "against_published": figures.against_published(timed),
            "gather_scatter": figures.gather_scatter(timed),
        },
        table=analysis.markdown_tables(timed),
        not_timed=timed.not_timed(),
    )


STUDY = Study(
    number="02",
    name="decode_kernels",
    question="Which decode kernel is fastest here, how near is it to the memory's limit, and which baseline gives the "
    "published speed-up?",
    parameters=Parameters,
    section=section,
    section_name="decode",
    records={
        "02_decode_kernels": {},
        "02_decode_float32": {
            "dtype": "float32",
            "batches": "1,8,64,256",
            "backends": "triton,flashinfer,cutedsl",
            "samples": "30",
        },
    },
)
