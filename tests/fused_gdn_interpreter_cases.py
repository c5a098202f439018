"""The kernel from in_proj qkvz to out_proj on the CPU, in Triton's interpreter, against layer_reference.py in float64.

Run by test_triton_interpreter.py in a process of its own, under TRITON_INTERPRET=1.
"""

import pytest
import torch

from gdn_lab import GDNShape, StatePool, reference
from gdn_lab.backends.triton.backend import INTERPRETED
from gdn_lab.layer import layer_reference
from gdn_lab.layer.fp8 import dequantize_rows
from gdn_lab.layer.gdn_layer import Activation, LayerWeights
from gdn_lab.layer.kernels.fused_gdn import fused_gdn

assert INTERPRETED, "run under TRITON_INTERPRET=1"

LIVE, SLOTS, OTHERS = [0, 2], [3, 1], [0, 2]
INDICES = torch.tensor([3, -1, 1], dtype=torch.int32)


def expected(weights, shape, x, mixed, z, window, state):
    """What the step gives for live rows: the input of out_proj, the new state and window, in float64."""
    HK, HV, K, V = shape.dims
    convolved, window = layer_reference.causal_conv(mixed, window, weights.conv, torch.float64)
    q, k, v = convolved.split([HK * K, HK * K, HV * V], 1)
    b, a = (x.double() @ weights.in_ba.double().T).chunk(2, 1)
    inputs = q.unflatten(1, (HK, K)), k.unflatten(1, (HK, K)), v.unflatten(1, (HV, V)), a, b
    o, state = reference.decode(*inputs, A_log=weights.A_log, dt_bias=weights.dt_bias, state=state)
    gated = layer_reference.gated_rms_norm(o, z.reshape(o.shape), weights.gated_norm, torch.float64)
    return gated.flatten(1), state, window


@pytest.mark.parametrize(
    "shape, hidden, dtype, quantize",
    [
        (GDNShape(1, 2), 256, torch.bfloat16, True),
        (GDNShape(1, 1), 2304, torch.float32, True),  # a hidden size that no chunk divides
        (GDNShape(2, 2), 128, torch.float16, False),
    ],
)
def test_steps_equal_the_parts(shape, hidden, dtype, quantize):
    """Two steps, the second on what the first one left; windows are moved on by the last head of a group alone."""
    generator = torch.Generator().manual_seed(1)
    weights = LayerWeights.random(shape, hidden, precision="bf16", generator=generator)
    pool = StatePool(shape, 4, dtype=dtype)
    pool.state.normal_(0, 0.1, generator=generator)
    pool.conv.normal_(0, 1, generator=generator)
    untouched = pool.state[OTHERS].clone(), pool.conv[OTHERS].clone()
    finished = torch.zeros(3, shape.num_k_heads, dtype=torch.int32)
    value = shape.num_v_heads * shape.head_v_dim
    for _ in range(2):
        x, qkvz = (torch.randn(3, n, generator=generator).bfloat16() for n in (hidden, shape.conv_dim + value))
        mixed, z = qkvz.split([shape.conv_dim, value], 1)
        of_rows = (rows[LIVE] for rows in (x, mixed, z))
        y, state, window = expected(weights, shape, *of_rows, pool.conv[SLOTS], pool.read(torch.tensor(SLOTS)))
        made = Activation(3, value, quantize)
        fused_gdn(x, weights, mixed, z, pool, INDICES, finished, **(made.quantized() or {"y": made.live}))
        actual = dequantize_rows(made.y8[:3], made.scale[:3], torch.float64) if quantize else made.live.double()
        largest = y.unflatten(1, (-1, 128)).abs().amax(-1, keepdim=True)
        error = (actual[LIVE] - y).unflatten(1, (-1, 128)).abs() / largest
        assert error.max() < (2**-4 if quantize else 2**-7) and not actual[1].any()
        state_error = (pool.read(torch.tensor(SLOTS)) - state).abs().max() / state.abs().max()
        assert state_error < {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
        assert torch.equal(pool.conv[SLOTS], window.to(pool.conv)) and not finished.any()
    assert torch.equal(pool.state[OTHERS], untouched[0]) and torch.equal(pool.conv[OTHERS], untouched[1])
