"""Ways to run a decode step that differ in how they round: backend, dtype of the state, rounding, shortcut."""

from dataclasses import dataclass

import torch

from ...backends.base import dtype_name
from ...backends.registry import VARIANTS, refusal
from ...models import GDNShape
from ...ops import decode
from ...rounding import FP8
from .analysis import FAST

FLOAT32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# What of the gates is rounded to bfloat16 before a step, in float32 inputs and state.
SHORTCUTS = ("none", "dt_bias", "A_log", "beta", "dt_bias, A_log and beta")


@dataclass(frozen=True)
class Way:
    """One way to run a step. backend: full name of a variant. shortcut: "" or FAST for bfloat16 inputs, or one of
    SHORTCUTS, all of which take inputs of float32 (of the same numbers)."""

    backend: str
    dtype: torch.dtype
    rounding: str = "nearest"
    shortcut: str = ""

    @property
    def name(self) -> str:
        """ "triton/vk float32", "triton/vk bfloat16 stochastic", "triton/vk float32, dt_bias in bfloat16"."""
        words = f"{self.backend} {dtype_name(self.dtype)}" + (" stochastic" if self.rounding == "stochastic" else "")
        if not self.shortcut:
            return words
        if self.shortcut == FAST:
            return f"{words}, {FAST}"
        return f"{words}, float32 inputs" if self.shortcut == "none" else f"{words}, {self.shortcut} in bfloat16"

    @property
    def io_dtype(self) -> torch.dtype:
        return FLOAT32 if self.shortcut in SHORTCUTS else BF16

    def decode(self, *arguments, **options):
        """Take a decode step; arguments as those of ops.decode()."""
        if self.shortcut == FAST:
            from ...backends.cutedsl.backend import decode_with_fast_exponentials

            return decode_with_fast_exponentials(*arguments, **options)
        return decode(*arguments, backend=self.backend, **options)

    def fields(self) -> dict:
        """Return the fields of a row that say which way it is of."""
        backend, _, variant = self.backend.partition("/")
        return {
            "way": self.name,
            "backend": backend,
            "variant": variant,
            "layout": VARIANTS[self.backend].layout,
            "state_dtype": dtype_name(self.dtype),
            "io_dtype": dtype_name(self.io_dtype),
            "rounding": self.rounding,
            "shortcut": self.shortcut,
        }

    def refusal(self, shape: GDNShape, device) -> str | None:
        """Say in one sentence why this way cannot run, or return None."""
        return refusal(
            self.backend,
            shape,
            dtype=self.dtype,
            device=device,
            io_dtype=self.io_dtype,
            stochastic=self.rounding == "stochastic",
        )


def all_ways(device) -> list[Way]:
    """Every way for a device: each backend and dtype; stochastic rounding and shortcuts on Triton, on a CPU on torch,
    fast exponentials on cutedsl, and FP8 with a ring.

    A backend counts with its first K-last decode kernel that works on the pool in place. On a GPU eager PyTorch, which
    is slow, runs in float32 alone.
    """
    first = {}
    for variant in VARIANTS.values():
        if variant.layout == "VK" and "decode" in variant.phases and variant.role != "yours" and not variant.copies:
            first.setdefault(variant.backend, variant)
    on_gpu = torch.device(device).type == "cuda"
    main = "triton/vk" if on_gpu else "torch/vk"
    found = []
    for dtype in (FLOAT32, BF16, FP16):
        for variant in first.values():
            slow = variant.role == "eager" and on_gpu and dtype is not FLOAT32
            if dtype in variant.state_dtypes and not slow:
                found.append(Way(variant.full_name, dtype))
    found += [Way(main, dtype, "stochastic") for dtype in (BF16, FP16)]
    found += [Way("cutedsl/vk", FLOAT32, shortcut=FAST), Way("triton/replay-fp8", FP8, "stochastic")] if on_gpu else []
    return found + [Way(main, FLOAT32, shortcut=shortcut) for shortcut in SHORTCUTS]
