"""One kernel from in_proj qkvz to out_proj: in_proj ba, convolution, gates, GDN and gated norm, for one token a row.

A program takes one value head of one row and all of its state, so that the norm of o over the head is complete within
it. Nothing in between goes to memory. q and k are convolved again by each value head of a key head; of these programs
the last one to finish moves their windows on, since the others read them. Nothing in between is rounded.

With OVERLAP (programmatic dependent launch, PDL) a program waits only for mixed and z, which the kernel ahead of it
wrote. State and window were written in the step before, and x one kernel earlier still: the kernel ahead must let this
one start only after its own wait, as every kernel here does.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ...backends.triton.device import EPS, log_decay, sigmoid
from ..fp8 import E4M3_MAX, SMALLEST_AMAX
from .experts_kernels import narrow

WARPS = 8
REGISTERS = 128  # of a thread, so that two programs fit an SM
CHUNK = 2048  # of the hidden size, at a time


@triton.jit
def load_window(window, channels, WIDTH: tl.constexpr):
    """Return the inputs of a convolution [len(channels), WIDTH] as far as they are in the window; the newest is 0."""
    js = tl.arange(0, WIDTH)[None, :]
    return tl.load(window + channels[:, None] * (WIDTH - 1) + js, mask=js < WIDTH - 1, other=0.0)


@triton.jit
def with_newest(inputs, mixed, channels, WIDTH: tl.constexpr):
    """Return the inputs of a convolution with the newest, mixed[channels], in its place."""
    js = tl.arange(0, WIDTH)[None, :]
    newest = tl.load(mixed + channels[:, None] + js * 0, mask=js == WIDTH - 1, other=0.0)
    return tl.where(js == WIDTH - 1, newest, inputs)


@triton.jit
def convolved(inputs, taps):
    """Return SiLU of the convolution, float32 [channels]."""
    total = tl.sum(inputs.to(tl.float32) * taps.to(tl.float32), axis=1)
    return total / (1.0 + tl.exp(-total))


@triton.jit
def store_window(window, channels, inputs, WIDTH: tl.constexpr):
    """Store the newest WIDTH - 1 inputs."""
    js = tl.arange(0, WIDTH)[None, :]
    tl.store(window + channels[:, None] * (WIDTH - 1) + js - 1, inputs, mask=js > 0)


@triton.jit
def add_two(a, b, other_a, other_b):
    return a + other_a, b + other_b


@triton.jit
def add_three(a, b, c, other_a, other_b, other_c):
    return a + other_a, b + other_b, c + other_c


@triton.jit
def add_and_max(total, largest, other_total, other_largest):
    return total + other_total, tl.maximum(largest, other_largest)


@triton.jit
def fused_gdn_kernel(
    x, ba_weight, mixed, z, window, taps, A_log, dt_bias, gain, state, indices, finished, y, y8, y_scale, scale,
    hidden, mixed_row, z_row, scale_group,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    QUANTIZE: tl.constexpr, OVERLAP: tl.constexpr, MAX: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    """Take a step of one value head of one row. Grid: [HV · B], heads fastest.

    x [B, hidden], ba_weight [2 HV, hidden], b first; mixed [B, conv_dim], z [B, HV V], rows mixed_row and z_row apart;
    window [slots, conv_dim, WIDTH - 1], taps [conv_dim, WIDTH]; state [slots, HV, V, K]; finished [B, HK] int32, zero
    before and after. y [B, HV V], or with QUANTIZE y8 and y_scale, a scale for each head. A padding row (a negative
    index) gets zeros and changes no slot. CHUNK: of `hidden`, at a time.
    """
    GROUP: tl.constexpr = HV // HK
    CHANNELS: tl.constexpr = 2 * HK * K + HV * V
    head = tl.program_id(0) % HV
    row = (tl.program_id(0) // HV).to(tl.int64)
    key_head = head // GROUP
    ks = tl.arange(0, K)
    vs = tl.arange(0, V)
    index = tl.load(indices + row).to(tl.int64)
    slot = tl.maximum(index, 0)  # a padding row reads the null slot
    S_at = state + (slot * HV + head) * (V * K) + vs[:, None] * K + ks[None, :]
    S = tl.load(S_at)
    window += slot * CHANNELS * (WIDTH - 1)
    q_channels = key_head * K + ks
    k_channels = HK * K + q_channels
    v_channels = 2 * HK * K + head * V + vs
    js = tl.arange(0, WIDTH)[None, :]
    q_inputs = load_window(window, q_channels, WIDTH)
    k_inputs = load_window(window, k_channels, WIDTH)
    v_inputs = load_window(window, v_channels, WIDTH)
    q_taps = tl.load(taps + q_channels[:, None] * WIDTH + js)
    k_taps = tl.load(taps + k_channels[:, None] * WIDTH + js)
    v_taps = tl.load(taps + v_channels[:, None] * WIDTH + js)
    a_parts = tl.zeros([CHUNK], tl.float32)
    b_parts = tl.zeros([CHUNK], tl.float32)
    for start in range(0, hidden, CHUNK):
        hs = start + tl.arange(0, CHUNK)
        x_part = tl.load(x + row * hidden + hs, mask=hs < hidden, other=0.0).to(tl.float32)
        b_parts += x_part * tl.load(ba_weight + head * hidden + hs, mask=hs < hidden, other=0.0).to(tl.float32)
        a_parts += x_part * tl.load(ba_weight + (HV + head) * hidden + hs, mask=hs < hidden, other=0.0).to(tl.float32)
    a, b = tl.reduce((a_parts, b_parts), 0, add_two)
    beta = sigmoid(b)
    g = tl.exp(log_decay(a + tl.load(dt_bias + head), tl.exp(tl.load(A_log + head))))
    gains = tl.load(gain + vs).to(tl.float32)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    mixed += row * mixed_row
    q_inputs = with_newest(q_inputs, mixed, q_channels, WIDTH)
    k_inputs = with_newest(k_inputs, mixed, k_channels, WIDTH)
    v_inputs = with_newest(v_inputs, mixed, v_channels, WIDTH)
    gate = tl.load(z + row * z_row + head * V + vs).to(tl.float32)
    q = convolved(q_inputs, q_taps)
    k = convolved(k_inputs, k_taps)
    v = convolved(v_inputs, v_taps)
    qq, kk, qk = tl.reduce((q * q, k * k, q * k), 0, add_three)
    q_norm = scale * tl.rsqrt(qq + EPS)
    k_norm = tl.rsqrt(kk + EPS)
    q *= q_norm
    k *= k_norm

    S = S.to(tl.float32)
    u = beta * (v - g * tl.sum(S * k[None, :], axis=1))
    o = g * tl.sum(S * q[None, :], axis=1) + u * (qk * q_norm * k_norm)
    o = tl.where(index < 0, 0.0, o)
    gated = o * gains * (gate / (1.0 + tl.exp(-gate)))
    square, largest = tl.reduce((o * o, tl.abs(gated)), 0, add_and_max)
    rms = tl.rsqrt(square / V + EPS)
    normed = gated * rms
    y_at = row * (HV * V) + head * V + vs
    if QUANTIZE:
        y_s = tl.maximum(largest * rms, SMALLEST) / MAX
        tl.store(y8 + y_at, narrow(tl.minimum(tl.maximum(normed / y_s, -MAX), MAX), tl.float8e4nv, 3))
        tl.store(y_scale + head * scale_group + row, y_s)
    else:
        tl.store(y + y_at, normed.to(y.dtype.element_ty))
    if index < 0:
        return
    tl.store(S_at, (g * S + u[:, None] * k[None, :]).to(state.dtype.element_ty))
    store_window(window, v_channels, v_inputs, WIDTH)
    mine = finished + row * HK + key_head
    tl.debug_barrier()  # every thread has read the windows of q and k
    if tl.atomic_add(mine, 1, sem="acq_rel") == GROUP - 1:
        tl.store(mine, 0)
        store_window(window, q_channels, q_inputs, WIDTH)
        store_window(window, k_channels, k_inputs, WIDTH)


def fused_gdn(x, weights, mixed, z, pool, indices, finished, y=None, y8=None, y_scale=None, *, overlap=False):
    """Write the input of out_proj, as y or as y8 and y_scale, and take the step of the pool's states and windows.

    x [B, hidden]: the normed input; weights: a LayerWeights; mixed, z: of in_proj qkvz; finished [B, HK] int32, zeros.
    """
    HK, HV, K, V = pool.shape.dims
    hidden, quantize = x.shape[1], y8 is not None
    fused_gdn_kernel[(HV * len(mixed),)](
        x=x,
        ba_weight=weights.in_ba,
        mixed=mixed,
        z=z,
        window=pool.conv,
        taps=weights.conv,
        A_log=weights.A_log,
        dt_bias=weights.dt_bias,
        gain=weights.gated_norm,
        state=pool.state,
        indices=indices,
        finished=finished,
        y=mixed if quantize else y,
        y8=y8 if quantize else y,
        y_scale=y_scale if quantize else y,
        scale=pool.shape.scale,
        hidden=hidden,
        mixed_row=mixed.stride(0),
        z_row=z.stride(0),
        scale_group=y_scale.stride(1) if quantize else 0,
        HK=HK,
        HV=HV,
        K=K,
        V=V,
        WIDTH=weights.conv.shape[1],
        CHUNK=CHUNK,
        QUANTIZE=quantize,
        OVERLAP=overlap,
        MAX=E4M3_MAX,
        SMALLEST=SMALLEST_AMAX,
        num_warps=WARPS,
        maxnreg=REGISTERS if pool.dtype.itemsize == 2 else None,
        launch_pdl=overlap,
    )
