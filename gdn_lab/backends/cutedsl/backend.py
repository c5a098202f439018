"""`cutedsl`: our decode kernel in the CuTe DSL (cutedsl_decode.py), on the K-last pool in place.

Compiled once for each number of heads, state and index dtype and tile, for every batch, pool size and stride. What was
compiled is kept in the user's cache folder; `prepared` says what each kernel of this process cost before its first
call. A call then is one function that takes the tensors as they are: torch's current stream, no allocation.

A padding row reads the null slot, writes none, and its output is zero.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from ...reference import NORM_EPS, SOFTPLUS_THRESHOLD
from ..base import Backend, Variant, capability, dtype_name, needs_capability
from ..flashinfer import release

HEAD_DIM = 128
STATE_DTYPES = (torch.bfloat16, torch.float32)
MINIMUM_VERSION = (4, 8)  # of the CuTe DSL: the first release that this was tried with


class Prepared(NamedTuple):
    """A kernel made ready in this process: its build, whether the cache folder had it, and the seconds it took."""

    build: object
    from_cache: bool
    seconds: float


prepared: list[Prepared] = []


def preparation() -> str:
    """What `prepared` says, in one sentence: the time that is no part of any call's."""
    if not prepared:
        return "cutedsl prepared no kernel in this process."
    compiled = [kernel.seconds for kernel in prepared if not kernel.from_cache]
    loaded = [kernel.seconds for kernel in prepared if kernel.from_cache]
    said = [f"{len(compiled)} compiled in {sum(compiled):.1f} s"] if compiled else []
    said += [f"{len(loaded)} loaded from the cache folder in {sum(loaded):.1f} s"] if loaded else []
    return f"cutedsl kernels made ready before their first call: {', '.join(said)}."


class CuteDSLBackend(Backend):
    name = "cutedsl"
    distribution = "nvidia-cutlass-dsl"
    variants = (
        Variant(
            "vk", "VK", STATE_DTYPES, "CuTe DSL, K-last pool, PDL", order=60, colour="#CC79A7", marker="P", needs=(9, 0)
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
        kernels = {}  # (tile, use_qk_l2norm) -> compiled function

        def prepare(tile, l2norm, aligned=True):
            return decode_function(architecture, call.shape.num_k_heads, HV, *dtypes, *tile, l2norm, aligned)

        def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
            tile = tile_for(q.shape[0] * HV, call.state_dtype)
            kernel = kernels.get((tile, use_qk_l2norm))
            if kernel is None:
                kernel = kernels[tile, use_qk_l2norm] = prepare(tile, use_qk_l2norm)
            try:
                kernel(q, k, v, a, b, A_log, dt_bias, state.data, indices, out, scale)
            except ValueError:  # the kernel checks alignment itself, so that the calls that have it pay nothing more
                if is_aligned(q) and is_aligned(k):
                    raise
                kernel = prepare(tile, use_qk_l2norm, aligned=False)
                kernel(q, k, v, a, b, A_log, dt_bias, state.data, indices, out, scale)

        return launch


def tile_for(heads: int, state_dtype: torch.dtype) -> tuple[int, int]:
    """(rows of the state for a warp, warps of a block) for B · HV heads.

    Small to fill the GPU, large for bytes in flight; four warps, since blocks of one start too slowly. Chosen by times
    on an H100 for bfloat16; float32 gets what comes nearest in bytes of a warp.
    """
    few, most = heads <= 128, heads >= 8192
    if state_dtype == torch.float32:
        return 4 if few else 16 if most else 8, 4
    return 4 if few else 32 if most else 16, 4


def architecture_of(device: torch.device) -> str:
    """What the CuTe DSL calls a GPU: "sm_90a"."""
    return "sm_{}{}a".format(*capability(device))


@functools.cache
def decode_function(*build):
    """The compiled function of a Build, given as its fields: from the cache folder, or compiled and put there."""
    start = time.perf_counter()
    from .decode import Build, compile_decode

    build = Build(*build)
    path = cache_folder() / f"{_fingerprint(build)}.o"
    function = _load(path)
    from_cache = function is not None
    if not from_cache:
        compiled = compile_decode(build)
        # As loaded it is called without a layer of Python that it has as compiled, a microsecond less.
        function = _keep(compiled, path) and _load(path) or compiled
    prepared.append(Prepared(build, from_cache, time.perf_counter() - start))
    return function


def cache_folder() -> Path:
    """Where compiled kernels are kept; may be emptied at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gdn_lab" / "cutedsl"


def _fingerprint(build) -> str:
    """Of all that a compiled kernel depends on: the build, the source, the compiler's versions, the processor."""
    source = (Path(__file__).parent / "decode.py").read_text()
    parts = [repr((build, NORM_EPS, SOFTPLUS_THRESHOLD)), platform.machine(), source, _compiler()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@functools.cache
def _compiler() -> str:
    """Names and versions of the CuTe DSL's distributions and of the library its compiled functions are called by."""
    found = {(d.metadata["Name"] or "").lower(): d.version for d in importlib.metadata.distributions()}
    return str(sorted(x for x in found.items() if x[0].startswith("nvidia-cutlass-dsl") or x[0] == "apache-tvm-ffi"))


def _symbol(path: Path) -> str:
    """Name of the function in an object file. Of its own, since those of all files end up in one process."""
    return f"gdn_decode_{path.stem}"


def _load(path: Path):
    """The compiled function in an object file; None if there is no such file, or it cannot be loaded."""
    import cutlass.cute as cute

    if not path.exists():
        return None
    try:
        return getattr(cute.runtime.load_module(str(path), enable_tvm_ffi=True), _symbol(path))
    except Exception as error:
        warnings.warn(f"{path} cannot be loaded ({error}); its kernel is compiled anew", stacklevel=4)
        return None


def _keep(compiled, path: Path) -> bool:
    """Writes a compiled function to `path`: beside it, then renamed, so that no process reads half a file."""
    beside = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        compiled.export_to_c(str(beside), function_name=_symbol(path))
        beside.replace(path)
        return True
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        warnings.warn(f"{path.parent} takes no files ({error}); each process compiles its kernels anew", stacklevel=4)
        return False


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
    if release(version) < MINIMUM_VERSION:
        return f"needs nvidia-cutlass-dsl {'.'.join(map(str, MINIMUM_VERSION))} or newer; {version} is installed"
    if importlib.util.find_spec("tvm_ffi") is None:
        return "needs apache-tvm-ffi, which is not installed; pip install apache-tvm-ffi"
    try:
        from . import decode as cutedsl_decode  # noqa: F401
    except Exception as error:  # a broken installation fails in many ways; each is a reason, told in full
        return f"nvidia-cutlass-dsl {version} cannot be imported ({type(error).__name__}: {error}); reinstall it"
    return None


BACKEND = CuteDSLBackend()
