"""Compile every kernel for GPUs that need not be here, and report registers, shared memory and stack.

    gdn-lab resources [sm_90a sm_100a ...]      one JSON line for each kernel and architecture

A stack means that registers spilled to memory or that an array is indexed at run time; either is slow.
"""

import importlib.util
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from .errors import UsageError

ARCHITECTURES = ("sm_90a", "sm_100a", "sm_120a")


class Resources(NamedTuple):
    """Registers and bytes of stack a thread, bytes of shared memory a block, of one kernel on one architecture."""

    label: str
    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    num_warps: int


def resources(compilation, architecture: str) -> Resources:
    """Compile a Triton kernel, a launches.Compilation, for `architecture` and return its resources."""
    from . import catalogue, launches

    major, minor = catalogue.ARCHITECTURES[architecture]
    kernel = launches.compiled(compilation, 10 * major + minor)
    return _resources(
        compilation.label, architecture, kernel.asm["cubin"], kernel.metadata.shared, compilation.num_warps
    )


def cutedsl_compiled(build):
    """Return what the CuTe DSL makes of one of catalogue.cutedsl_builds(): an object with .PTX and .CUBIN."""
    from ..backends.cutedsl.decode import compile_decode

    with tempfile.TemporaryDirectory() as folder:
        return compile_decode(build, f"--keep-ptx --keep-cubin --dump-dir={folder}").artifacts


def cutedsl_resources(build) -> Resources:
    """Return the resources of the CuTe DSL's decode kernel for the architecture in `build`."""
    alignment = "aligned" if build.aligned else "unaligned"
    tiles = f"{build.tiles} tiles of " if build.tiles > 1 else ""
    label = f"cutedsl {build.state_dtype} {tiles}rows {build.rows} {alignment}{' ahead' if build.ahead else ''}"
    return _resources(label, build.architecture, cutedsl_compiled(build).CUBIN, 0, build.warps)


def _resources(label, architecture, cubin: bytes, dynamic_shared: int, num_warps: int) -> Resources:
    """Read the report of the cuobjdump that comes with Triton."""
    report = dumped(cubin, "-res-usage")
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", report)}
    shared, stack = found["SHARED"] + dynamic_shared, found["STACK"] + found["LOCAL"]
    return Resources(label, architecture, found["REG"], shared, stack, num_warps)


def dumped(cubin: bytes, option: str) -> str:
    """Return what the cuobjdump that comes with Triton prints of a cubin: "-res-usage", "-sass"."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def add_arguments(parser) -> None:
    """Add the command's arguments to an argparse parser."""
    parser.add_argument("architectures", nargs="*", help=f"some of {', '.join(ARCHITECTURES)}; all unless named")


def run(arguments) -> int:
    """Print a JSON line for each kernel and architecture."""
    from . import catalogue

    if unknown := [name for name in arguments.architectures if name not in ARCHITECTURES]:
        raise UsageError(f"architecture: {', '.join(unknown)} unknown; choose some of {', '.join(ARCHITECTURES)}")
    for architecture in arguments.architectures or ARCHITECTURES:
        for compilation in catalogue.compilations(architecture):
            print(json.dumps(resources(compilation, architecture)._asdict()), flush=True)
        for build in catalogue.cutedsl_builds(architecture) if importlib.util.find_spec("cutlass") else ():
            print(json.dumps(cutedsl_resources(build)._asdict()), flush=True)
    return 0
