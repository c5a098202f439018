"""Compiled `cutedsl` kernels, kept in the user's cache folder so that each is compiled once a machine.

A file is named by all that the kernel in it depends on: the build, the source, the compiler's versions, the processor.
`prepared` records what each kernel of this process cost before its first call.
"""

import functools
import hashlib
import importlib.metadata
import os
import platform
import time
import warnings
from pathlib import Path
from typing import NamedTuple

from ...files import replacing
from ...reference import NORM_EPS, SOFTPLUS_THRESHOLD


class Prepared(NamedTuple):
    """A kernel made ready in this process: its build, whether the cache folder had it, and the seconds it took."""

    build: object
    from_cache: bool
    seconds: float


prepared: list[Prepared] = []


def preparation() -> str:
    """Say in one sentence what `prepared` holds: time that is no part of any call's."""
    if not prepared:
        return "cutedsl prepared no kernel in this process."
    compiled = [kernel.seconds for kernel in prepared if not kernel.from_cache]
    loaded = [kernel.seconds for kernel in prepared if kernel.from_cache]
    parts = [f"{len(compiled)} compiled in {sum(compiled):.1f} s"] if compiled else []
    parts += [f"{len(loaded)} loaded from the cache folder in {sum(loaded):.1f} s"] if loaded else []
    return f"cutedsl kernels made ready before their first call: {', '.join(parts)}."


@functools.cache
def decode_function(*build):
    """Return the compiled function of a decode.Build, given as its fields: from the cache folder, or compiled now."""
    start = time.perf_counter()
    from .decode import Build, compile_decode

    build = Build(*build)
    path = cache_folder() / f"{fingerprint(build)}.o"
    function = load(path)
    from_cache = function is not None
    if not from_cache:
        compiled = compile_decode(build)
        # A loaded function lacks a layer of Python that a freshly compiled one has: a microsecond less for each call.
        function = keep(compiled, path) and load(path) or compiled
    prepared.append(Prepared(build, from_cache, time.perf_counter() - start))
    return function


def cache_folder() -> Path:
    """Return the folder of compiled kernels; it may be emptied at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gdn_lab" / "cutedsl"


def fingerprint(build) -> str:
    """Return a hash of all that a compiled kernel depends on."""
    source = (Path(__file__).parent / "decode.py").read_text(encoding="utf-8")
    parts = [repr((build, NORM_EPS, SOFTPLUS_THRESHOLD)), platform.machine(), source, compiler()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@functools.cache
def compiler() -> str:
    """Return names and versions of the CuTe DSL's distributions and of the library that calls compiled functions."""
    found = {(d.metadata["Name"] or "").lower(): d.version for d in importlib.metadata.distributions()}
    return str(sorted(x for x in found.items() if x[0].startswith("nvidia-cutlass-dsl") or x[0] == "apache-tvm-ffi"))


def symbol(path: Path) -> str:
    """Return the name of the function in an object file: one of its own, since all files end up in one process."""
    return f"gdn_decode_{path.stem}"


def load(path: Path):
    """Return the compiled function in an object file; None if there is no such file, or it cannot be loaded."""
    import cutlass.cute as cute

    if not path.exists():
        return None
    try:
        return getattr(cute.runtime.load_module(str(path), enable_tvm_ffi=True), symbol(path))
    except Exception as error:
        warnings.warn(f"{path} cannot be loaded ({error}); its kernel is compiled anew", stacklevel=4)
        return None


def keep(compiled, path: Path) -> bool:
    """Write a compiled function to `path` and return whether that succeeded; if not, a warning says why."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            compiled.export_to_c(str(partial), function_name=symbol(path))
        return True
    except (OSError, RuntimeError) as error:
        warnings.warn(f"{path.parent} takes no files ({error}); each process compiles its kernels anew", stacklevel=4)
        return False
