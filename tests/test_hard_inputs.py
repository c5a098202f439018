"""Hard inputs: that they are what their names say, and decode() and verify() on them."""

import pytest
import torch
from against_reference import check_decode, filled_pool, row_slots
from verify_against_reference import BOTH, check_verify

from gdn_lab import GDNShape, reference
from gdn_lab.backends.base import Call
from gdn_lab.backends.registry import BACKENDS, VARIANTS
from gdn_lab.hard_inputs import KINDS, hard_inputs
from gdn_lab.judge.judging import PASS, judge
from gdn_lab.rounding import FP8

GPU = torch.device("cuda", 0)
SMALL, RANK = GDNShape(2, 4, 16, 32), GDNShape(2, 8)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TOKENS = 4
OF_FP8 = [name for name, variant in VARIANTS.items() if FP8 in variant.state_dtypes]  # no other dtype


def test_inputs_are_what_their_names_say():
    x = {kind: inputs for kind, (inputs, _) in hard_inputs(SMALL, 40).items()}
    assert list(x) == list(KINDS)
    log_g = {kind: reference.log_decay(i.a, i.A_log, i.dt_bias) for kind, i in x.items()}
    assert log_g["strong decay"].min() < -20
    assert log_g["hardly any decay"].min() > -0.1
    keys = torch.nn.functional.normalize(x["nearly parallel keys"].k.float(), dim=-1).transpose(0, 1)
    assert (keys @ keys.transpose(1, 2)).min() > 0.95
    assert torch.equal(x["q = k"].q, x["q = k"].k)
    assert 500 < x["large values"].v.abs().max() < 1500
    assert (x["zero keys"].k == 0).all(-1).any() and not (x["zero keys"].k == 0).all()


def pool_of(shape, kind, layout, dtype, device="cpu"):
    pool = filled_pool(shape, 9, layout=layout, dtype=dtype, device=device)
    pool.state.mul_(KINDS[kind].state_std)
    return pool


@pytest.mark.parametrize("io_dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_torch(kind, io_dtype):
    x = hard_inputs(SMALL, 8, dtype=io_dtype)[kind].inputs
    check_decode(pool_of(SMALL, kind, "VK", FP32), row_slots(8, 9), backend="torch", inputs=x)
    x = hard_inputs(SMALL, 8, tokens=TOKENS, dtype=io_dtype)[kind].inputs
    check_verify(pool_of(SMALL, kind, "VK", FP32), row_slots(8, 9), TOKENS, backend="torch", mode=BOTH, inputs=x)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in OF_FP8])
def test_every_variant_on_a_gpu(name, kind):
    """decode() and verify() with every dtype of state and inputs that the variant takes."""
    variant = VARIANTS[name]
    backend = BACKENDS[variant.backend]
    for state_dtype in variant.state_dtypes:
        for io_dtype in (BF16, FP16):
            serves = {
                phase: not backend.refusal(
                    variant, Call(phase, variant.layout, state_dtype, io_dtype, torch.int32, RANK, GPU, *mode)
                )
                for phase, mode in (("decode", ()), ("verify", ("update",)))
            }
            options = dict(backend=name, padding_is_zero=False)
            indices = row_slots(8, 9, device=GPU)
            pool = pool_of(RANK, kind, variant.layout, state_dtype, GPU)
            if serves["decode"]:
                x = hard_inputs(RANK, 8, device=GPU, dtype=io_dtype)[kind].inputs
                check_decode(pool, indices, inputs=x, **options)
            pool = pool_of(RANK, kind, variant.layout, state_dtype, GPU)
            if serves["verify"]:
                x = hard_inputs(RANK, 8, tokens=TOKENS, device=GPU, dtype=io_dtype)[kind].inputs
                check_verify(pool, indices, TOKENS, mode="update", inputs=x, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OF_FP8)
def test_every_variant_of_an_fp8_state_on_a_gpu(name):
    """By the judge, which knows how far a step on an FP8 state may be off."""
    (finding,) = judge(name, "cuda", only=["hard inputs"])
    assert finding.status == PASS, finding
