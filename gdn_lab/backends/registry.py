"""The registry: which backends there are, and which of them serves a call. base.py says what they have in common."""

import functools
import importlib.metadata
from typing import NamedTuple

import torch

from ..models import GDNShape
from .base import Backend, Call, Launch, NotInstalled, Variant
from .cutedsl.backend import CuteDSLBackend
from .fla import FlashLinearAttentionBackend
from .flashinfer import FlashInferBackend
from .torch import TorchBackend

try:
    from .triton.backend import TritonBackend
except ImportError as _error:  # no Triton for this operating system, say: listed, and refuses with this sentence
    TritonBackend = functools.partial(
        NotInstalled, "triton", "triton", (), f"cannot be imported ({_error}); pip install the pinned triton"
    )

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        TritonBackend(),
        CuteDSLBackend(),
        FlashInferBackend(),
        TorchBackend(),
        FlashLinearAttentionBackend(),
    )
}


# The backends that "auto" tries for each phase, fastest first by the times in data/measured/; torch, the last, serves
# every call. A call does not know its sizes, so an order is that of most sizes. FlashInfer's decode and verify refuse
# tensors by where they begin, which "auto" cannot see beforehand: they come after triton, even where they are faster.
# Peers are for comparison only.
AUTO_ORDER = {
    "decode": ("cutedsl", "triton", "flashinfer", "torch"),
    "verify": ("triton", "flashinfer", "torch"),
    "prefill": ("triton", "flashinfer", "torch"),
}
# On compute capability 9.x FlashInfer's prefill takes down to 0.4 of triton's time, from about 2,048 tokens up; triton
# is ahead for one short sequence, and for sequences of 1,024 with an eighth of the heads.
PREFILL_HOPPER = ("flashinfer", "triton", "torch")


def auto_order(call: Call) -> tuple[str, ...]:
    """The backends that "auto" tries for a call, in order."""
    if call.phase == "prefill" and call.device.type == "cuda" and torch.cuda.is_available():
        if torch.cuda.get_device_capability(call.device)[0] == 9:
            return PREFILL_HOPPER
    return AUTO_ORDER.get(call.phase, tuple(BACKENDS))


class BackendReport(NamedTuple):
    """What backends() says of one backend on one device. reason None: it can serve calls here."""

    name: str
    version: str | None  # None: not installed
    installed: bool
    variants: tuple[Variant, ...]
    reason: str | None


def backends(device=None) -> list[BackendReport]:
    """What is installed, what each backend can do and why not the rest, on `device` (default: a GPU if there is)."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    reports = []
    for backend in BACKENDS.values():
        try:
            version = importlib.metadata.version(backend.distribution)
        except importlib.metadata.PackageNotFoundError:
            version = None
        reports.append(
            BackendReport(backend.name, version, version is not None, backend.variants, backend.missing(device))
        )
    return reports


def refusal(
    name: str, shape: GDNShape, *, layout="VK", dtype=torch.bfloat16, device="cpu", phase="decode",
    io_dtype=torch.bfloat16, index_dtype=torch.int32, mode=None,
) -> str | None:  # fmt: skip
    """Why backend `name` ("triton", "triton/kv8", "auto") cannot serve such a call: one sentence, or None if it can.

    mode: of a verify call, one of base.VERIFY_MODES; None asks about any of them.
    """
    call = Call(phase, layout, dtype, io_dtype, index_dtype, shape, torch.device(device), mode)
    return _choose(name, call)[1]


@functools.lru_cache(maxsize=1024)
def launch_for(name: str, call: Call) -> Launch:
    """The launch function of backend `name` for a call. ValueError with the refusing sentence if it cannot serve it."""
    chosen, reason = _choose(name, call)
    if reason:
        raise ValueError(f"backend {name!r} {reason}")
    backend, variant = chosen
    return getattr(backend, f"{call.phase}_launch")(variant, call)


def serving(name: str, call: Call) -> str:
    """ "backend/variant" that serves a call under `name`. ValueError with the refusing sentence if none can."""
    chosen, reason = _choose(name, call)
    if reason:
        raise ValueError(f"backend {name!r} {reason}")
    return f"{chosen[0].name}/{chosen[1].name}"


def _choose(name: str, call: Call) -> tuple[tuple[Backend, Variant] | None, str | None]:
    """(backend, variant) that serves the call and None, or None and the reason why none does."""
    if name == "auto":
        reasons = []
        for backend_name in auto_order(call):
            chosen, reason = _choose(backend_name, call)
            if chosen and not (backend_name == "triton" and call.device.type == "cpu"):  # interpreted: never by itself
                return chosen, None
            reasons.append(f"{backend_name} {reason}")
        return None, "finds no backend for this call: " + "; ".join(reasons)
    backend_name, _, variant_name = name.partition("/")
    if backend_name not in BACKENDS:
        raise ValueError(f"backend: {backend_name!r} is unknown; choose auto or one of {', '.join(BACKENDS)}")
    backend = BACKENDS[backend_name]
    known = [variant.name for variant in backend.variants]
    if variant_name and variant_name not in known and known:
        raise ValueError(f"backend: {backend_name} has no variant {variant_name!r}; choose one of {', '.join(known)}")
    refused = []
    for variant in backend.variants:
        if variant_name and variant.name != variant_name:
            continue
        reason = backend.refusal(variant, call)
        if reason is None:
            return (backend, variant), None
        # Of several reasons, that of the variant nearest to the call says most.
        distance = (call.phase not in variant.phases, call.layout != variant.layout)
        refused.append((distance, reason))
    return None, min(refused, key=lambda entry: entry[0])[1] if refused else backend.missing(call.device)
