"""What the compilers make of each kernel for a GPU that need not be here: registers, shared memory, stack.

    python -m gdn_lab.resources [sm_90a sm_100a ...]      one JSON line for each kernel and architecture

A stack means that registers spilled to memory or an array is indexed at run time; either is slow.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from ..backends.base import KernelCase

ARCHITECTURES = {"sm_90a": 90, "sm_100a": 100, "sm_120a": 120}  # Hopper, Blackwell B200, Blackwell RTX


class Resources(NamedTuple):
    """Of one kernel on one architecture: registers and bytes of stack a thread, bytes of shared memory a block."""

    label: str
    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    num_warps: int


def cases(architecture: str) -> list[KernelCase]:
    """Every compilation of a Triton kernel that an architecture may see."""
    from .. import pool_kernels
    from ..backends.triton import backend as triton

    modules = (triton, pool_kernels)
    found = [case for module in modules for case in module.kernel_cases()]
    return [case for case in found if case.architectures is None or architecture in case.architectures]


def compiled(case: KernelCase, architecture: str):
    """Triton's compiled kernel for `architecture`, a key of ARCHITECTURES; its .asm has "ptx" and "cubin"."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: {architecture!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
    names = case.kernel.arg_names
    signature = {name: "constexpr" if name in case.constants else case.types[name] for name in names}
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    # Pointers and strides are multiples of 16 in practice, as the launcher finds out by itself.
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name] not in ("constexpr", "fp32")
    }
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", ARCHITECTURES[architecture], 32)
    options = {"num_warps": case.num_warps}
    if case.num_stages is not None:
        options["num_stages"] = case.num_stages
    if case.registers is not None:
        options["maxnreg"] = case.registers
    return triton.compile(source, target=target, options=options)


def resources(case: KernelCase, architecture: str) -> Resources:
    """Of a Triton kernel compiled for `architecture`."""
    kernel = compiled(case, architecture)
    return _resources(case.label, architecture, kernel.asm["cubin"], kernel.metadata.shared, case.num_warps)


def cutedsl_compiled(build):
    """What the CuTe DSL makes of one of cutedsl.kernel_builds(): an object with .PTX and .CUBIN."""
    from ..backends.cutedsl.decode import compile_decode

    with tempfile.TemporaryDirectory() as folder:
        return compile_decode(build, f"--keep-ptx --keep-cubin --dump-dir={folder}").artifacts


def cutedsl_resources(build) -> Resources:
    """Of the CuTe DSL's decode kernel for the architecture in `build`, one of cutedsl.kernel_builds()."""
    alignment = "aligned" if build.aligned else "unaligned"
    label = f"cutedsl {build.state_dtype} rows {build.rows} {alignment}"
    return _resources(label, build.architecture, cutedsl_compiled(build).CUBIN, 0, build.warps)


def _resources(label, architecture, cubin: bytes, dynamic_shared: int, num_warps: int) -> Resources:
    """From the report of the cuobjdump that comes with Triton."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", report)}
    shared, stack = found["SHARED"] + dynamic_shared, found["STACK"] + found["LOCAL"]
    return Resources(label, architecture, found["REG"], shared, stack, num_warps)


def main(architectures: list[str]) -> int:
    from ..backends.cutedsl.backend import kernel_builds

    if unknown := [name for name in architectures if name not in ARCHITECTURES]:
        print(f"architecture: {', '.join(unknown)} unknown; choose some of {', '.join(ARCHITECTURES)}", file=sys.stderr)
        return 2
    for architecture in architectures or ARCHITECTURES:
        for case in cases(architecture):
            print(json.dumps(resources(case, architecture)._asdict()), flush=True)
        for build in kernel_builds(architecture) if importlib.util.find_spec("cutlass") else ():
            print(json.dumps(cutedsl_resources(build)._asdict()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
