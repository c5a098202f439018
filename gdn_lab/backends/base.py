"""What a backend is: a name, variants, a rule of refusal in sentences, and one launch function for each phase."""

import contextlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..models import GDNShape
from ..rounding import Stochastic

ROLES = ("ours", "baseline", "peer", "eager", "yours")
UNSET_ORDER = 1000  # of a variant that does not say where it stands: after those that do, by name


@dataclass(frozen=True)
class Variant:
    """One kernel of a backend, and everything the workbook knows about it: what `backend="triton/kv8"` names.

    name: "kv8"; `full_name` is "triton/kv8". backend: set when the backend is registered.
    layout: of the pool, "VK" or "KV". state_dtypes, phases: what it can serve. description: half a sentence.
    role: "ours"; "baseline", ours as an engine had it before; "peer", another library's; "eager", plain PyTorch;
        "yours", a kernel from outside of the workbook (author.py).
    label: in tables and figures, by default the full name. order: place among the variants, small first.
    colour ("#rrggbb"), marker (matplotlib's): by default ones of its own that no other variant has.
    note: what a reader must know next to its label, such as "without PDL".
    needs: first compute capability that it serves, (9, 0), or (0, 0) for any device.
    copies: its kernel takes no pool; a call gathers its states and scatters them back, which counts as part of it.
    host_sync: phases in which it synchronises with the host, so they cannot be captured in a CUDA graph.
    allocates: a call with out= allocates memory.
    leaks: phases in which NaN in one row or sequence can reach another one, such as ("prefill",); "auto" avoids those.
    stochastic: phases in which it can round the state stochastically (rounding.py).
    vk_twin: full name of the VK variant of the same kernel: it differs from this KV one in layout and tile alone.
    normalises: it can normalise q and k; False: it takes them as they are and refuses use_qk_l2norm=True.
    ring: its decode defers the write of the state: updates that the pool's ring must hold, 0 for a pool without one.
    """

    name: str
    layout: str
    state_dtypes: tuple[torch.dtype, ...]
    description: str
    phases: tuple[str, ...] = ("decode",)
    role: str = "ours"
    label: str = ""
    order: int = UNSET_ORDER
    colour: str = ""
    marker: str = ""
    note: str = ""
    needs: tuple[int, int] = (0, 0)
    copies: bool = False
    host_sync: tuple[str, ...] = ()
    allocates: bool = False
    leaks: tuple[str, ...] = ()
    stochastic: tuple[str, ...] = ()
    vk_twin: str = ""
    normalises: bool = True
    ring: int = 0
    backend: str = ""

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"role: expected one of {', '.join(ROLES)}, got {self.role!r} (variant {self.name!r})")
        if self.layout not in ("VK", "KV"):
            raise ValueError(f"layout: expected VK or KV, got {self.layout!r} (variant {self.name!r})")

    @property
    def full_name(self) -> str:
        """What decode() takes as `backend`: "triton/kv8"."""
        return f"{self.backend}/{self.name}"


class Operands(NamedTuple):
    """What the kernels of a step on an FP8 state hand to each other, for each slot.

    taken [slots, 2] int32: the ring's span as the step found it. due [1 + slots] int32: how many rows fill their ring,
    and which. factors [slots, HV, 2 C + 5] float32. terms [slots, HK, 6, K] float8_e4m3fn: up to three of k, then of q.
    """

    taken: torch.Tensor
    due: torch.Tensor
    factors: torch.Tensor
    terms: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(part.nbytes for part in self)


