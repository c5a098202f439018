"""The study of drift: notebook 10."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ..declaration import Section, Study
from ..parameters import ModelParameters, RecordedGPU, Samples, Seed, by_device, nearest, on_gpu, words_of

# Names as in regimes.py, which imports torch.
GATES = ("strong decay", "typical", "hardly any decay", "rare writes", "as trained", "checkpoint")
KEYS = ("full rank", "few dimensions", "nearly parallel")
STRONG, TRAINED, CHECKPOINT, OWN = "strong decay", "as trained", "checkpoint", "its own"
ON_CPU = [("typical", "full rank"), ("hardly any decay", "few dimensions"), ("rare writes", "full rank")]


def _chosen(known, word):
    """A parser: "auto", or some of `known`."""

    def parse(value):
        if value == "auto":
            return list(known)
        names = words_of(value)
        for name in names:
            if name not in known:
                raise ValueError(f"{name!r} is unknown{nearest(name, known)}; choose auto or from {', '.join(known)}")
        if not names:
            raise ValueError(f"expected auto or some {word}, got {value!r}")
        return list(dict.fromkeys(names))

    return BeforeValidator(parse)


def _folder(name: str) -> str:
    """Return the absolute path of a checkpoint that can be read. ValueError, one sentence, for another."""
    if not name:
        return name
    from .checkpoint_gates import checkpoint_gates

    checkpoint_gates(name)
    return str(Path(name).expanduser().absolute())


class Parameters(ModelParameters):
    """What notebook 10 takes."""

    gates: Annotated[Any, _chosen(GATES, "gates")] = Field(
        "auto",
        description="comma-separated: auto, or from strong decay,typical,hardly any decay,rare writes,as trained",
    )
    keys: Annotated[Any, _chosen(KEYS, "keys")] = Field(
        "auto", description="comma-separated: auto, or from full rank,few dimensions,nearly parallel"
    )
    steps: by_device(cpu=100, gpu=10_000) = Field(0, description="decode steps; 0 is 10,000, on a CPU 100")
    rows: by_device(cpu=1, gpu=2) = Field(0, description="requests side by side; 0 is 2, on a CPU 1")
    batch: int = Field(256, ge=1, description="of the timed step, on a GPU alone")
    checkpoint: Annotated[str, AfterValidator(_folder)] = Field(
        "", description="a Hugging Face folder of Qwen3-Next or Qwen3.5 whose gates to take too; none if empty"
    )
    samples: Samples = Field(0, description="timed samples of each way; 0 is 50, on a CPU nothing is timed")
    seed: Seed = Field(0, description="of the random inputs and of stochastic rounding")
    minutes: float = Field(9.0, gt=0, description="after which no further regime is begun")
    gpu_reference: RecordedGPU = Field(
        "h200", description="a recorded GPU, or a run folder, whose results to show next to this machine's"
    )

    @model_validator(mode="after")
    def _checkpoint_is_given(self):
        if self.gates == [CHECKPOINT] and not self.checkpoint:
            raise ValueError("checkpoint: expected a folder for the gates 'checkpoint', got none")
        return self

    @property
    def shape(self):
        """GDNShape of one of `tp` GPUs; on a CPU a toy."""
        from ...models import GDNShape

        return GDNShape.from_model(self.model, self.tp) if on_gpu() else GDNShape(1, 2, 32, 32)

    @property
    def points(self) -> list[tuple[str, str]]:
        """(gates, keys) of each regime. Strong decay forgets keys at once, and a trained model brings its own."""
        if not on_gpu() and len(self.gates) == len(GATES) and len(self.keys) == len(KEYS):
            found = list(ON_CPU)
        else:
            drawn = [gates for gates in self.gates if gates not in (TRAINED, CHECKPOINT)]
            found = [(gates, self.keys[0]) for gates in drawn]
            found += [(gates, OWN) for gates in self.gates if gates == TRAINED]
            found += [(gates, keys) for keys in self.keys[1:] for gates in drawn if gates != STRONG]
        return found + ([(CHECKPOINT, keys) for keys in self.keys[:2]] if self.checkpoint else [])


def record(parameters: Parameters, run, earlier: list[dict]) -> None:
    """Run what the parameters ask for, but for the regimes and times that the rows `earlier` have."""
    from .sweep import everything

    everything(parameters, run, earlier)


def section(run: dict, rows: list[dict]) -> Section:
    """What docs/results_<gpu>.md shows of a recorded run."""
    from . import analysis, figures, sentences

    return Section(
        conditions=analysis.conditions(rows),
        sentences=sentences.answers(rows),
        figures={
            "drift_state": figures.over_steps(rows, run),
            "drift_shortcuts": figures.shortcuts(rows, run),
        },
        not_timed=sentences.not_run(rows),
    )


STUDY = Study(
    number="10",
    name="drift",
    question="How far does the state drift over thousands of steps, and what does each precision cost?",
    parameters=Parameters,
    section=section,
    section_name="drift",
    record=record,
    records={"10_drift": {"minutes": "4"}},
)
