"""What GPU tests share: the device, its shapes and dtypes, and the variants that should serve it, by their records.

A variant should serve where its library is installed and the GPU has the compute capability that its record needs; one
that then refuses has failed. What a variant takes is asked of it (takes()), so a new backend needs no entry here.
"""

import importlib.metadata

import pytest
import torch
from conftest import HAS_GPU

from gdn_lab import GDNShape
from gdn_lab.backends import refusal
from gdn_lab.backends.base import Variant, dtype_name
from gdn_lab.backends.registry import BACKENDS, VARIANTS
from gdn_lab.rounding import FP8

GPU = torch.device("cuda", 0)
CAPABILITY = torch.cuda.get_device_capability(GPU) if HAS_GPU else (0, 0)
FULL = GDNShape(16, 64)
RANK = GDNShape(2, 8)  # one GPU of eight
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def installed(backend: str) -> bool:
    """Whether the library of a backend is installed."""
    try:
        return bool(importlib.metadata.version(BACKENDS[backend].distribution))
    except importlib.metadata.PackageNotFoundError:
        return False


def serving(phase: str) -> list[Variant]:
    """The variants that should serve `phase` on this GPU, but for those of an FP8 state: test_gpu_replay_fp8.py."""
    here = [v for v in VARIANTS.values() if phase in v.phases and CAPABILITY >= v.needs and installed(v.backend)]
    return [v for v in here if FP8 not in v.state_dtypes]


def kernels(phase: str) -> list[Variant]:
    """Those of them whose call is kernels of their own on the pool, without gathering."""
    return [v for v in serving(phase) if v.role != "eager" and not v.copies]


def takes(variant: Variant, shape=RANK, *, dtype=None, **call) -> bool:
    """Whether a variant takes such a call: phase, io_dtype, index_dtype, mode as of refusal()."""
    options = {"layout": variant.layout, "dtype": dtype or variant.state_dtypes[0], "device": GPU} | call
    return refusal(variant.full_name, shape, **options) is None


def index_dtypes(variant: Variant, **call) -> list[torch.dtype]:
    """The dtypes of indices that a variant takes."""
    return [dtype for dtype in (torch.int32, torch.int64) if takes(variant, index_dtype=dtype, **call)]


def pads_with_zero(variant: Variant) -> bool:
    """Whether padding rows' output is promised to be zero: ours is, a peer's means nothing."""
    return variant.role != "peer"


def named(variants, *more):
    """Parametrize a test over variants, and over `more`: (argument name, function of a variant that gives values)."""
    rows, ids = [], []
    for variant in variants:
        values = [()]
        for _, options in more:
            values = [(*row, option) for row in values for option in options(variant)]
        rows += [(variant, *row) for row in values]
        ids += ["-".join([variant.full_name, *map(word, row)]) for row in values]
    return pytest.mark.parametrize(("variant", *(name for name, _ in more)), rows, ids=ids)


def word(value) -> str:
    """A dtype or another value in a test's name."""
    return dtype_name(value) if isinstance(value, torch.dtype) else str(value)


def with_dtypes(variants):
    """Parametrize a test over variants and the dtypes of the state that each takes."""
    return named(variants, ("dtype", lambda variant: variant.state_dtypes))