class Ring(NamedTuple):
    """The updates of each slot's state that are not yet part of it, up to C of them, oldest first.

    With the state S₀ as stored and the log decays g of the pending updates first ≤ j < end, the true state is

        S = e^{Σ g_i} S₀ + Σ_j e^{Σ_{i > j} g_i} u_j k_jᵀ

    keys [slots, HK, C, K]: k as it came, in the inputs' dtype, so that nothing is rounded.
    corrections [slots, HV, C, V]: u over the norm of k, bf16 for a state of bf16 or FP8, else float32.
    log_decays [slots, HV, C] float32.
    span [slots, 2] int32: first and end. A step that finds end = C writes the true state and starts over at 0;
    with an FP8 state a step that fills the ring does so at its end, so that end < C between steps.
    arrivals [slots] int32: how many programs of a step have read the spans of a group of rows, counted at its largest
    slot; the last moves them on. 0 between steps.
    operands: what the kernels of a step on an FP8 state hand to each other, else None.
    """

    keys: torch.Tensor
    corrections: torch.Tensor
    log_decays: torch.Tensor
    span: torch.Tensor
    arrivals: torch.Tensor
    operands: Operands | None = None

    @property
    def updates(self) -> int:
        """C, the most updates that a slot can hold back."""
        return self.keys.shape[2]

    @property
    def period(self) -> int:
        """Steps from one write of a slot's state to the next: C + 1, with an FP8 state C."""
        return self.updates + (self.operands is None)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(part.nbytes for part in self if part is not None)


class State(NamedTuple):
    """What a launch works on. data: the pool's state, [slots, HV, V, K] (VK) or [slots, HV, K, V] (KV).

    intermediate: of verify, None or the buffer that takes the state after each token, [B, T, HV, V, K] or
    [B, T, HV, K, V], contiguous but for its first dimension. ring: the pool's, or None.
    rounding: None to round what is stored to nearest, or what stochastic rounding needs. scales: of an FP8 state, those
    of its rows, [slots, HV, V] float32 (e4m3.py); else None.
    """

    data: torch.Tensor
    intermediate: torch.Tensor | None = None
    rounding: Stochastic | None = None
    ring: Ring | None = None
    scales: torch.Tensor | None = None


# What a verify call writes besides its output: the state after all tokens, to the pool; the state after each token, to
# a buffer; nothing; both. Engines use the first three.
VERIFY_MODES = ("update", "intermediate", "output", "update and intermediate")


class Call(NamedTuple):
    """Everything about a call that decides whether a variant can serve it. No tensors, so that it can be a key."""

    phase: str
    layout: str
    state_dtype: torch.dtype
    io_dtype: torch.dtype  # of q, k, v, a, b and the result
    index_dtype: torch.dtype
    shape: GDNShape
    device: torch.device
    mode: str | None = None  # of verify: one of VERIFY_MODES
    stochastic: bool = False  # whether the pool asks for stochastic rounding
    ring: int = 0  # updates that the pool's ring holds; 0: it has none
    key_dtype: torch.dtype | None = None  # of the ring's keys


# Phases that store a state once for many tokens, and round it to nearest whatever the pool asks for.
ROUNDS_ONCE = ("prefill",)

# Prefill takes log g for no less than this, e^-90, below float32's normal numbers: sums over a chunk stay finite.
MIN_LOG_DECAY = -90.0


# decode   launch(q, k, v, a, b, *, A_log, dt_bias, state: State, indices, scale, use_qk_l2norm, out)
# verify   adds update_state; state.intermediate is the buffer or None
# prefill  adds cu_seqlens
# Each updates state.data in place and writes out.
Launch = Callable[..., None]


