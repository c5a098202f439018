"""The study of the pool's layouts: notebook 01."""

from pydantic import Field

from ..declaration import Study
from ..parameters import Dtype, RecordedGPU, Samples, Seed, batch_list
from ..pool_parameters import PoolParameters


class Parameters(PoolParameters):
    """What notebook 01 takes."""

    batches: batch_list(cpu=(1, 4)) = Field(
        "auto", description="comma-separated batch sizes; auto is 1…512 on a GPU, 1,4 on a CPU"
    )
    dtype: Dtype = Field("bfloat16", description="of the state: bfloat16, float16 or float32")
    gigabytes: float = Field(40.0, ge=0.001, description="memory to fill with requests, GB")
    samples: Samples = Field(0, description="timed samples of each variant and batch; 0 is 50, on a CPU 1 at toy size")
    seed: Seed = Field(0, description="of the random inputs, states and slots")
    gpu_reference: RecordedGPU = Field(
        "h100", description="a recorded GPU, or a run folder, whose results to show next to this machine's"
    )


def computed() -> dict:
    """Figures of docs/words.md, which need no measurement."""
    from . import figures

    return {"warp_loads": figures.warp_loads(), "slot_bytes": figures.slot_bytes()}


STUDY = Study(
    number="01",
    name="pool_layouts",
    question="What do the two layouts, KV and VK, mean for a kernel's loads, and what does a request's state cost?",
    parameters=Parameters,
    computed=computed,
)
