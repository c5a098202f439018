"""The study of accuracy: notebook 11."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from ..declaration import Section, Study
from ..parameters import (
    RecordedGPU,
    Seed,
    StudyParameters,
    by_device,
    nearest,
    on_gpu,
    variant_list,
    whole_numbers,
    words_of,
)

GPU_TOKENS, CPU_TOKENS = (768, 1536, 3072), (128,)
# Recorded are all backends but eager PyTorch, and of Triton's variants with the same kernel one.
RECORDED = "triton/vk,triton/replay,triton/replay-fp8,triton/kv32,cutedsl,flashinfer,fla"
HEAD = 64  # tokens of a prompt that go through prefill() whatever the path


def _tokens(value) -> list[int]:
    if value == "auto":
        return list(GPU_TOKENS if on_gpu() else CPU_TOKENS)
    return whole_numbers(value, least=2 * HEAD)


def _dtypes(value) -> list:
    from ...backends.base import dtype_name
    from ...pool import STATE_DTYPES
    from ...rounding import FP8

    known = {dtype_name(dtype): dtype for dtype in (*STATE_DTYPES, FP8)}
    names = [*known][: None if on_gpu() else 2] if value == "auto" else words_of(value)
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is unknown{nearest(name, known)}; choose auto or from {', '.join(known)}")
    return [known[name] for name in names]


def _found(name: str):
    """The path of a file that is named from this folder or from the workbook's; None if it is in neither."""
    from ...report.recorded import DATA

    return next((path for path in (Path(name), DATA.parent / name) if path.is_file()), None)


def _checkpoint(name: str) -> str:
    if Path(name).is_dir():
        raise ValueError(f"{name} is a folder, whose gates notebook 10 takes: gdn-lab run 10 --checkpoint {name}")
    if _found(name) is None:
        raise ValueError(f"there is no file {name}; `gdn-lab train` writes one into runs/trained")
    return name


class Parameters(StudyParameters):
    """What notebook 11 and `gdn-lab record accuracy` take."""

    questions: by_device(cpu=6, gpu=2049) = Field(
        0, description="of each case, a third of each kind; 0 is 2049 on a GPU, 6 on a CPU"
    )
    tokens: Annotated[Any, BeforeValidator(_tokens)] = Field(
        "auto", description="of a prompt, comma-separated; all cases have the least; auto: 768,1536,3072; on a CPU 128"
    )
    names: by_device(cpu=16, gpu=64) = Field(
        0, description="that a prompt gives values to; 0 is 64 on a GPU, 16 on a CPU"
    )
    stepped: int = Field(
        -1,
        ge=-1,
        description="of a prompt's end, one by one through decode() or verify(); -1: on a CPU 4, else all but 64",
    )
    backends: variant_list(cpu=["torch/vk"]) = Field(
        "auto", description="comma-separated: all, or backends and variants; auto: all, on a CPU torch/vk"
    )
    dtypes: Annotated[Any, BeforeValidator(_dtypes)] = Field(
        "auto", description="of the state; auto: float32,bfloat16,float16,float8_e4m3fn; on a CPU the first two"
    )
    checkpoint: Annotated[str, AfterValidator(_checkpoint)] = Field(
        "data/trained/model.safetensors", description="the model that answers, as gdn-lab train writes it"
    )
    minutes: float = Field(5.0, gt=0, description="that it may take: cases that need more are left out")
    seed: Seed = Field(0, description="of the questions")
    gpu_reference: RecordedGPU = Field(
        "h200", description="a recorded GPU, or a run folder, whose results to show next to this machine's"
    )

    @property
    def checks_only(self) -> bool:
        """Whether so few questions are answered here that they only show that everything works."""
        return not on_gpu()

    @property
    def checkpoint_path(self):
        """Where the checkpoint is, from this folder or from the workbook's."""
        return _found(self.checkpoint)

    @property
    def baseline(self) -> str:
        """The kernel whose float32 state others are compared with."""
        return "triton/vk" if on_gpu() else "torch/vk"

    def stepped_of(self, tokens: int) -> int:
        """Tokens of a prompt of `tokens` that go through decode() or verify(), at least one."""
        most = tokens - HEAD
        return max(1, min(most, self.stepped if self.stepped >= 0 else most if on_gpu() else 4))


def section(run: dict, rows: list[dict]) -> Section:
    """What docs/results_<gpu>.md shows of a recorded run."""
    from . import analysis, figures, sentences
    from .accuracy_rows import AccuracyRows

    answered = AccuracyRows(rows, run)
    return Section(
        conditions=analysis.conditions(answered),
        sentences=[*sentences.answers(answered), *sentences.fp8(answered), *analysis.refused_sentences(answered)],
        figures={"accuracy_changes": figures.changes(answered), "accuracy_lengths": figures.lengths(answered)},
    )


def record(parameters: Parameters, run, earlier: list[dict]) -> None:
    """Measure what `gdn-lab record accuracy` records."""
    from .sweep import accuracy_sweep

    accuracy_sweep(parameters, "cuda" if on_gpu() else "cpu", run, earlier)


STUDY = Study(
    number="11",
    name="accuracy",
    question="What do layout, dtype and shortcuts do to the answers of a model?",
    parameters=Parameters,
    section=section,
    section_name="accuracy",
    record=record,
    records={"11_accuracy": {"backends": RECORDED, "minutes": "8"}},
)
