"""The registry: which backends and variants there are, and which of them serves a call.

Every module and package in this folder that defines BACKEND, an instance of base.Backend, is registered: dropping in
one file is enough.
"""

import functools
import importlib
import itertools
import pkgutil
from dataclasses import replace
from typing import NamedTuple

import torch

from ..models import GDNShape
from .base import UNSET_ORDER, Backend, Call, Launch, NotInstalled, Variant, usable_device

NO_BACKENDS = (
    "base",
    "registry",
    "author",
    "author_files",
    "definitions",
    "solution",
)  # modules of this folder that hold none
# Looks for variants that bring none. None of these colours and markers is used by a variant of this folder.
SPARE_COLOURS = ("#332288", "#AA4499", "#999933", "#661100", "#6699CC", "#117733", "#44AA99")
SPARE_MARKERS = ("<", ">", "d", "H", "8", "1", "2", "3", "4")


def _modules():
    """Names of the modules of this package that may hold a backend, in order of name."""
    package = importlib.import_module(__package__)
    return [info.name for info in pkgutil.iter_modules(package.__path__) if info.name not in NO_BACKENDS]


def _registered(name: str) -> Backend | None:
    """The backend of the module `name` with `backend` set in its variants; NotInstalled if it cannot be imported."""
    try:
        backend = getattr(importlib.import_module(f"{__package__}.{name}"), "BACKEND", None)
    except ImportError as error:  # no Triton for this operating system, say: listed, and refuses with this sentence
        return NotInstalled(name, name, (), f"cannot be imported ({error}); install what requirements.txt pins")
    if backend is None:
        return None
    backend.variants = tuple(replace(variant, backend=backend.name) for variant in backend.variants)
    return backend


def discover() -> None:
    """Fill BACKENDS and VARIANTS from the modules in this folder, again if a module was added, and with authors'."""
    found = [backend for backend in map(_registered, _modules()) if backend is not None]
    for backend in _authors.values():
        backend.variants = tuple(replace(variant, backend=backend.name) for variant in backend.variants)
        found.append(backend)
    first = {backend.name: min((v.order for v in backend.variants), default=UNSET_ORDER) for backend in found}
    BACKENDS.clear()
    BACKENDS.update((backend.name, backend) for backend in sorted(found, key=lambda b: (first[b.name], b.name)))
    everything = sorted((v for b in found for v in b.variants), key=lambda v: (v.order, v.full_name))
    colours = _unused(SPARE_COLOURS, {v.colour for v in everything})
    markers = _unused(SPARE_MARKERS, {v.marker for v in everything})
    VARIANTS.clear()
    for v in everything:
        look = {
            "label": v.label or v.full_name,
            "colour": v.colour or next(colours),
            "marker": v.marker or next(markers),
        }
        VARIANTS[v.full_name] = replace(v, **look)
    for backend in found:
        backend.variants = tuple(VARIANTS[v.full_name] for v in backend.variants)
    launch_for.cache_clear()
    defers.cache_clear()


def add(backend: Backend) -> None:
    """Register a backend that is no module of this folder, or register it again after it has changed."""
    _authors[backend.name] = backend
    discover()


def remove(backend: Backend) -> None:
    """Take back a backend that was added."""
    del _authors[backend.name]
    discover()


def _unused(spare, taken):
    """The spare looks that no variant has, and then over again."""
    return itertools.cycle([look for look in spare if look not in taken])


def variant(full_name: str) -> Variant:
    """The record of "triton/kv8". A name that is not registered, as in rows from elsewhere, gets a record of a peer.

    Its look is a spare one, chosen by the name alone.
    """
    if full_name in VARIANTS:
        return VARIANTS[full_name]
    backend, _, name = full_name.partition("/")
    turn = sum(full_name.encode())
    return Variant(
        name,
        "KV" if name.startswith("kv") else "VK",
        (),
        "not installed here",
        role="peer",
        label=full_name,
        colour=SPARE_COLOURS[turn % len(SPARE_COLOURS)],
        marker=SPARE_MARKERS[turn % len(SPARE_MARKERS)],
        backend=backend,
    )


def in_order(full_names) -> list[str]:
    """The names, each once, in the order of tables and figures."""
    return sorted(set(full_names), key=lambda name: (variant(name).order, name))


def vk_twin(full_name: str, phase: str = "decode") -> str | None:
    """The VK variant that differs from a KV one in layout and tile alone, in `phase`; None if there is none."""
    record = variant(full_name)
    twin = VARIANTS.get(record.vk_twin)
    if twin and phase in twin.phases:
        return twin.full_name
    same = [v.full_name for v in VARIANTS.values() if v.backend == record.backend and v.layout == "VK"]
    return next((name for name in same if twin and phase in VARIANTS[name].phases), None)


