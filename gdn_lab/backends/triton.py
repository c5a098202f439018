"""`triton`: one decode kernel for each memory order of the pool, in place by index.

The state of one value head is a [128 × 128] matrix of 32 KB in bf16. A program takes a tile of it: TILE values of V and
all of K, so that S k and S q are complete within the program. What the layouts do to the tile's memory order:

    VK   [TILE, K]   one run of TILE · K elements
    KV   [K, TILE]   K pieces of TILE elements, V elements apart

From the state as loaded, before anything else is known, come S k and S q; decay and correction are applied after:

    S k = g (S_old k)      u = beta (v - S k)      o = (S + u kᵀ) q = g (S_old q) + u (k . q)

so the two sums over K run beside each other, and nothing stands between the index and the state's load.

On compute capability 9.0 and newer the K-last kernel is launched as a programmatic dependent: its programs are set up
while the kernel before it drains, wait there for its results, and let the kernel after it do the same. Same arithmetic.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..reference import NORM_EPS, SOFTPLUS_THRESHOLD
from . import triton_prefill, triton_verify
from .base import Backend, KernelCase, Variant, dtype_name, dtype_names, needs_capability

STATE_DTYPES = (torch.bfloat16, torch.float32, torch.float16)
IO_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PHASES = ("decode", "verify", "prefill")
INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: kernels run on the CPU, one program after the other


@triton.jit
def decode_kernel(
    q, k, v, a, b, A_log, dt_bias, state, indices, out, scale,
    q_row, q_head, k_row, k_head, v_row, v_head, a_row, b_row,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr,
    K_LAST: tl.constexpr, OVERLAP: tl.constexpr, L2NORM: tl.constexpr, EPS: tl.constexpr, SOFTPLUS_MAX: tl.constexpr,
):  # fmt: skip
    """One program: TILE rows of one head's state for one batch row. Grid: [V // TILE · HV · B], tiles fastest.

    *_row, *_head: strides in elements of a batch row and a head; the last dimension is contiguous everywhere.
    state [slots, HV, V, K] with K_LAST, else [slots, HV, K, V]; slot offsets are 64-bit. OVERLAP: this launch may begin
    before the kernel ahead of it has ended, so nothing is loaded before gdc_wait().
    """
    program = tl.program_id(0)
    TILES: tl.constexpr = V // TILE
    tile = program % TILES
    head = (program // TILES) % HV
    row = (program // (TILES * HV)).to(tl.int64)
    key_head = head // (HV // HK)

    ks = tl.arange(0, K)
    vs = tile * TILE + tl.arange(0, TILE)
    if OVERLAP:
        gdc_wait()
    slot = tl.load(indices + row).to(tl.int64)
    out_at = out + (row * HV + head) * V + vs
    if slot < 0:
        tl.store(out_at, tl.zeros([TILE], tl.float32).to(out.dtype.element_ty))
        return

    # S [TILE, K] in either memory order; for KV the tile is the transpose of what lies in memory
    head_state = state + (slot * HV + head) * (V * K)
    if K_LAST:
        tile_at = head_state + vs[:, None] * K + ks[None, :]
    else:
        tile_at = head_state + ks[None, :] * V + vs[:, None]
    S = tl.load(tile_at).to(tl.float32)

    q_vec = tl.load(q + row * q_row + key_head * q_head + ks).to(tl.float32)
    k_vec = tl.load(k + row * k_row + key_head * k_head + ks).to(tl.float32)
    v_vec = tl.load(v + row * v_row + head * v_head + vs).to(tl.float32)
    x = tl.load(a + row * a_row + head).to(tl.float32) + tl.load(dt_bias + head)
    b_log = tl.load(b + row * b_row + head).to(tl.float32)
    A = tl.exp(tl.load(A_log + head))
    if OVERLAP:
        gdc_launch_dependents()

    softplus = tl.where(x > SOFTPLUS_MAX, x, tl.log(1.0 + tl.exp(tl.minimum(x, SOFTPLUS_MAX))))
    g = tl.exp(-A * softplus)
    beta = 1.0 / (1.0 + tl.exp(-b_log))
    if L2NORM:
        q_vec *= scale * tl.rsqrt(tl.sum(q_vec * q_vec) + EPS)
        k_vec *= tl.rsqrt(tl.sum(k_vec * k_vec) + EPS)
    else:
        q_vec *= scale

    Sk = tl.sum(S * k_vec[None, :], axis=1)
    Sq = tl.sum(S * q_vec[None, :], axis=1)
    u = beta * (v_vec - g * Sk)
    tl.store(tile_at, (g * S + u[:, None] * k_vec[None, :]).to(state.dtype.element_ty))
    tl.store(out_at, (g * Sq + u * tl.sum(q_vec * k_vec)).to(out.dtype.element_ty))


class TritonBackend(Backend):
    name = "triton"
    distribution = "triton"
    variants = (
        Variant("vk", "VK", STATE_DTYPES, "K-last pool; overlaps its launch with the kernel before it", PHASES),
        Variant("vk-serial", "VK", STATE_DTYPES, "the same kernel, begun when the one before it has ended"),
        Variant("kv32", "KV", STATE_DTYPES, "KV pool, value tiles of 32: what SGLang ran before the PR merged", PHASES),
        Variant("kv8", "KV", STATE_DTYPES, "KV pool, value tiles of 8: the baseline of the PR's table"),
    )

    def missing(self, device):
        if INTERPRETED and device.type == "cpu":
            return None
        return needs_capability(device, 8)

    def refusal_of_sizes(self, call):
        K, V = call.shape.head_k_dim, call.shape.head_v_dim
        if K not in (16, 32, 64, 128, 256) or V % 32:
            return f"takes head_k_dim 16, 32, 64, 128 or 256 and head_v_dim in multiples of 32; these are {K} and {V}"
        if call.io_dtype not in IO_DTYPES:
            return f"takes inputs of {dtype_names(IO_DTYPES)}; these are {dtype_name(call.io_dtype)}"
        return triton_prefill.refusal(call) if call.phase == "prefill" else None

    def decode_launch(self, variant, call):
        HK, HV, K, V = call.shape.num_k_heads, call.shape.num_v_heads, call.shape.head_k_dim, call.shape.head_v_dim
        k_last = variant.layout == "VK"
        overlap = variant.name == "vk" and can_overlap(call.device)
        fixed = {"kv8": 8, "kv32": 32}.get(variant.name)

        def launch(q, k, v, a, b, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
            heads = q.shape[0] * HV
            tile = fixed or vk_tile(heads, overlap)
            q_row, q_head, _ = q.stride()
            k_row, k_head, _ = k.stride()
            v_row, v_head, _ = v.stride()
            decode_kernel[(V // tile * heads,)](
                q, k, v, a, b, A_log, dt_bias, state, indices, out, scale,
                q_row, q_head, k_row, k_head, v_row, v_head, a.stride(0), b.stride(0),
                HK, HV, K, V, tile, k_last, overlap, use_qk_l2norm, NORM_EPS, SOFTPLUS_THRESHOLD,
                num_warps=1, launch_pdl=overlap,
            )  # fmt: skip

        return launch

    def verify_launch(self, variant, call):
        return triton_verify.verify_launch(call, overlap=can_overlap(call.device))

    def prefill_launch(self, variant, call):
        return triton_prefill.prefill_launch(call)


@functools.cache
def can_overlap(device: torch.device) -> bool:
    """Whether the GPU has programmatic dependent launch: compute capability 9.0 and newer."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def vk_tile(heads: int, overlap: bool) -> int:
    """Rows of a tile for B · HV heads: small to fill the GPU, large for bytes in flight. Chosen by times on an H100."""
    if heads <= 128:
        return 8 if overlap else 4
    return 32 if overlap and heads >= 16384 else 16


