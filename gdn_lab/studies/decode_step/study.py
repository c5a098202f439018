"""The study of decode steps: notebook 03."""

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from ..declaration import Section, Study
from ..parameters import (
    CPU_SAMPLES,
    Configurations,
    ModelName,
    ModelParameters,
    Precision,
    RecordedGPU,
    Seed,
    by_device,
    nearest,
    on_gpu,
    whole_numbers,
    words_of,
)

SAMPLES = {"gpu": 200, "cpu": CPU_SAMPLES}
HEATMAP_SAMPLES = {"gpu": 20, "cpu": 3}  # at most
HEATMAP_MODELS = ("qwen3.5-397b-a17b", "qwen3.5-35b-a3b", "qwen3.5-27b")  # with the model asked for
HEATMAP_TPS, HEATMAP_BATCHES = (1, 4, 8), (16, 64, 256)


def _heat_models(value, info: ValidationInfo) -> list[str]:
    own = info.data.get("model")
    if value == "auto":
        return list(dict.fromkeys([own, *HEATMAP_MODELS])) if on_gpu() else []
    return list(dict.fromkeys(words_of(value)))


def _heat_numbers(gpu, cpu):
    """A field type: whole numbers, "" for none; "auto" is `gpu` on a GPU, else `cpu`, or tp where that is None."""

    def parse(value, info: ValidationInfo) -> list[int]:
        if value == "auto":
            here = gpu if on_gpu() else cpu or [info.data.get("tp")]
            return list(here)
        return whole_numbers(value) if words_of(value) else []

    return Annotated[list[int], BeforeValidator(parse)]


def _captured(value: str, info: ValidationInfo) -> str:
    """ "auto" -> `after`, whose launches do not overlap, or else the last configuration of the run; "" -> ""."""
    from ...layer import CONFIGURATIONS

    names, value = info.data.get("configurations"), value.strip()
    if value == "auto":
        return "after" if not names or "after" in names else names[-1]
    if value and value not in CONFIGURATIONS:
        hint = nearest(value, CONFIGURATIONS)
        raise ValueError(f"{value!r} is unknown{hint}; choose auto, nothing, or one of {', '.join(CONFIGURATIONS)}")
    return value


class Parameters(ModelParameters):
    """What notebook 03 takes."""

    tp: int = Field(8, ge=1, description="tensor-parallel GPUs that share a layer; this machine plays one of them")
    batch: by_device(cpu=4, gpu=256) = Field(0, description="requests in the step; 0 is 256 on a GPU, 4 on a CPU")
    precision: Precision = Field(
        "fp8", description="of projections and experts: fp8 (e4m3, scales for 128 x 128 blocks) or bf16"
    )
    configurations: Configurations = Field(
        "auto", description="comma-separated names in gdn_lab.layer.CONFIGURATIONS; auto: those made for this device"
    )
    heat_models: Annotated[list[ModelName], BeforeValidator(_heat_models)] = Field(
        "auto",
        description="models of the heatmap, comma-separated; auto is three on a GPU, none on a CPU; empty: none",
    )
    heat_tps: _heat_numbers(gpu=HEATMAP_TPS, cpu=None) = Field(
        "auto", description="tensor-parallel sizes of the heatmap; auto is 1,4,8 on a GPU, tp on a CPU"
    )
    heat_batches: _heat_numbers(gpu=HEATMAP_BATCHES, cpu=(1, 4)) = Field(
        "auto", description="batch sizes of the heatmap; auto is 16,64,256 on a GPU, 1,4 on a CPU"
    )
    captured: Annotated[str, AfterValidator(_captured)] = Field(
        "auto", description="the configuration traced for notebook 04; auto is after, or else the last; empty is none"
    )
    samples: by_device(**SAMPLES) = Field(
        0, description="timed replays of each configuration, interleaved; 0 is 200 on a GPU, 1 on a CPU"
    )
    skew: float = Field(
        0.0,
        ge=0,
        description="of the routing: 0 is uniform; with s the n-th expert is n^-s times as likely as the first",
    )
    seed: Seed = Field(0, description="of the random weights, inputs, states and routing")
    gpu_reference: RecordedGPU = Field(
        "h100", description="a recorded GPU, or a run folder, whose results to show next to this machine's"
    )

    @property
    def options(self) -> dict:
        """Arguments that all functions of sweep.py take. Without a GPU the layer has toy size."""
        return {"precision": self.precision, "seed": self.seed, "skew": self.skew, "toy": not on_gpu()}

    @property
    def heatmap(self) -> dict:
        """Arguments of sweep.heatmap_sweep(): the points, the first and last configuration, fewer samples."""
        return {
            "models": self.heat_models,
            "tps": self.heat_tps,
            "batches": self.heat_batches,
            "configurations": list(dict.fromkeys([self.configurations[0], self.configurations[-1]])),
            "samples": min(self.samples, HEATMAP_SAMPLES["gpu" if on_gpu() else "cpu"]),
        }


def _conditions(step) -> str:
    """What whole steps hold for, and how the parts of the table were timed."""
    row = next(iter(step.traced.values()), None)
    parts = f" · parts, in the table: {row['timer']}, median of {row['count']} samples" if row else ""
    return f"{step.conditions()}{parts}"


def section(run: dict, rows: list[dict]) -> Section:
    """What docs/results_<gpu>.md shows of a recorded run; it names the device itself."""
    from . import figures, sentences, tables
    from .analysis import StepRows

    step = StepRows(rows, run)
    changes = tables.changes_table(step).rename(columns={"part": "change in µs"})
    alignment = ("left", *["right"] * (len(changes.columns) - 1))
    return Section(
        conditions=_conditions(StepRows(rows)),
        sentences=sentences.answers(step),
        figures={"step_waterfall": figures.waterfall(step)},
        table=changes.to_markdown(index=False, colalign=alignment) if len(changes) else "",
        not_timed=sentences.not_timed(step.all_rows),
    )


STUDY = Study(
    number="03",
    name="decode_step",
    question="What is a decode step made of, and which part of it does a faster GDN kernel change?",
    parameters=Parameters,
    section=section,
    section_name="step",
    records={"03_decode_step": {}},
)
