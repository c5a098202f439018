"""A decode kernel in the CuTe DSL. The idea: setup(call) compiles before anything is timed, supports(call) refuses.

gdn-lab judge examples/decode_cutedsl.py
"""

import functools

import cutlass
import cutlass.cute as cute
import torch
from cutlass import BFloat16, Float32, Int32, Int64
from cutlass.cute import arch, math
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from gdn_lab import variant
from gdn_lab.backends.base import capability

K = V = 128
WARP, WARPS, ROWS = 32, 4, 8  # a warp updates ROWS rows of a head's state; a lane holds N elements of each
N = K // WARP


@cute.kernel
def decode_kernel(q, k, v, a, b, A_log, dt_bias, state, indices, out, scale, l2norm: cutlass.Constexpr):
    """Warps: [B, HV, V // ROWS], the last one fastest."""
    tile = arch.block_idx()[0] * WARPS + arch.make_warp_uniform(arch.warp_idx())
    head, row = arch.block_idx()[1], arch.block_idx()[2]
    key_head = head // (v.shape[1] // k.shape[1])
    at = arch.lane_idx() * N  # the first of the lane's elements
    slot = Int64(indices[row])

    x = Float32(a[row, head]) + dt_bias[head]
    softplus = x if x > 20.0 else math.log(1.0 + math.exp(x))
    g = math.exp(-math.exp(A_log[head]) * softplus)
    beta = 1.0 / (1.0 + math.exp(-Float32(b[row, head])))
    q_part = [Float32(q[row, key_head, at + j]) for j in range(N)]
    k_part = [Float32(k[row, key_head, at + j]) for j in range(N)]
    q_scale, k_scale = scale, Float32(1.0)
    if cutlass.const_expr(l2norm):
        q_scale = scale * math.rsqrt(arch.warp_reduction_sum(dot(q_part, q_part)) + 1e-6)
        k_scale = math.rsqrt(arch.warp_reduction_sum(dot(k_part, k_part)) + 1e-6)

    if slot < 0:  # padding: no slot changes
        if at == 0:
            for i in cutlass.range_constexpr(ROWS):
                out[row, head, tile * ROWS + i] = BFloat16(0.0)
    else:
        head_state = state[slot, head, None, None].iterator + cute.assume(tile * ROWS * K + at, divby=N)
        memory = cute.make_tensor(head_state, cute.make_layout((N, ROWS), stride=(1, K)))
        S = cute.make_rmem_tensor((N, ROWS), state.element_type)
        cute.autovec_copy(memory, S)  # all of the warp's rows, N elements of each at once
        for i in cutlass.range_constexpr(ROWS):
            S_row = [g * Float32(S[j, i]) for j in range(N)]
            Sk = arch.warp_reduction_sum(dot(S_row, k_part)) * k_scale
            u = beta * (Float32(v[row, head, tile * ROWS + i]) - Sk) * k_scale
            S_row = [S_row[j] + u * k_part[j] for j in range(N)]
            o = arch.warp_reduction_sum(dot(S_row, q_part)) * q_scale
            if at == 0:
                out[row, head, tile * ROWS + i] = o.to(BFloat16)
            for j in cutlass.range_constexpr(N):
                S[j, i] = S_row[j].to(state.element_type)
        cute.autovec_copy(S, memory)


def dot(xs, ys):
    """A lane's part of a dot product."""
    return sum((x * y for x, y in zip(xs[1:], ys[1:], strict=True)), xs[0] * ys[0])


@cute.jit
def launch(q, k, v, a, b, A_log, dt_bias, state, indices, out, scale: Float32, l2norm: cutlass.Constexpr, stream):
    grid = (V // ROWS // WARPS, out.shape[1], out.shape[0])
    kernel = decode_kernel(q, k, v, a, b, A_log, dt_bias, state, indices, out, scale, l2norm)
    kernel.launch(grid=grid, block=(WARP * WARPS, 1, 1), stream=stream)


@functools.cache
def compiled(architecture, state_dtype, index_dtype, l2norm):
    """Compile for dtypes and a GPU; batch, heads, slots and strides are free."""
    batch, slots, HK, HV = (cute.sym_int32() for _ in range(4))

    def tensor(dtype, *shape, strides, align=None):
        return make_fake_tensor(dtype, shape, strides, assumed_align=align or dtype.width // 8)

    def heads(number):
        return tensor(BFloat16, batch, number, K, strides=(cute.sym_int64(), cute.sym_int64(), 1))

    gates = [tensor(BFloat16, batch, HV, strides=(cute.sym_int64(), 1)) for _ in range(2)]
    parameters = [tensor(Float32, HV, strides=(1,)) for _ in range(2)]
    slot = cute.sym_int64(divisibility=V * K)
    dtype = {torch.bfloat16: BFloat16, torch.float32: Float32}[state_dtype]
    state = tensor(dtype, slots, HV, V, K, strides=(slot, V * K, K, 1), align=16)
    indices = tensor({torch.int32: Int32, torch.int64: Int64}[index_dtype], batch, strides=(1,))
    arguments = (heads(HK), heads(HK), heads(HV), *gates, *parameters, state, indices, heads(HV), Float32(1.0))
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    options = f"--enable-tvm-ffi --gpu-arch {architecture}"
    return cute.compile(launch, *arguments, l2norm, stream, options=options)


def setup(call):
    """Compile before the first call of a kind. What this returns is the kernel's `plan`; it is never timed."""
    architecture = "sm_{}{}a".format(*capability(call.device))
    return {l2norm: compiled(architecture, call.state_dtype, call.index_dtype, l2norm) for l2norm in (True, False)}


def supports(call):
    """None, or one sentence that says why a call cannot be served."""
    if (call.shape.head_k_dim, call.shape.head_v_dim) != (K, V):
        return f"takes heads of {K} and {V}; these are of {call.shape.head_k_dim} and {call.shape.head_v_dim}"
    return None if call.io_dtype is torch.bfloat16 else "takes inputs of bfloat16 alone"


@variant("example/cutedsl", state_dtypes=("bfloat16", "float32"), needs="sm_90", setup=setup, supports=supports)
def decode(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, plan):
    """Call what setup() compiled: plan."""
    plan[use_qk_l2norm](q, k, v, a, b, A_log, dt_bias, state, indices, out, scale)