def kernel_cases() -> list[KernelCase]:
    """Every compilation of the kernel that the variants make at the models' head size, for resources.py."""
    cases = []
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")):
        types = dict.fromkeys(decode_kernel.arg_names, "i32")
        types |= dict.fromkeys(("q", "k", "v", "a", "b", "out"), "*bf16")
        types |= {"A_log": "*fp32", "dt_bias": "*fp32", "state": f"*{name}", "indices": "*i32", "scale": "fp32"}
        launches = [("kv32", 32, False, False), ("kv8", 8, False, False)]
        for variant, overlap in (("vk", True), ("vk-serial", False)):
            tiles = {vk_tile(heads, overlap) for heads in (64, 4096, 32768)}
            launches += [(variant, tile, True, overlap) for tile in sorted(tiles)]
        for variant, tile, k_last, overlap in launches:
            constants = dict(HK=16, HV=64, K=128, V=128, TILE=tile, K_LAST=k_last, OVERLAP=overlap, L2NORM=True)
            constants |= dict(EPS=NORM_EPS, SOFTPLUS_MAX=SOFTPLUS_THRESHOLD)
            cases.append(KernelCase(f"{variant} {dtype_name(dtype)} tile {tile}", decode_kernel, types, constants, 1))
    return cases + triton_verify.kernel_cases() + triton_prefill.kernel_cases()
