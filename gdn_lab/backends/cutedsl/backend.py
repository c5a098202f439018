"""`cutedsl`: our decode kernel in the CuTe DSL (decode.py), on the K-last pool in place.

It is compiled once for each number of heads, state and index dtype and tile, and serves every batch, pool size and
stride; cache.py keeps what was compiled. A call is then one function that takes the tensors as they are, on torch's
current stream, without an allocation.

A padding row reads the null slot, writes none, and its output is zero.
"""

import functools
import importlib.metadata
import importlib.util
from typing import NamedTuple

import torch
from packaging.version import Version

from ..base import Backend, Variant, capability, dtype_name, is_h200, needs_capability
from .cache import decode_function

HEAD_DIM = 128
STATE_DTYPES = (torch.bfloat16, torch.float32, torch.float16)
MINIMUM_VERSION = "4.8"  # of the CuTe DSL: the first release that this was tried with


class Tile(NamedTuple):
    """How the kernel is launched. ahead: it asks for its state before it waits for the kernel ahead."""

    rows: int  # of the state, for a warp at a time
    warps: int  # of a block
    ahead: bool = False
    tiles: int = 1  # of `rows` rows that a warp takes; more than one come through shared memory
    keep: bool = False  # the L2 keeps the state until it is written


class CuteDSLBackend(Backend):
    name = "cutedsl"
    distribution = "nvidia-cutlass-dsl"
    variants = (
        Variant(
            "vk",
            "VK",
            STATE_DTYPES,
            "CuTe DSL, K-last pool, PDL",
            order=60,
            colour="#CC79A7",
            marker="P",
            needs=(9, 0),
        ),
    )
    auto = {"decode": 10}

    def missing(self, device):
        return needs_capability(device, 9) or _not_installed()

    def refusal_of_sizes(self, call):
        K, V = call.shape.head_k_dim, call.shape.head_v_dim
        if (K, V) != (HEAD_DIM, HEAD_DIM):
            return f"takes head_k_dim and head_v_dim of {HEAD_DIM}; these are {K} and {V}"
        if call.io_dtype != torch.bfloat16:
            return f"takes inputs of bfloat16; these are {dtype_name(call.io_dtype)}"
        return None

    def decode_launch(self, variant, call):
        HV, architecture = call.shape.num_v_heads, architecture_of(call.device)
        dtypes = dtype_name(call.state_dtype), dtype_name(call.index_dtype)
        of_h200 = is_h200(call.device)
        kernels = {}  # (tile, use_qk_l2norm) -> compiled function

        def prepare(tile, l2norm, aligned=True):
            return decode_function(architecture, call.shape.num_k_heads, HV, *dtypes, *tile, l2norm, aligned)

        def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
            tile = tile_for(q.shape[0] * HV, call.state_dtype, of_h200)
            kernel = kernels.get((tile, use_qk_l2norm))
            if kernel is None:
                kernel = kernels[tile, use_qk_l2norm] = prepare(tile, use_qk_l2norm)
            try:
                kernel(q, k, v, a, b, A_log, dt_bias, state.data, indices, out, scale)
            except ValueError:  # the kernel checks alignment itself: aligned calls pay nothing for it
                if is_aligned(q) and is_aligned(k):
                    raise
                kernel = prepare(tile, use_qk_l2norm, aligned=False)
                kernel(q, k, v, a, b, A_log, dt_bias, state.data, indices, out, scale)

        return launch


def decode_with_fast_exponentials(q, k, v, a, b, *, A_log, dt_bias, pool, indices, out):
    """Decode as `cutedsl/vk` does, with the GPU's approximate exponentials: to measure what exact ones gain.

    Heads of q and k begin at multiples of 16 bytes. Nothing is checked.
    """
    shape, dtypes = pool.shape, (dtype_name(pool.dtype), dtype_name(indices.dtype))
    tile = tile_for(q.shape[0] * shape.num_v_heads, pool.dtype, is_h200(q.device))
    heads = shape.num_k_heads, shape.num_v_heads
    kernel = decode_function(architecture_of(q.device), *heads, *dtypes, *tile, True, True, False)
    kernel(q, k, v, a, b, A_log, dt_bias, pool.state, indices, out, shape.scale)


def tile_for(heads: int, state_dtype: torch.dtype, of_h200: bool = False) -> Tile:
    """Return the tile for B · HV heads. of_h200: on that GPU.

    Small to fill the GPU, large for bytes in flight; four warps, since blocks of one start too slowly. Chosen by times
    on an H100 and an H200 for bfloat16; for float32 the nearest in bytes of a warp. float16 takes those of bfloat16.
    A GPU of 132 multiprocessors has room for 2,112 warps of 16 rows: four warps a head, through shared memory, keep up
    to 528 heads in one wave.
    """
    few, most = heads <= 128, heads >= 8192
    if 256 < heads <= 528 and state_dtype != torch.float32:
        return Tile(16, 1, tiles=2)
    rows = 4 if few else 32 if most else 16
    if state_dtype == torch.float32 and not few:
        rows //= 2
    keep = of_h200 and heads >= 16384 and state_dtype != torch.float32
    return Tile(rows, 4, ahead=heads <= 256, keep=keep)


def architecture_of(device: torch.device) -> str:
    """Return the CuTe DSL's name of a GPU: "sm_90a"."""
    return "sm_{}{}a".format(*capability(device))


def is_aligned(x: torch.Tensor) -> bool:
    """Whether each head of q or k [B, HK, 128] begins at a multiple of 16 bytes."""
    return x.data_ptr() % 16 == 0 and x.stride(0) % 8 == 0 and x.stride(1) % 8 == 0


@functools.cache
def _not_installed() -> str | None:
    """Why the CuTe DSL cannot be used: one sentence, or None."""
    try:
        version = importlib.metadata.version("nvidia-cutlass-dsl")
    except importlib.metadata.PackageNotFoundError:
        return "nvidia-cutlass-dsl is not installed; pip install the version that requirements.txt pins"
    if Version(version) < Version(MINIMUM_VERSION):
        return f"needs nvidia-cutlass-dsl {MINIMUM_VERSION} or newer; {version} is installed"
    if importlib.util.find_spec("tvm_ffi") is None:
        return "needs apache-tvm-ffi, which is not installed; pip install apache-tvm-ffi"
    try:
        from . import decode as cutedsl_decode  # noqa: F401
    except Exception as error:  # a broken installation fails in many ways; each is a reason, given in full
        return f"nvidia-cutlass-dsl {version} cannot be imported ({type(error).__name__}: {error}); reinstall it"
    return None


BACKEND = CuteDSLBackend()
