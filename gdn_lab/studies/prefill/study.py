"""The study of prefill: notebook 06."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from ..declaration import Section, Study
from ..parameters import Dtype, ModelParameters, RecordedGPU, Samples, Seed, Variants, on_gpu, words_of

# (sequences, tokens of each)
GPU_WORKLOADS = ((1, 512), (32, 256), (1, 2048), (8, 1024), (2, 4096), (1, 8192))
CPU_WORKLOADS = ((1, 64), (2, 40))


def _workloads(value) -> list[tuple[int, int]]:
    """ "8x1024, 1x8192" -> [(8, 1024), (1, 8192)]; "auto" depends on the device; "x.jsonl": a file's workloads."""
    if value == "auto":
        return list(GPU_WORKLOADS if on_gpu() else CPU_WORKLOADS)
    if str(value).endswith(".jsonl"):
        return _of_file(value)
    pairs = [[part.strip() for part in word.split("x")] for word in words_of(value)]
    if not pairs or not all(len(pair) == 2 and all(n.isdecimal() and int(n) > 0 for n in pair) for pair in pairs):
        raise ValueError(f"expected auto or sequences x tokens of each such as 8x1024,1x8192, got {value!r}")
    return [(int(sequences), int(length)) for sequences, length in pairs]


def _of_file(path: str) -> list[tuple[int, int]]:
    """(sequences, tokens of each) of the prefill workloads of a file; tokens are the mean of a workload, rounded."""
    from ...backends.definitions import workloads

    found = [work for work in workloads(path) if work.definition.phase == "prefill"]
    if not found:
        raise ValueError(f"workloads: {path} has none of prefill")
    return list(dict.fromkeys((work.batch, max(1, round(work.tokens / work.batch))) for work in found))


class Parameters(ModelParameters):
    """What notebook 06 takes."""

    workloads: Annotated[Any, BeforeValidator(_workloads)] = Field(
        "auto",
        description="sequences x tokens of each, 8x1024,1x8192, or a .jsonl file; auto: six on a GPU, two on a CPU",
    )
    second_tp: int = Field(8, ge=0, description="another such number, measured after it for fewer heads; 0 is none")
    dtype: Dtype = Field("bfloat16", description="of the state: bfloat16, float16 or float32")
    backends: Variants = Field(
        "all", description="comma-separated: all, or backends and variants such as triton,flashinfer/vk"
    )
    samples: Samples = Field(
        0, description="timed samples of each variant and workload; 0 is 50, on a CPU 1 at toy size"
    )
    seed: Seed = Field(0, description="of the random inputs, states and slots")
    gpu_reference: RecordedGPU = Field(
        "h100", description="a recorded GPU, or a run folder, whose results to show next to this machine's"
    )

    @model_validator(mode="after")
    def _second_heads_divide(self):
        try:
            self.shapes  # noqa: B018
        except ValueError as error:  # says which numbers divide
            raise ValueError(str(error).replace("tp:", "second_tp:", 1)) from None
        return self

    @property
    def shapes(self) -> dict:
        """{tp: GDNShape of one of tp GPUs}, for `tp` and `second_tp`."""
        from ...models import GDNShape

        return {tp: GDNShape.from_model(self.model, tp) for tp in (self.tp, self.second_tp) if tp}

    @property
    def measured(self) -> dict:
        """{tp: GDNShape} of what this machine measures: `shapes`, or the smallest where kernels are only checked."""
        return dict([self.here]) if self.checks_only else self.shapes


def section(run: dict, rows: list[dict]) -> Section:
    """What docs/results_<gpu>.md shows of a recorded run; it names the device itself."""
    from ...report.timed import Timed
    from . import analysis, figures

    timed = Timed(rows, run, phase="prefill", indexing=None)
    return Section(
        conditions=analysis.conditions(Timed(rows, phase="prefill", indexing=None)),
        sentences=analysis.answers(timed),
        figures={"prefill_tokens_per_second": figures.tokens_per_second(timed)},
        not_timed=timed.not_timed(),
    )


STUDY = Study(
    number="06",
    name="prefill",
    question="How fast does prefill run on the pool in place, and what did the detour by way of KV cost?",
    parameters=Parameters,
    section=section,
    section_name="prefill",
    records={"06_prefill": {}},
)
