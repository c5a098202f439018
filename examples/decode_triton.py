"""A decode kernel in Triton. The idea: one kernel reads each state once, in place, and 64-bit offsets reach every slot.

gdn-lab judge examples/decode_triton.py                        on a GPU
TRITON_INTERPRET=1 gdn-lab check examples/decode_triton.py     on a CPU
"""

import triton
import triton.language as tl

from gdn_lab import variant

ROWS = 16  # of a head's state [V, K], for one program


@triton.jit
def decode_kernel(
    q, k, v, a, b, A_log, dt_bias, state, indices, out, scale,
    q_row, q_head, k_row, k_head, v_row, v_head, a_row, b_row,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, ROWS: tl.constexpr, L2NORM: tl.constexpr,
):  # fmt: skip
    """Update ROWS rows of one head's state. Grid: [V // ROWS, HV, B]. Strides are in elements."""
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)  # rows and slots times their size do not fit 32 bits
    slot = tl.load(indices + row).to(tl.int64)
    vs = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ks = tl.arange(0, K)
    out_at = out + (row * HV + head) * V + vs
    if slot < 0:  # padding: no slot changes
        tl.store(out_at, tl.zeros([ROWS], tl.float32).to(out.dtype.element_ty))
        return

    tile = state + (slot * HV + head) * V * K + vs[:, None] * K + ks[None, :]
    S = tl.load(tile).to(tl.float32)
    key_head = head // (HV // HK)
    q_vec = tl.load(q + row * q_row + key_head * q_head + ks).to(tl.float32)
    k_vec = tl.load(k + row * k_row + key_head * k_head + ks).to(tl.float32)
    v_vec = tl.load(v + row * v_row + head * v_head + vs).to(tl.float32)
    if L2NORM:
        q_vec *= tl.rsqrt(tl.sum(q_vec * q_vec) + 1e-6)
        k_vec *= tl.rsqrt(tl.sum(k_vec * k_vec) + 1e-6)

    x = tl.load(a + row * a_row + head).to(tl.float32) + tl.load(dt_bias + head)
    softplus = tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))
    g = tl.exp(-tl.exp(tl.load(A_log + head)) * softplus)
    beta = 1.0 / (1.0 + tl.exp(-tl.load(b + row * b_row + head).to(tl.float32)))

    S = g * S
    u = beta * (v_vec - tl.sum(S * k_vec[None, :], axis=1))
    S += u[:, None] * k_vec[None, :]
    tl.store(tile, S.to(state.dtype.element_ty))
    tl.store(out_at, (scale * tl.sum(S * q_vec[None, :], axis=1)).to(out.dtype.element_ty))


@variant("example/triton", layout="VK", state_dtypes=("bfloat16", "float32"), needs="sm_80")
def decode(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
    """Launch one kernel, which allocates nothing; q, k and v may be views of one packed tensor."""
    B, HV, V = v.shape
    HK, K = k.shape[1:]
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], a.stride(0), b.stride(0))
    decode_kernel[(V // ROWS, HV, B)](
        q, k, v, a, b, A_log, dt_bias, state, indices, out, scale, *strides,
        HK=HK, HV=HV, K=K, V=V, ROWS=ROWS, L2NORM=use_qk_l2norm, num_warps=1,
    )  # fmt: skip
