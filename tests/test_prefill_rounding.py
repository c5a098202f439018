"""The prefill kernels' roundings to 16 bits, made in float64 on the CPU: hard inputs stay within what tests allow.

The kernels themselves run with bf16 on a GPU alone.
"""

import pytest
import torch
from against_reference import filled_pool
from tolerances import assert_close

from gdn_lab import GDNShape, reference
from gdn_lab.hard_inputs import KINDS, hard_inputs
from gdn_lab.tolerances import LOGARITHMS, OPERANDS

SHAPE = GDNShape(1, 2)
CHUNK, TOKENS = 64, 192


def scan(x, S, dtype):
    """One sequence as chunk_kernel and scan_kernel compute it; each operand of a product rounded to dtype.

    S [HV, V, K] float64. Returns o [tokens, HV, V] and the final state.
    """

    def rounded(y):
        return y.to(dtype).double()

    q, k, v, log_g, beta = reference.prepared(*x.arguments(), x.A_log, x.dt_bias, 1.0, True)  # scale 1, normalised
    outputs = []
    for start in range(0, TOKENS, CHUNK):
        q_c, k_c, v_c, log_g_c, beta_c = (y[start : start + CHUNK].transpose(0, 1) for y in (q, k, v, log_g, beta))
        G = log_g_c.cumsum(1)
        decay = torch.exp((G[:, :, None] - G[:, None]).masked_fill(~torch.ones(CHUNK, CHUNK).tril().bool(), -torch.inf))
        A = (beta_c[..., None] * decay * (k_c @ k_c.mT)).tril(-1)
        inverse = torch.linalg.inv(A + torch.eye(CHUNK)).to(torch.float16).double()
        P = decay * (q_c @ k_c.mT)
        first = (P.to(torch.float16).double() @ inverse).to(torch.float16).double()
        M = (first + (P - first - first @ A.to(torch.float16).double()) @ inverse) * beta_c[:, None]
        from_start = torch.exp(G)[..., None]
        high = rounded(M * from_start.mT)
        Q = from_start * q_c - (high + rounded(M * from_start.mT - high)) @ k_c
        r = v_c - from_start * (k_c @ rounded(S).mT)
        u = rounded(inverse * beta_c[:, None]) @ rounded(r)
        outputs.append(rounded(M) @ v_c + rounded(Q) @ rounded(S).mT)
        S = torch.exp(G[:, -1, None, None]) * S + rounded(torch.exp(G[:, -1:] - G)[..., None] * u).mT @ k_c
    return torch.cat(outputs, 1).transpose(0, 1) * SHAPE.scale, S


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_hard_inputs(kind, dtype):
    x, state_std = hard_inputs(SHAPE, TOKENS, dtype=dtype)[kind]
    pool = filled_pool(SHAPE, 2, layout="VK", dtype=torch.float32)
    start = state_std * pool.read(torch.tensor([1])).double()
    bounds = torch.tensor([0, TOKENS])
    expected_o, expected = reference.prefill_chunked(*x.arguments(), **x.gates(), state=start, cu_seqlens=bounds)
    o, state = scan(x, start[0], dtype)
    extra = LOGARITHMS + OPERANDS[dtype]
    assert_close("o", o.to(dtype), expected_o, dtype, extra=extra)
    assert_close("state", state.float()[None], expected, torch.float32, extra=extra)
