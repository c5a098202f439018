"""The engine's selection rules: which backend decodes, which prefills and which dtype the state has, from its settings.

The settings, their names and what is refused follow SGLang pull request 19150 and what came after it
(data/published/pr19150/selection_rules.csv). resolve() touches no GPU and imports no torch: what the
rules need to know of a GPU is given. this_machine() finds it out; `gdn-lab advise` takes it from a recorded run.

    linear_attn_backend           triton (default), cutedsl, flashinfer: for decode and prefill alike, unless
    linear_attn_decode_backend    says otherwise for decode, or
    linear_attn_prefill_backend   for prefill
    mamba_ssm_dtype               dtype of the recurrent state; unset: the model's own
    mamba_scheduler_strategy      no_buffer (default) or extra_buffer: how the engine schedules state slots
"""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from packaging.version import Version

from .minimum_versions import FLASHINFER as MINIMUM_VERSION

BACKENDS = ("triton", "cutedsl", "flashinfer")
SSM_DTYPES = ("float32", "bfloat16", "float16")
SCHEDULER_STRATEGIES = ("no_buffer", "extra_buffer")
PADDING_FIXED = "0.6.7"  # the first FlashInfer whose decode leaves live slots alone for a padding index of -1


@dataclass(frozen=True)
class EngineSettings:
    """The settings as a user gives them; None is unset."""

    linear_attn_backend: str = "triton"
    linear_attn_decode_backend: str | None = None
    linear_attn_prefill_backend: str | None = None
    mamba_ssm_dtype: str | None = None
    mamba_scheduler_strategy: str = "no_buffer"


class Machine(NamedTuple):
    """What the rules need to know of the machine. capability: (major, minor), None without an NVIDIA GPU.

    flashinfer_prefill: why FlashInfer's prefill cannot serve this GPU, one clause; None if it can.
    """

    capability: tuple[int, int] | None
    flashinfer_version: str | None
    flashinfer_prefill: str | None = None


def this_machine() -> Machine:
    """torch's current GPU, if it is an NVIDIA one, and FlashInfer as it is installed here."""
    import torch

    from .backends.flashinfer import no_prefill

    has_gpu = torch.cuda.is_available() and torch.version.hip is None
    capability = torch.cuda.get_device_capability() if has_gpu else None
    try:
        version = importlib.metadata.version("flashinfer-python")
    except importlib.metadata.PackageNotFoundError:
        version = None
    serves = capability and version and capability[0] >= min(MINIMUM_VERSION)  # otherwise other rules say why not
    return Machine(capability, version, no_prefill(capability[0]) if serves else None)


class Resolved(NamedTuple):
    """What the engine runs."""

    decode_backend: str
    prefill_backend: str
    ssm_dtype: str


def resolve(settings: EngineSettings, machine: Machine, *, model_ssm_dtype: str = "float32") -> Resolved:
    """Applies every rule. model_ssm_dtype: the dtype that the model's own configuration gives its state.

    ValueError for the first rule that is broken: the setting, the value seen, and what to set instead.
    """
    _one_of("linear_attn_backend", settings.linear_attn_backend, BACKENDS)
    _one_of("linear_attn_decode_backend", settings.linear_attn_decode_backend, BACKENDS, optional=True)
    _one_of("linear_attn_prefill_backend", settings.linear_attn_prefill_backend, BACKENDS, optional=True)
    _one_of("mamba_ssm_dtype", settings.mamba_ssm_dtype, SSM_DTYPES, optional=True)
    _one_of("model_ssm_dtype", model_ssm_dtype, SSM_DTYPES)
    _one_of("mamba_scheduler_strategy", settings.mamba_scheduler_strategy, SCHEDULER_STRATEGIES)
    decode = settings.linear_attn_decode_backend or settings.linear_attn_backend
    prefill = settings.linear_attn_prefill_backend or settings.linear_attn_backend
    resolved = Resolved(decode, prefill, settings.mamba_ssm_dtype or model_ssm_dtype)
    for rule in RULES:
        if message := rule(settings, machine, resolved):
            raise ValueError(message)
    return resolved


