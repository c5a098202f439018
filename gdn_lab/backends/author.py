"""Kernels of your own: @variant registers a function from any file or notebook cell, without a change to the workbook.

    from gdn_lab import variant

    @variant("mine/vk", layout="VK", state_dtypes=("bfloat16",), phases=("decode",), needs="sm_90")
    def my_decode(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out): ...

Arguments are those of gdn_lab.decode(), but `state` is the pool's tensor, [slots, HV, V, K] (VK) or [slots, HV, K, V]
(KV): update it in place and write `out`. A verify kernel takes intermediate_states (or None) and update_state too, a
prefill kernel cu_seqlens. author_files.py finds the files.
"""

import importlib.metadata
import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from . import registry
from .base import Backend, Call, Variant, needs_capability

OPTIONS = ("A_log", "dt_bias", "state", "indices", "scale", "use_qk_l2norm", "out")
OPTIONS_OF = {  # phase: the keyword arguments that a kernel gets besides q, k, v, a, b
    "decode": OPTIONS,
    "verify": (*OPTIONS, "intermediate_states", "update_state"),
    "prefill": (*OPTIONS, "cu_seqlens"),
}
TRITON = ("JITFunction", "InterpretedFunction", "Autotuner", "Heuristics")  # types of Triton's kernels
PLAN = "plan"  # what setup() returned, where it is not None
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Origin(NamedTuple):
    """Where a kernel comes from: a path or a module's name; of an installed package its distribution, too."""

    place: str
    distribution: str | None = None

    @property
    def shown(self) -> str:
        """The place without its folders."""
        return os.path.basename(self.place)


class _Part(NamedTuple):
    """What one decorated function serves."""

    function: Callable
    setup: Callable | None
    supports: Callable | None


@dataclass
class AuthorBackend(Backend):
    """All variants of one author: "mine" of "mine/vk" and "mine/kv"."""

    name: str
    variants: tuple[Variant, ...] = ()
    origins: dict[str, Origin] = field(default_factory=dict)  # by name of the variant
    parts: dict[tuple[str, str], _Part] = field(default_factory=dict)  # by name of the variant and phase

    distribution = ""

    def version(self) -> str | None:
        """Return that of the distribution that its kernels were installed with; "" of a file or a notebook."""
        named = {origin.distribution for origin in self.origins.values()} - {None}
        return importlib.metadata.version(named.pop()) if named else ""

    def missing(self, device):
        reasons = [self._refusal_of_device(variant, device) for variant in self.variants]
        return reasons[0] if all(reasons) else None

    def refusal(self, variant: Variant, call: Call) -> str | None:
        if reason := super().refusal(variant, call) or self._refusal_of_device(variant, call.device):
            return reason
        supports = self.parts[variant.name, call.phase].supports
        reason = supports(call) if supports else None
        if reason is not None and not isinstance(reason, str):
            raise TypeError(f"{variant.full_name}: supports(call) must return None or a sentence, got {reason!r}")
        return reason

    def _refusal_of_device(self, variant: Variant, device: torch.device) -> str | None:
        if variant.needs == (0, 0):
            return None
        functions = [part.function for (name, _), part in self.parts.items() if name == variant.name]
        interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        if interpreted and any(map(uses_triton, functions)):
            return None
        return needs_capability(device, *variant.needs)

    def decode_launch(self, variant, call):
        kernel = self._kernel(variant, call)

        def launch(q, k, v, a, b, *, state, **options):
            kernel(q, k, v, a, b, state=state.data, **options)

        return launch

    prefill_launch = decode_launch

    def verify_launch(self, variant, call):
        kernel = self._kernel(variant, call)

        def launch(q, k, v, a, b, *, state, **options):
            kernel(q, k, v, a, b, state=state.data, intermediate_states=state.intermediate, **options)

        return launch

    def _kernel(self, variant: Variant, call: Call) -> Callable:
        """Return the function that serves a call, after its setup, with what that returned as its `plan`."""
        part = self.parts[variant.name, call.phase]
        plan = part.setup(call) if part.setup else None
        if plan is None:
            return part.function

        def planned(*arguments, **options):
            part.function(*arguments, **options, plan=plan)

        return planned


def variant(
    full_name: str,
    *,
    layout: str = "VK",
    state_dtypes=("bfloat16",),
    phases=("decode",),
    needs: str | tuple[int, int] | None = None,
    setup: Callable | None = None,
    supports: Callable | None = None,
    description: str = "",
    role: str = "yours",
    **record,
):
    """Register the decorated function as the variant `full_name` ("mine/vk"), for every table, figure and check.

    layout: of the pool, "VK" or "KV". state_dtypes: names, or torch's. phases: of "decode", "verify", "prefill"; a
    second function of the same name may serve another phase. needs: "sm_90", the least compute capability; None: any
    device. setup(call): compile, plan, allocate; called once for each kind of call and never timed. What it returns, if
    it is not None, is the kernel's keyword argument `plan`. supports(call): None, or one sentence that completes
    "mine/vk …" and says why not. call: a gdn_lab.backends.base.Call. record: further fields of base.Variant, such as
    label, colour, note or host_sync.

    The same name from the same file or notebook replaces what was registered before. ValueError, one sentence, for a
    name that another kernel has, or a function that cannot be called as its phases are.
    """
    backend, slash, name = full_name.partition("/")
    if not slash or not re.fullmatch(r"[\w.-]+", backend) or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f'variant: expected a name such as "mine/vk", got {full_name!r}')
    if isinstance(state_dtypes, str) or isinstance(phases, str):
        raise ValueError(f'{full_name}: state_dtypes and phases are tuples, such as ("bfloat16",) and ("decode",)')
    if not phases or set(phases) - set(OPTIONS_OF):
        raise ValueError(f"{full_name}: phases: expected some of {', '.join(OPTIONS_OF)}, got {', '.join(phases)}")
    dtypes = tuple(_dtype(full_name, dtype) for dtype in state_dtypes)
    made = Variant(
        name, layout, dtypes, description, tuple(phases), role=role, needs=_capability(full_name, needs), **record
    )

    def register(function: Callable) -> Callable:
        for phase in phases:
            _check_signature(full_name, function, phase, planned=setup is not None)
        described = replace(made, description=description or _first_line(function) or "a kernel of your own")
        _add(backend, described, _Part(function, setup, supports), _origin(function))
        return function

    return register


