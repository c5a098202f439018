"""The study of advice: notebook 07."""

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from ..declaration import Study
from ..parameters import ModelName, ModelParameters, RecordedGPU, nearest


def _state_dtype(name: str) -> str:
    from ...models import STATE_BYTES

    if name not in STATE_BYTES:
        raise ValueError(f"{name!r} is unknown{nearest(name, STATE_BYTES)}; choose one of {', '.join(STATE_BYTES)}")
    return name


def _spec(tokens: int) -> int:
    if tokens == 1:
        raise ValueError("expected 0 for none, or 2 to 16 draft tokens, got 1")
    return tokens


def _slots(slots: int, info: ValidationInfo) -> int:
    return slots or info.data.get("batch", 0)


class Parameters(ModelParameters):
    """What notebook 07 and `gdn-lab advise` take. Unlike in other studies `dtype` stays a word."""

    model: ModelName = Field("qwen3-next-80b-a3b", description="a name in the model table, gdn_lab.models.MODELS")
    tp: int = Field(4, ge=1, description="tensor-parallel GPUs that share the heads")
    batch: int = Field(96, ge=1, description="requests in a decode step")
    dtype: Annotated[str, AfterValidator(_state_dtype)] = Field(
        "bfloat16", description="of the state: bfloat16, float16 or float32"
    )
    slots: Annotated[int, Field(ge=0), AfterValidator(_slots)] = Field(
        0, description="requests that keep a state; 0 is as many as batch"
    )
    spec: Annotated[int, Field(ge=0, le=16), AfterValidator(_spec)] = Field(
        0, description="draft tokens that speculative decoding verifies in a step, 2 to 16; 0 is none"
    )
    memory: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="GB on each GPU to fill with requests; 0 asks nothing"
    )
    gpu_reference: RecordedGPU = Field("h100", description="the GPU whose recorded results answer")


STUDY = Study(
    number="07",
    name="advice",
    question="Which backend should your model use, what would it save, and how much memory does its state need?",
    parameters=Parameters,
)