def auto_order(call: Call) -> tuple[str, ...]:
    """Names of the backends that "auto" tries for a call, in order."""
    ranks = {backend.name: backend.auto_rank(call) for backend in BACKENDS.values()}
    return tuple(sorted((name for name, rank in ranks.items() if rank is not None), key=ranks.get))


class BackendReport(NamedTuple):
    """What backends() says of one backend on one device.

    reason: why it can serve nothing here, or None. `leaks` of its variants: phases in which they are not isolated.
    """

    name: str
    version: str | None  # None: not installed; "": it has none, as a file of an author's
    installed: bool
    variants: tuple[Variant, ...]
    reason: str | None


def backends(device=None) -> list[BackendReport]:
    """What is installed, what each backend can do and why not the rest, on `device` (default: a GPU if there is)."""
    device = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    reports = []
    for backend in BACKENDS.values():
        version = backend.version()
        reports.append(
            BackendReport(backend.name, version, version is not None, backend.variants, backend.missing(device))
        )
    return reports


def refusal(
    name: str,
    shape: GDNShape,
    *,
    layout="VK",
    dtype=torch.bfloat16,
    device="cpu",
    phase="decode",
    io_dtype=torch.bfloat16,
    index_dtype=torch.int32,
    mode=None,
    stochastic=False,
    ring=None,
) -> str | None:
    """Why backend `name` ("triton", "triton/kv8", "auto") cannot serve such a call: one sentence, or None if it can.

    mode: of a verify call, one of base.VERIFY_MODES; None asks about any of them. stochastic: of a pool that rounds so.
    ring: updates that the pool's ring holds, with keys of io_dtype; 0 for a pool without one, None for what the variant
    needs.
    """
    if ring is None:
        ring = VARIANTS[name].ring if name in VARIANTS else 0
    call = Call(phase, layout, dtype, io_dtype, index_dtype, shape, torch.device(device), mode, stochastic)
    call = call._replace(ring=ring, key_dtype=io_dtype)
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


@functools.lru_cache(maxsize=1024)
def defers(name: str, call: Call) -> bool:
    """Tell whether what serves a call under `name` works with the pool's ring; any other needs the true state."""
    chosen, _ = _choose(name, call)
    return chosen is not None and chosen[1].ring > 0 and call.phase == "decode"


def _choose(name: str, call: Call, isolated: bool = False) -> tuple[tuple[Backend, Variant] | None, str | None]:
    """Return (backend, variant) that serves the call and None, or None and the reason why none does.

    isolated: only variants that are; "auto" asks for those.
    """
    if name == "auto":
        reasons = []
        for backend_name in auto_order(call):
            chosen, reason = _choose(backend_name, call, isolated=True)
            if chosen:
                return chosen, None
            reasons.append(f"{backend_name} {reason}")
        return None, f"finds no backend for this call: {'; '.join(reasons) or f'none has a {call.phase} kernel'}"
    backend_name, slash, variant_name = name.partition("/")
    if backend_name not in BACKENDS:
        raise ValueError(f"backend: {backend_name!r} is unknown; choose auto or one of {', '.join(BACKENDS)}")
    backend = BACKENDS[backend_name]
    known = [variant.name for variant in backend.variants]
    if slash and variant_name not in known and known:
        raise ValueError(f"backend: {backend_name} has no variant {variant_name!r}; choose one of {', '.join(known)}")
    refused = []
    # Where the pool has a ring, a variant that works with it comes first
    for variant in sorted(backend.variants, key=lambda v: not (v.ring and call.ring)):
        if variant_name and variant.name != variant_name:
            continue
        reason = backend.refusal(variant, call)
        if reason is None and isolated and call.phase in variant.leaks:
            reason = f"is not isolated in {call.phase}: NaN in one sequence can reach another; name it to take it"
        if reason is None:
            return (backend, variant), None
        # Of several reasons, that of the variant nearest to the call says most.
        distance = (call.phase not in variant.phases, call.layout != variant.layout, variant.ring > call.ring)
        refused.append((distance, reason))
    return None, min(refused, key=lambda entry: entry[0])[1] if refused else backend.missing(call.device)


_authors: dict[str, Backend] = {}  # added by name
BACKENDS: dict[str, Backend] = {}  # by name, in the order of tables
VARIANTS: dict[str, Variant] = {}  # by full name, in the order of tables and figures
discover()
