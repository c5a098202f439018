"""What Triton has compiled for a kernel: registers, spills, shared memory."""

from .attempt import Refused, attempt
from .candidate import Candidate


def resources(candidate: Candidate, seconds: float) -> str:
    """Registers and spilled registers of a thread, and shared memory of a block, of each Triton kernel that ran."""
    if not candidate.uses_triton:
        raise Refused("no Triton kernel is in its module, and only those tell")
    if candidate.device.type != "cuda":
        raise Refused("needs a GPU")
    attempt(candidate, candidate.usual())
    lines = []
    for name, function in candidate.namespace().items():
        for kernel in _compiled(function):
            kernel._init_handles()
            spills = f"{kernel.n_spills} spilled" if kernel.n_spills else "none spilled"
            line = (
                f"{name.rpartition('.')[2]}: {kernel.n_regs} registers, {spills}, {kernel.metadata.shared:,} B shared"
            )
            lines += [] if line in lines else [line]
    if not lines:
        raise Refused("no Triton kernel has run")
    return "; ".join(lines)


def _compiled(function) -> list:
    """Return what a JITFunction, or the one that an autotuner or heuristic wraps, has compiled on all devices."""
    while type(function).__name__ in ("Autotuner", "Heuristics"):
        function = function.fn
    caches = getattr(function, "device_caches", None) if type(function).__name__ == "JITFunction" else None
    kernels = [kernel for cache in (caches or {}).values() for kernel in cache[0].values()]
    return [kernel for kernel in kernels if hasattr(kernel, "_init_handles")]  # no other is compiled yet
