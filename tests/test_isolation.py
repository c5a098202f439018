"""No row's NaN changes a bit of another row: what a server that batches strangers' requests needs.

A variant that is not isolated says so in its record: the tests assert that what is seen is what the record says.
"""

import pytest
import torch
from isolation import reached
from on_gpu import FP32, GPU, RANK, serving

from gdn_lab import GDNShape
from gdn_lab.backends.registry import VARIANTS

SMALL = GDNShape(2, 4, 16, 32)
ON_CPU = [(v.full_name, phase) for v in VARIANTS.values() if v.role == "eager" for phase in v.phases]
PHASES = ("decode", "verify", "prefill")
ON_GPU = [(v.full_name, phase, dtype) for phase in PHASES for v in serving(phase) for dtype in v.state_dtypes]


@pytest.mark.parametrize("name, phase", ON_CPU)
def test_isolation(name, phase):
    assert reached(VARIANTS[name], phase, SMALL, FP32) == (phase in VARIANTS[name].leaks)


@pytest.mark.gpu
@pytest.mark.parametrize("name, phase, dtype", ON_GPU, ids=str)
def test_isolation_on_a_gpu(name, phase, dtype):
    """Where the record names the phase in `leaks`, NaN does reach a neighbour; everywhere else it never does."""
    assert reached(VARIANTS[name], phase, RANK, dtype, GPU) == (phase in VARIANTS[name].leaks)


def test_the_test_sees_a_leak(extra_backend, monkeypatch):
    """A backend whose rows share a sum is found out."""
    from gdn_lab.backends.registry import BACKENDS

    whole = BACKENDS["torch"].decode_launch

    def launch(variant, call):
        def leaking(*arguments, out, **options):
            whole(variant, call)(*arguments, out=out, **options)
            out += 0.0 * out.float().sum().to(out.dtype)

        return leaking

    monkeypatch.setattr(BACKENDS["extra"], "decode_launch", launch)
    assert reached(VARIANTS[extra_backend], "decode", SMALL, torch.float32)