def origin_of(full_name: str) -> Origin | None:
    """Where a kernel of an author's comes from; None for this workbook's own and for other libraries'."""
    backend, _, name = full_name.partition("/")
    found = registry.BACKENDS.get(backend)
    return found.origins.get(name) if isinstance(found, AuthorBackend) else None


def authors_variants() -> list[str]:
    """Return the full names of the variants that authors have registered, in order."""
    return [name for name in registry.VARIANTS if origin_of(name)]


def remove(full_name: str) -> None:
    """Take back what @variant registered under this name."""
    backend, _, name = full_name.partition("/")
    left = registry.BACKENDS[backend]
    left.variants = tuple(v for v in left.variants if v.name != name)
    del left.origins[name]
    left.parts = {key: part for key, part in left.parts.items() if key[0] != name}
    registry.remove(left) if not left.variants else registry.discover()


loading: list[Origin] = []  # what author_files.py is executing


def _origin(function: Callable) -> Origin:
    if loading:
        return loading[-1]
    module = getattr(function, "__module__", "__main__")
    return Origin("this notebook or script" if module == "__main__" else module)


def _add(backend: str, made: Variant, part: _Part, origin: Origin) -> None:
    found = registry.BACKENDS.get(backend)
    full_name = f"{backend}/{made.name}"
    if found is not None and not isinstance(found, AuthorBackend):
        raise ValueError(f"{full_name}: {backend!r} is a backend of the workbook; choose another name before the slash")
    author = found or AuthorBackend(backend)
    other = author.origins.get(made.name, origin)
    if other != origin:
        raise ValueError(f"{full_name} is registered by {other.shown} already; give one of them another name")
    before = next((v for v in author.variants if v.name == made.name), made)
    kept = tuple(phase for phase in before.phases if phase not in made.phases)
    if kept and before.layout != made.layout:
        raise ValueError(f"{full_name} is a variant of layout {before.layout} in {', '.join(kept)}")
    author.parts |= dict.fromkeys(((made.name, phase) for phase in made.phases), part)
    made = replace(made, phases=(*kept, *made.phases))
    author.origins[made.name] = origin
    author.variants = (*(v for v in author.variants if v.name != made.name), made)
    registry.add(author)


def _check_signature(full_name: str, function: Callable, phase: str, planned: bool) -> None:
    """Raise ValueError unless a function can be called as kernels of this phase are."""
    names = OPTIONS_OF[phase]
    if not callable(function):
        raise ValueError(f"{full_name}: expected a function, got {type(function).__name__}")
    signature = inspect.signature(function)
    has = signature.parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in has.values())
    planned = planned and (PLAN in has or anything)
    try:
        signature.bind(*range(5), **dict.fromkeys((*names, PLAN) if planned else names))
    except TypeError as error:
        shown = ", ".join(names)
        raise ValueError(
            f"{full_name}: a {phase} kernel is called with (q, k, v, a, b, *, {shown}), and {function.__name__}() "
            f"cannot be: {error}"
        ) from None


def uses_triton(function: Callable) -> bool:
    """Tell whether a function's module, or one that its module imports from, has Triton kernels."""
    scopes = [getattr(function, "__globals__", {})]
    for value in list(scopes[0].values()):
        scopes.append(vars(value) if inspect.ismodule(value) else getattr(value, "__globals__", {}))
    return any(type(value).__name__ in TRITON for scope in scopes for value in list(scope.values()))


def _first_line(function: Callable) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".")


def _dtype(full_name: str, dtype) -> torch.dtype:
    found = DTYPES.get(dtype, dtype)
    if found not in DTYPES.values():
        raise ValueError(f"{full_name}: state_dtypes: expected some of {', '.join(DTYPES)}, got {dtype!r}")
    return found


def _capability(full_name: str, needs) -> tuple[int, int]:
    """ "sm_90", "sm_90a", (9, 0) -> (9, 0); None -> (0, 0), any device."""
    if needs is None:
        return 0, 0
    if isinstance(needs, tuple) and len(needs) == 2:
        return needs
    found = re.fullmatch(r"sm_(\d+)(\d)[af]?", str(needs))
    if not found:
        raise ValueError(f'{full_name}: needs: expected a compute capability such as "sm_90", or None, got {needs!r}')
    return int(found[1]), int(found[2])
