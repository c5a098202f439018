"""Record what Triton kernels are launched with, without running them: the compilations that a machine would make.

Inside recording() every launch of a Triton kernel is noted and nothing runs, so host code can be driven with meta
tensors for GPUs that are not there (backends.base.assumed_capability).
"""

import contextlib
import functools
from typing import NamedTuple

import torch
import triton
from triton.runtime.jit import JITFunction

# Constants that change index arithmetic or the number of repetitions but not the tiling: of compilations that differ in
# these alone the one with the most tokens T is kept, or the first.
SIZES = ("HK", "HV", "T", "ELEMENTS", "DIM")
TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float8_e4m3fn: "fp8e4nv",
}


class Compilation(NamedTuple):
    """One compilation of a Triton kernel.

    types: argument name -> "*bf16", "i32", "fp32". constants: constexprs, and what Triton compiles in: 1 and None.
    divisible: arguments that are multiples of 16. options: num_warps, num_stages, maxnreg, launch_pdl, where given.
    """

    label: str
    kernel: JITFunction
    types: dict[str, str]
    constants: dict[str, object]
    divisible: tuple[str, ...]
    options: dict[str, object]

    @property
    def num_warps(self) -> int:
        """Warps of a program."""
        return self.options.get("num_warps", 4)


class Recorder:
    """The compilations noted so far. what: put before the labels of those that follow, "decode triton/vk" say."""

    def __init__(self):
        self.what = ""
        self._found: dict[tuple, Compilation] = {}

    @property
    def compilations(self) -> list[Compilation]:
        """Each compilation once, in the order in which it was first met."""
        return list(self._found.values())

    def note(self, kernel: JITFunction, arguments: tuple, named: dict) -> None:
        """Note the launch of `kernel` with these positional and keyword arguments."""
        given = dict(zip(kernel.arg_names, arguments, strict=False)) | named
        options = {name: value for name, value in named.items() if name not in kernel.arg_names and value is not None}
        tokens = given["T"] if "T" in constexprs(kernel) else 1
        key = self._key(kernel, given, options), tokens == 1
        known = self._found.get(key)
        if known is None or known.constants.get("T", 1) < tokens:
            self._found[key] = self._compilation(kernel, given, options)

    @staticmethod
    def _key(kernel, given, options) -> tuple:
        names, pointers, tiling = constexprs(kernel), [], []
        for name in kernel.arg_names:
            value = given[name]
            if name in names:
                tiling += [] if name in SIZES else [str(value)]
            elif isinstance(value, torch.Tensor):
                pointers.append(value.dtype)
        return kernel.__name__, *pointers, *tiling, *sorted(options.items())

    def _compilation(self, kernel, given, options) -> Compilation:
        types, constants, divisible = {}, {}, []
        for parameter in kernel.params:
            value = given[parameter.name]
            if parameter.is_constexpr:
                constants[parameter.name] = value
                continue
            if value is None or type(value) is int and value == 1 and not parameter.do_not_specialize:
                constants[parameter.name] = value
                continue
            types[parameter.name] = type_of(value)
            at_all = not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
            if at_all and is_multiple_of_16(value):
                divisible.append(parameter.name)
        label = f"{self.what}: {describe(kernel, constants)}"
        return Compilation(label, kernel, types, constants, tuple(divisible), options)


@contextlib.contextmanager
def recording():
    """Yield a Recorder; inside, launches are noted and not run."""
    recorder, run = Recorder(), JITFunction.run

    def note(kernel, *arguments, grid, warmup, **named):
        recorder.note(kernel, arguments, named)

    JITFunction.run = note
    try:
        yield recorder
    finally:
        JITFunction.run = run


@functools.cache
def constexprs(kernel: JITFunction) -> list[str]:
    """Return the names of a kernel's constexpr parameters."""
    return [parameter.name for parameter in kernel.params if parameter.is_constexpr]


def describe(kernel: JITFunction, constants: dict) -> str:
    """Return the kernel's name with its constexprs: "recurrent_kernel HK=16 ... TILE=8 K_LAST OVERLAP"."""
    words = [kernel.__name__]
    for name in constexprs(kernel):
        value = constants[name]
        if value is True:
            words.append(name)
        elif value is not False and not isinstance(value, float):
            words.append(f"{name}={value}")
    return " ".join(words)


def type_of(value) -> str:
    """Return what Triton calls the type of an argument."""
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def is_multiple_of_16(value) -> bool:
    """Whether Triton finds an argument divisible by 16: tensors by where they begin in their storage."""
    if isinstance(value, torch.Tensor):
        return value.storage_offset() * value.element_size() % 16 == 0
    return type(value) is int and value % 16 == 0


def compiled(compilation: Compilation, capability: int):
    """Return Triton's compiled kernel for a compute capability, 90 say; its .asm has "ptx" and "cubin".

    The code has no line numbers, which take a quarter of the time.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = compilation.kernel.arg_names
    signature = {name: compilation.types.get(name, "constexpr") for name in names}
    source = ASTSource(
        fn=compilation.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in compilation.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in compilation.divisible},
    )
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=compilation.options)
