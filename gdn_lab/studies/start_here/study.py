"""The study that everyone starts with: notebook 00."""

from pydantic import Field

from ..declaration import Study
from ..parameters import Dtype, Seed
from ..pool_parameters import PoolParameters


class Parameters(PoolParameters):
    """What notebook 00 takes."""

    batch: int = Field(4, ge=1, description="requests in the decode step")
    dtype: Dtype = Field("bfloat16", description="of the state: bfloat16, float16 or float32")
    seed: Seed = Field(0, description="of the random inputs and states")


STUDY = Study(
    number="00",
    name="start_here",
    question="What can this machine run, and do all the kernels agree with the float64 reference?",
    parameters=Parameters,
)