class Backend(ABC):
    """Subclassed once in each file of this folder; the first variant of a layout is that layout's default.

    For each phase among its variants' phases a subclass has <phase>_launch(variant, call) -> Launch.
    """

    name: str
    distribution: str  # what importlib.metadata knows it by: where the version comes from
    variants: tuple[Variant, ...]
    auto: dict[str, int] = {}  # phase -> rank among the backends that backend="auto" tries, small first; absent: never

    def version(self) -> str | None:
        """Return the version of what is installed, or None."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    def auto_rank(self, call: Call) -> int | None:
        """Rank of this backend for `call` when backend="auto", small first; None: "auto" does not try it."""
        return self.auto.get(call.phase)

    @abstractmethod
    def missing(self, device: torch.device) -> str | None:
        """Why this backend can serve nothing on `device`: one sentence, or None."""

    def refusal(self, variant: Variant, call: Call) -> str | None:
        """Why this variant cannot serve this call: one sentence, or None."""
        if reason := self.missing(call.device):
            return reason
        if call.phase not in variant.phases:
            return f"has no {call.phase} kernel"
        if call.layout != variant.layout:
            return f"needs a pool of layout {variant.layout}; this one is {call.layout}"
        if call.state_dtype not in variant.state_dtypes:
            return f"takes a state of {dtype_names(variant.state_dtypes)}; this one is {dtype_name(call.state_dtype)}"
        if call.stochastic and call.phase not in (*variant.stochastic, *ROUNDS_ONCE):
            return f"rounds the state to nearest in {call.phase}; this pool asks for stochastic rounding"
        defers = variant.ring > 0 and call.phase == "decode"
        if defers and not call.ring:
            return "needs a pool with a ring of deferred updates; call pool.reserve_ring() first"
        if defers and call.key_dtype is not call.io_dtype:
            return (
                f"takes inputs of the ring's dtype, {dtype_name(call.key_dtype)}; these are {dtype_name(call.io_dtype)}"
            )
        return self.refusal_of_sizes(call)

    def refusal_of_sizes(self, call: Call) -> str | None:
        """What is particular to the backend: head sizes, dtypes of inputs and indices."""
        return None


class NotInstalled(Backend):
    """Stands in for a backend whose library cannot be imported, so that it is listed and refuses with the reason."""

    def __init__(self, name: str, distribution: str, variants: tuple[Variant, ...], reason: str):
        self.name, self.distribution, self.variants, self.reason = name, distribution, variants, reason

    def missing(self, device):
        return self.reason


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_names(dtypes) -> str:
    return " or ".join(map(dtype_name, dtypes))


def usable_device(device) -> torch.device | None:
    """Return what torch.device() makes of `device`, or None for None (torch's default device).

    ValueError if it is no device, or a GPU that is not there.
    """
    if device is None:
        return None
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected a name such as 'cpu' or 'cuda:0', got {device!r}") from error
    if device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"device: expected cpu, cuda or meta, got {str(device)!r}")
    there = torch.cuda.device_count() if device.type == "cuda" and torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= there:
        seen = f"{there} GPU{'s' * (there != 1)}" if there else "no GPU"
        raise ValueError(f"device: expected one that is there, got {str(device)!r}; torch sees {seen}")
    return device


_assumed_capability: tuple[int, int] | None = None


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU, (9, 0) say. Launch code asks here, so that another GPU can be assumed."""
    return _assumed_capability or torch.cuda.get_device_capability(device)


def multiprocessors(device: torch.device) -> int:
    """Number of a GPU's streaming multiprocessors, of an assumed GPU an H100's 132; 1 of a CPU."""
    if device.type != "cuda":
        return 1
    return 132 if _assumed_capability else torch.cuda.get_device_properties(device).multi_processor_count


def memory_bytes(device: torch.device) -> int:
    """Memory of a GPU, of an assumed GPU an H100's 80 GB; 0 of a CPU."""
    if device.type != "cuda":
        return 0
    return 80 * 10**9 if _assumed_capability else torch.cuda.get_device_properties(device).total_memory


def is_h200(device: torch.device) -> bool:
    """Hopper with HBM3e: an H200 or a GH200 of 144 GB."""
    return device.type == "cuda" and capability(device)[0] == 9 and memory_bytes(device) > 100 * 10**9


@contextlib.contextmanager
def assumed_capability(major: int, minor: int = 0):
    """Inside, every device has this compute capability: for compiling what another GPU would launch."""
    global _assumed_capability
    before, _assumed_capability = _assumed_capability, (major, minor)
    try:
        yield
    finally:
        _assumed_capability = before


def needs_capability(device: torch.device, major: int, minor: int = 0) -> str | None:
    """One sentence if `device` is not an NVIDIA GPU of at least compute capability major.minor."""
    needs = f"needs an NVIDIA GPU of compute capability {major}.{minor} or newer"
    if device.type != "cuda":
        return f"{needs}; this is a {device.type.upper()}"
    if torch.version.hip:
        return f"{needs}; this is an AMD GPU"
    if not (_assumed_capability or torch.cuda.is_available()):
        return f"{needs}; PyTorch finds none here"
    found = capability(device)
    return None if found >= (major, minor) else f"{needs}; this is {found[0]}.{found[1]}"