def _one_of(setting: str, value: str | None, choices: tuple[str, ...], *, optional: bool = False) -> None:
    if value not in choices and not (optional and value is None):
        raise ValueError(f"{setting}: {value!r} is unknown; choose one of {', '.join(choices)}")


def _given_by(settings: EngineSettings, phase: str) -> str:
    """The setting that chose the backend of a phase, which is the one a message must name."""
    own = f"linear_attn_{phase}_backend"
    return own if getattr(settings, own) else "linear_attn_backend"


def _decode_needs_cuda(settings, machine, resolved):
    if resolved.decode_backend != "triton" and machine.capability is None:
        return (
            f"{_given_by(settings, 'decode')}: {resolved.decode_backend!r} decodes on an NVIDIA GPU only and there is "
            "none; set linear_attn_decode_backend to triton"
        )


def _cutedsl_has_no_prefill(settings, machine, resolved):
    if resolved.prefill_backend == "cutedsl":
        return (
            f"{_given_by(settings, 'prefill')}: 'cutedsl' has no prefill kernel; "
            "set linear_attn_prefill_backend to triton"
        )


def _flashinfer_is_new_enough(settings, machine, resolved):
    phases = [p for p in ("decode", "prefill") if getattr(resolved, f"{p}_backend") == "flashinfer"]
    if not phases or machine.capability is None:
        return None
    setting = _given_by(settings, phases[0])
    major, minor = machine.capability
    if major < min(MINIMUM_VERSION):
        return (
            f"{setting}: 'flashinfer' needs compute capability {min(MINIMUM_VERSION)}.0 or newer and this GPU has "
            f"{major}.{minor}; set {setting} to triton"
        )
    needed = MINIMUM_VERSION[max(m for m in MINIMUM_VERSION if m <= major)]
    if machine.flashinfer_version is None:
        return f"{setting}: 'flashinfer' needs flashinfer-python {needed} or newer and none is installed; install it"
    if Version(machine.flashinfer_version) < Version(needed):
        return (
            f"{setting}: 'flashinfer' needs flashinfer-python {needed} or newer on compute capability {major}.{minor} "
            f"and {machine.flashinfer_version} is installed; upgrade it or set {setting} to triton"
        )


def _flashinfer_has_prefill(settings, machine, resolved):
    if resolved.prefill_backend != "flashinfer":
        return None
    reason = "it runs on an NVIDIA GPU only" if machine.capability is None else machine.flashinfer_prefill
    if reason:
        return (
            f"{_given_by(settings, 'prefill')}: 'flashinfer' has no prefill kernel here ({reason}); "
            "set linear_attn_prefill_backend to triton"
        )


def _flashinfer_decode_dtype(settings, machine, resolved):
    if resolved.decode_backend != "flashinfer" or machine.capability < (10, 0) or resolved.ssm_dtype == "bfloat16":
        return None
    seen = (
        repr(settings.mamba_ssm_dtype)
        if settings.mamba_ssm_dtype
        else f"unset, and the model's own is {resolved.ssm_dtype!r}"
    )
    return (
        f"mamba_ssm_dtype: FlashInfer decode on compute capability {machine.capability[0]}.{machine.capability[1]} "
        f"needs 'bfloat16' and it is {seen}; set mamba_ssm_dtype to bfloat16"
    )


def _flashinfer_padding(settings, machine, resolved):
    if resolved.decode_backend != "flashinfer" or settings.mamba_scheduler_strategy != "no_buffer":
        return None
    if Version(machine.flashinfer_version) < Version(PADDING_FIXED):
        return (
            "mamba_scheduler_strategy: 'no_buffer' pads CUDA graphs with index -1, which FlashInfer decode follows out "
            f"of bounds before {PADDING_FIXED} and {machine.flashinfer_version} is installed; "
            "upgrade flashinfer-python or set mamba_scheduler_strategy to extra_buffer"
        )


# In this order: what is impossible at all, then versions, then dtype and scheduling.
RULES: tuple[Callable[[EngineSettings, Machine, Resolved], str | None], ...] = (
    _decode_needs_cuda,
    _cutedsl_has_no_prefill,
    _flashinfer_is_new_enough,
    _flashinfer_has_prefill,
    _flashinfer_decode_dtype,
    _flashinfer_padding,
)
