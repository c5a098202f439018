"""The study of serving: notebook 09."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ..declaration import Section, Study
from ..parameters import (
    Configurations,
    Dtype,
    ModelName,
    ModelParameters,
    Precision,
    RecordedGPU,
    Seed,
    batch_list,
    by_device,
    on_gpu,
    whole_numbers,
    words_of,
)

GPU_CONCURRENCIES = (1, 8, 32, 64, 128, 256, 512)
CPU_CONCURRENCIES = (1, 3)


def _draft_tokens(value) -> list[int]:
    return whole_numbers(value, least=2, most=8) if words_of(value) else []


def _acceptance(value) -> list[float]:
    """ "0.6,0.8" -> [0.6, 0.8]; each from 0 to 1."""
    try:
        found = [float(word) for word in words_of(value)]
    except ValueError:
        found = []
    if not found or not all(0 <= rate <= 1 for rate in found):
        raise ValueError(f"expected rates from 0 to 1 such as 0.6,0.8, got {value!r}")
    return found


def _communicator(name: str) -> str:
    from ...engine.communicator_variants import VARIANTS

    if name not in ("auto", "fastest", *VARIANTS):
        raise ValueError(f"expected auto, fastest or one of {', '.join(VARIANTS)}, got {name!r}")
    return name


def _prefill(name: str) -> str:
    if name not in ("steps", "chunked", "mixed"):
        raise ValueError(f"expected steps, chunked or mixed, got {name!r}")
    return name


class Parameters(ModelParameters):
    """What notebook 09 and `gdn-lab record serving` take."""

    model: ModelName = Field("qwen3.5-35b-a3b", description="a name in the model table, gdn_lab.models.MODELS")
    tp: int = Field(1, ge=1, description="tensor-parallel GPUs of this machine that share the model")
    concurrency: batch_list(cpu=CPU_CONCURRENCIES, gpu=GPU_CONCURRENCIES) = Field(
        "auto", description="requests in flight, comma-separated; auto: seven from 1 to 512 on a GPU, 1,3 on a CPU"
    )
    configurations: Configurations = Field(
        "auto", description="comma-separated names in gdn_lab.layer.CONFIGURATIONS; auto: those made for this device"
    )
    precision: Precision = Field(
        "fp8", description="of projections and experts: fp8 (e4m3, scales for 128 x 128 blocks) or bf16"
    )
    dtype: Dtype = Field("bfloat16", description="of the state: bfloat16, float16 or float32")
    input_tokens: by_device(cpu=6, gpu=64) = Field(0, description="of each prompt; 0 is 64 on a GPU, 6 on a CPU")
    output_tokens: by_device(cpu=5, gpu=256) = Field(0, description="of each request; 0 is 256 on a GPU, 5 on a CPU")
    spread: float = Field(
        0.0, ge=0, lt=1, description="lengths are drawn from 1 - spread to all of these; 0: all alike"
    )
    rounds: int = Field(2, ge=1, description="requests of a serving run, as a multiple of the concurrency")
    prefill: Annotated[str, AfterValidator(_prefill)] = Field(
        "steps", description="of prompts: steps of their own, chunked between decode steps, or mixed into them"
    )
    communicator: Annotated[str, AfterValidator(_communicator)] = Field(
        "auto", description="of several GPUs: a variant of notebook 08, fastest, or auto: nccl, for best the fastest"
    )
    draft_tokens: Annotated[list[int], BeforeValidator(_draft_tokens)] = Field(
        "", description="verified in a step, 2 to 8, comma-separated, such as 2,4,8; empty: no speculation"
    )
    acceptance: Annotated[list[float], BeforeValidator(_acceptance)] = Field(
        "0.8", description="rates at which draft tokens are accepted, comma-separated"
    )
    temperature: float = Field(
        0.0, ge=0, description="of the softmax that tokens are drawn from; 0: the most likely token"
    )
    top_k: int = Field(0, ge=0, description="draw from the so many most likely tokens; 0: all")
    top_p: float = Field(1.0, gt=0, le=1, description="and of these from the fewest that have this probability")
    minutes: float = Field(5.0, gt=0, description="after which no further point is begun")
    seed: Seed = Field(0, description="of the random weights, prompts and lengths")
    gpu_reference: RecordedGPU = Field(
        "h100", description="a recorded GPU, or a run folder, whose results to show next to this machine's"
    )

    @model_validator(mode="after")
    def _lengths(self):
        if self.output_tokens < 2:
            raise ValueError(
                f"output_tokens: expected at least 2, which have a time between them, got {self.output_tokens}"
            )
        if self.draft_tokens and self.temperature:
            raise ValueError(
                f"temperature: expected 0 with draft_tokens, which are verified greedily, got {self.temperature}"
            )
        return self

    @property
    def toy(self) -> bool:
        """Whether the model is a toy: without a GPU."""
        return not on_gpu()


def _markdown(table) -> str:
    """The table with whole concurrencies, two decimals otherwise, and a true minus."""
    text = table.astype({"C": int}).to_markdown(index=False, floatfmt=".2f")
    return re.sub(r"(?<= )-(?=\d)", "−", text)


def section(run: dict, rows: list[dict]) -> Section:
    """What a page shows of a recorded run."""
    from . import analysis, figures, sentences
    from .serving_rows import ServingRows

    served = ServingRows(rows, run)
    table = analysis.worth_table(served)
    shown = {"tpot_waterfall": figures.waterfall(served)}
    if len(served.configurations) > 1:
        shown["throughput"] = figures.throughput(served)
    if served.speculation:
        shown["draft_tokens"] = figures.speculation(served)
    return Section(
        conditions=served.conditions(),
        sentences=sentences.answers(served),
        figures=shown,
        table=_markdown(table) if len(table) else "",
    )


def record(parameters: Parameters, run, earlier: list[dict]) -> None:
    """Measure what `gdn-lab record serving` records."""
    from .sweep import serving_sweep

    serving_sweep(parameters, run, earlier)


STUDY = Study(
    number="09",
    name="serving",
    question="What is a GDN kernel worth to a server, and where does the rest of the time per token go?",
    parameters=Parameters,
    section=section,
    section_name="serving",
    record=record,
    gpus="tp",
    records={
        "09_serving": {"concurrency": "1,8,64,256,512", "minutes": "5.5"},
        "09_serving_27b": {"model": "qwen3.5-27b", "concurrency": "1,8,64,256", "minutes": "5"},
        "09_serving_drafts": {
            "concurrency": "8,64",
            "configurations": "best",
            "rounds": "1",
            "draft_tokens": "2,4,8",
            "acceptance": "0.9,0.6",
            "minutes": "2.5",
        },
        "09_serving_tp2": {"tp": "2", "concurrency": "8,64,256", "minutes": "3.5"},
        "09_serving_27b_tp2": {"model": "qwen3.5-27b", "tp": "2", "concurrency": "8,64,256", "minutes": "4.5"},
        "09_serving_80b_tp2": {"model": "qwen3-next-80b-a3b", "tp": "2", "concurrency": "8,64,256", "minutes": "4.5"},
        "09_serving_397b_tp4": {"model": "qwen3.5-397b-a17b", "tp": "4", "concurrency": "64,256", "minutes": "5"},
        "09_serving_397b_tp8": {"model": "qwen3.5-397b-a17b", "tp": "8", "concurrency": "64,256", "minutes": "5"},
    },
)
