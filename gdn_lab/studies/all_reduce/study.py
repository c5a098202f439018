"""The study of all-reduces: notebook 08."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from ...engine.communicator_variants import VARIANTS, variants_on
from ..declaration import Section, Study
from ..parameters import (
    RecordedGPU,
    Samples,
    Seed,
    StudyParameters,
    batch_list,
    nearest,
    on_gpu,
    whole_numbers,
    words_of,
)

GPU_ROWS, CPU_ROWS = (1, 8, 64, 256, 512), (1, 4)
GPU_HIDDEN, CPU_HIDDEN = (2048, 4096, 5120), (256,)


def _ranks(value) -> list[int]:
    """ "2,4" -> [2, 4]; "auto" is 2, 4, 8 as far as this machine has GPUs, and 2 without one."""
    import torch

    gpus = torch.cuda.device_count()
    if value == "auto":
        return [count for count in (2, 4, 8) if count <= gpus] if gpus else [2]
    counts = whole_numbers(value, least=2)
    most = gpus or 8
    if bad := [count for count in counts if count > most or count & (count - 1)]:
        there = f"this machine has {gpus} GPUs" if gpus else "on a CPU at most 8 processes"
        raise ValueError(
            f"expected auto or powers of 2 such as 2,4, each rank on a GPU of its own, got {bad[0]}; {there}"
        )
    return counts


def _variants(value) -> list[str]:
    """ "all" -> those of this device; "nccl, two-shot" -> ["nccl", "two-shot"]."""
    here = variants_on("cuda" if on_gpu() else "cpu")
    chosen = here if value == "all" else words_of(value)
    for word in chosen:
        if word not in VARIANTS:
            raise ValueError(f"{word!r} is unknown{nearest(word, VARIANTS)}; choose all or from {', '.join(VARIANTS)}")
        if word not in here:
            raise ValueError(f"{word!r} needs {VARIANTS[word].on}; here are {', '.join(here)}")
    if not chosen:
        raise ValueError(f"expected all, or variants such as nccl,two-shot, got {value!r}")
    return list(dict.fromkeys(chosen))


def _whole_groups(hiddens: list[int]) -> list[int]:
    if bad := [hidden for hidden in hiddens if hidden % 128]:
        raise ValueError(f"expected multiples of 128, of which FP8 has a scale each, got {bad[0]}")
    return hiddens


class Parameters(StudyParameters):
    """What notebook 08 takes."""

    ranks: Annotated[Any, BeforeValidator(_ranks)] = Field(
        "auto", description="comma-separated numbers of GPUs; auto: 2, 4, 8 as far as there are; on a CPU 2 processes"
    )
    rows: batch_list(cpu=CPU_ROWS, gpu=GPU_ROWS) = Field(
        "auto", description="comma-separated tokens of a step; auto: 1,8,64,256,512, on a CPU 1,4"
    )
    hidden: Annotated[batch_list(cpu=CPU_HIDDEN, gpu=GPU_HIDDEN), AfterValidator(_whole_groups)] = Field(
        "auto", description="comma-separated hidden sizes; auto: 2048,4096,5120, on a CPU 256"
    )
    variants: Annotated[Any, BeforeValidator(_variants)] = Field(
        "all", description="comma-separated: all, or from nccl,torch-one-shot,torch-two-shot,one-shot,two-shot,gloo"
    )
    samples: Samples = Field(0, description="timed samples of each variant and size; 0 is 50, on a CPU 1")
    seed: Seed = Field(0, description="of the random inputs")
    gpu_reference: RecordedGPU = Field(
        "h200", description="a recorded GPU, or a run folder, whose results to show next to this machine's"
    )


def section(run: dict, rows: list[dict]) -> Section:
    """What docs/results_<gpu>.md shows of a recorded run."""
    from . import analysis, figures

    return Section(
        conditions=analysis.conditions(rows),
        sentences=[*analysis.answers(rows), *analysis.unresolved_norm(rows)],
        figures={f"all_reduce_{count}": figures.times(rows, count, run) for count in analysis.ranks_of(rows)},
        not_timed=analysis.not_timed(rows),
    )


STUDY = Study(
    number="08",
    name="all_reduce",
    question="What do the two all-reduces of a layer cost on several GPUs, and which is fastest?",
    parameters=Parameters,
    section=section,
    section_name="all_reduce",
    gpus="ranks",
    records={"08_all_reduce": {"ranks": "auto"}},
)
