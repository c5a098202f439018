"""As many requests as are calculated fit into this GPU, and hardly more."""

import gc

import pytest
import torch

from gdn_lab.engine.capacity import capacity, fill, weight_nbytes
from gdn_lab.engine.model_weights import ModelWeights
from gdn_lab.engine.served_model import ServedModel

pytestmark = [pytest.mark.gpu, pytest.mark.alone]  # it fills the GPU's memory

MODEL, LENGTH = "qwen3.5-35b-a3b", 1024


def usable() -> int:
    """Free memory and what torch keeps unused, of which a small tensor of another test can hold 2 GB in place."""
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def test_as_many_requests_fit_as_calculated():
    torch.zeros(1, device="cuda")
    gc.collect()
    free = usable()
    weights = ModelWeights.random(MODEL, device="cuda")
    held = torch.cuda.memory_allocated()
    assert held == pytest.approx(sum(weight_nbytes(MODEL, 1, "fp8").values()), rel=0.01)
    found = capacity(MODEL, gpu_bytes=free, length=LENGTH)
    model = ServedModel(
        weights, "best", max_batch=64, slots=found.slots, pages=found.pages, page_size=64, max_length=LENGTH
    )
    assert fill(model, LENGTH).requests == found.requests
    left = usable()
    print(f"{found}; {left / 1e9:.1f} GB are left")
    assert left < found.reserve + found.each.total
