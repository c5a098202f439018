"""Each selection rule: what it lets through, what it refuses, and that the message names setting, value and way out."""

import pytest
import torch

from gdn_lab import config
from gdn_lab.config import EngineSettings, Machine, Resolved, resolve

HOPPER = Machine((9, 0), "0.7.2.post1")
BLACKWELL = Machine((10, 0), "0.7.2.post1")
NO_GPU = Machine(None, None)

ALLOWED = [
    ("defaults run triton everywhere", {}, HOPPER, "float32", Resolved("triton", "triton", "float32")),
    ("triton needs no GPU", {}, NO_GPU, "float32", Resolved("triton", "triton", "float32")),
    ("both phases inherit", {"linear_attn_backend": "flashinfer"}, HOPPER, "float32",
     Resolved("flashinfer", "flashinfer", "float32")),
    ("decode overrides", {"linear_attn_decode_backend": "cutedsl"}, HOPPER, "float32",
     Resolved("cutedsl", "triton", "float32")),
    ("prefill overrides", {"linear_attn_backend": "cutedsl", "linear_attn_prefill_backend": "triton"}, HOPPER,
     "float32", Resolved("cutedsl", "triton", "float32")),
    ("flashinfer prefill alone", {"linear_attn_prefill_backend": "flashinfer"}, HOPPER, "float32",
     Resolved("triton", "flashinfer", "float32")),
    ("setting beats the model's dtype", {"mamba_ssm_dtype": "bfloat16"}, HOPPER, "float32",
     Resolved("triton", "triton", "bfloat16")),
    ("float32 state is fine on Hopper", {"linear_attn_decode_backend": "flashinfer"}, HOPPER, "float32",
     Resolved("flashinfer", "triton", "float32")),
    ("bfloat16 set on Blackwell", {"linear_attn_decode_backend": "flashinfer", "mamba_ssm_dtype": "bfloat16"},
     BLACKWELL, "float32", Resolved("flashinfer", "triton", "bfloat16")),
    ("unset on Blackwell, the model's own is bfloat16", {"linear_attn_decode_backend": "flashinfer"}, BLACKWELL,
     "bfloat16", Resolved("flashinfer", "triton", "bfloat16")),
    ("float32 with triton decode on Blackwell", {}, BLACKWELL, "float32", Resolved("triton", "triton", "float32")),
    ("first version on Hopper", {"linear_attn_decode_backend": "flashinfer",
                                 "mamba_scheduler_strategy": "extra_buffer"},
     Machine((9, 0), "0.6.4"), "float32", Resolved("flashinfer", "triton", "float32")),
    ("first version on Blackwell", {"linear_attn_decode_backend": "flashinfer",
                                    "mamba_scheduler_strategy": "extra_buffer"},
     Machine((10, 0), "0.6.5"), "bfloat16", Resolved("flashinfer", "triton", "bfloat16")),
    ("no_buffer from the version that fixed padding", {"linear_attn_decode_backend": "flashinfer"},
     Machine((9, 0), "0.6.7"), "float32", Resolved("flashinfer", "triton", "float32")),
    ("a later patch of the fixed version", {"linear_attn_decode_backend": "flashinfer"},
     Machine((9, 0), "0.6.7.post1"), "float32", Resolved("flashinfer", "triton", "float32")),
    ("flashinfer prefill alone on Blackwell leaves the dtype free", {"linear_attn_prefill_backend": "flashinfer"},
     BLACKWELL, "float32", Resolved("triton", "flashinfer", "float32")),
    ("flashinfer prefill alone leaves the scheduler free", {"linear_attn_prefill_backend": "flashinfer"},
     Machine((9, 0), "0.6.4"), "float32", Resolved("triton", "flashinfer", "float32")),
    ("every choice of the scheduler", {"mamba_scheduler_strategy": "extra_buffer"}, NO_GPU, "float16",
     Resolved("triton", "triton", "float16")),
    ("no_buffer with triton and an old flashinfer", {}, Machine((9, 0), "0.6.4"), "float32",
     Resolved("triton", "triton", "float32")),
]  # fmt: skip

REFUSED = [
    ("unknown backend", {"linear_attn_backend": "cuda"}, HOPPER, "float32",
     "linear_attn_backend: 'cuda' is unknown; choose one of triton, cutedsl, flashinfer"),
    ("unknown decode backend", {"linear_attn_decode_backend": "tritn"}, HOPPER, "float32",
     "linear_attn_decode_backend: 'tritn' is unknown; choose one of triton, cutedsl, flashinfer"),
    ("unknown prefill backend", {"linear_attn_prefill_backend": ""}, HOPPER, "float32",
     "linear_attn_prefill_backend: '' is unknown; choose one of triton, cutedsl, flashinfer"),
    ("unknown dtype", {"mamba_ssm_dtype": "fp8"}, HOPPER, "float32",
     "mamba_ssm_dtype: 'fp8' is unknown; choose one of float32, bfloat16, float16"),
    ("unknown strategy", {"mamba_scheduler_strategy": "none"}, HOPPER, "float32",
     "mamba_scheduler_strategy: 'none' is unknown; choose one of no_buffer, extra_buffer"),
    ("cutedsl without CUDA", {"linear_attn_decode_backend": "cutedsl"}, NO_GPU, "float32",
     "linear_attn_decode_backend: 'cutedsl' decodes on an NVIDIA GPU only and there is none; "
     "set linear_attn_decode_backend to triton"),
    ("flashinfer without CUDA, inherited", {"linear_attn_backend": "flashinfer"}, NO_GPU, "float32",
     "linear_attn_backend: 'flashinfer' decodes on an NVIDIA GPU only and there is none; "
     "set linear_attn_decode_backend to triton"),
    ("flashinfer prefill without CUDA", {"linear_attn_prefill_backend": "flashinfer"}, NO_GPU, "float32",
     "linear_attn_prefill_backend: 'flashinfer' has no prefill kernel here (it runs on an NVIDIA GPU only); "
     "set linear_attn_prefill_backend to triton"),
    ("cutedsl prefill, inherited", {"linear_attn_backend": "cutedsl"}, HOPPER, "float32",
     "linear_attn_backend: 'cutedsl' has no prefill kernel; set linear_attn_prefill_backend to triton"),
    ("cutedsl prefill, own", {"linear_attn_prefill_backend": "cutedsl"}, HOPPER, "float32",
     "linear_attn_prefill_backend: 'cutedsl' has no prefill kernel; set linear_attn_prefill_backend to triton"),
    ("flashinfer without a prefill kernel for this GPU", {"linear_attn_backend": "flashinfer"},
     HOPPER._replace(flashinfer_prefill="0.7.2 has one for 9.0 and 10.0"), "float32",
     "linear_attn_backend: 'flashinfer' has no prefill kernel here (0.7.2 has one for 9.0 and 10.0); "
     "set linear_attn_prefill_backend to triton"),
    ("GPU too old for flashinfer", {"linear_attn_decode_backend": "flashinfer"}, Machine((8, 0), "0.7.2"), "float32",
     "linear_attn_decode_backend: 'flashinfer' needs compute capability 9.0 or newer and this GPU has 8.0; "
     "set linear_attn_decode_backend to triton"),
    ("flashinfer not installed", {"linear_attn_decode_backend": "flashinfer"}, Machine((9, 0), None), "float32",
     "linear_attn_decode_backend: 'flashinfer' needs flashinfer-python 0.6.4 or newer and none is installed; "
     "install it"),
    ("one version before the first on Hopper", {"linear_attn_decode_backend": "flashinfer"}, Machine((9, 0), "0.6.3"),
     "float32", "linear_attn_decode_backend: 'flashinfer' needs flashinfer-python 0.6.4 or newer on compute capability "
     "9.0 and 0.6.3 is installed; upgrade it or set linear_attn_decode_backend to triton"),
    ("Hopper's first version on Blackwell", {"linear_attn_decode_backend": "flashinfer"}, Machine((10, 0), "0.6.4"),
     "bfloat16", "linear_attn_decode_backend: 'flashinfer' needs flashinfer-python 0.6.5 or newer on compute "
     "capability 10.0 and 0.6.4 is installed; upgrade it or set linear_attn_decode_backend to triton"),
    ("one version before the first on Blackwell, newer GPU", {"linear_attn_decode_backend": "flashinfer"},
     Machine((12, 0), "0.6.4"), "bfloat16", "linear_attn_decode_backend: 'flashinfer' needs flashinfer-python 0.6.5 or "
     "newer on compute capability 12.0 and 0.6.4 is installed; upgrade it or set linear_attn_decode_backend to triton"),
    ("an old version for prefill alone", {"linear_attn_prefill_backend": "flashinfer"}, Machine((9, 0), "0.6.3"),
     "float32", "linear_attn_prefill_backend: 'flashinfer' needs flashinfer-python 0.6.4 or newer on compute "
     "capability 9.0 and 0.6.3 is installed; upgrade it or set linear_attn_prefill_backend to triton"),
    ("a candidate is older than its release", {"linear_attn_decode_backend": "flashinfer"}, Machine((9, 0), "0.6.7rc1"),
     "float32", "mamba_scheduler_strategy: 'no_buffer' pads CUDA graphs with index -1, which FlashInfer decode follows "
     "out of bounds before 0.6.7 and 0.6.7rc1 is installed; upgrade flashinfer-python or set mamba_scheduler_strategy "
     "to extra_buffer"),
    ("float16 set on the first capability that needs bfloat16",
     {"linear_attn_decode_backend": "flashinfer", "mamba_ssm_dtype": "float16"}, BLACKWELL._replace(capability=(10, 3)),
     "bfloat16", "mamba_ssm_dtype: FlashInfer decode on compute capability 10.3 needs 'bfloat16' and it is 'float16'; "
     "set mamba_ssm_dtype to bfloat16"),
    ("float32 set on Blackwell", {"linear_attn_decode_backend": "flashinfer", "mamba_ssm_dtype": "float32"}, BLACKWELL,
     "bfloat16", "mamba_ssm_dtype: FlashInfer decode on compute capability 10.0 needs 'bfloat16' and it is 'float32'; "
     "set mamba_ssm_dtype to bfloat16"),
    ("unset on Blackwell, the model's own is float32", {"linear_attn_backend": "flashinfer"}, BLACKWELL, "float32",
     "mamba_ssm_dtype: FlashInfer decode on compute capability 10.0 needs 'bfloat16' and it is unset, and the model's "
     "own is 'float32'; set mamba_ssm_dtype to bfloat16"),
    ("no_buffer one version before padding was fixed", {"linear_attn_decode_backend": "flashinfer"},
     Machine((9, 0), "0.6.6"), "float32",
     "mamba_scheduler_strategy: 'no_buffer' pads CUDA graphs with index -1, which FlashInfer decode follows out of "
     "bounds before 0.6.7 and 0.6.6 is installed; upgrade flashinfer-python or set mamba_scheduler_strategy to "
     "extra_buffer"),
]  # fmt: skip


@pytest.mark.parametrize(
    "settings, machine, model_dtype, expected", [row[1:] for row in ALLOWED], ids=[r[0] for r in ALLOWED]
)
def test_allowed(settings, machine, model_dtype, expected):
    assert resolve(EngineSettings(**settings), machine, model_ssm_dtype=model_dtype) == expected


@pytest.mark.parametrize(
    "settings, machine, model_dtype, message", [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused(settings, machine, model_dtype, message):
    with pytest.raises(ValueError) as refusal:
        resolve(EngineSettings(**settings), machine, model_ssm_dtype=model_dtype)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    "capability, installed, prefill",
    [
        (None, "0.7.2", None),
        ((8, 0), "0.7.2", None),
        ((9, 0), None, None),
        ((9, 0), "0.7.2", "asked for 9"),
        ((10, 3), "0.7.2", "asked for 10"),
    ],
    ids=str,
)
def test_this_machine(monkeypatch, capability, installed, prefill):
    """What is found out here; FlashInfer is asked about prefill only where it can serve at all."""

    def version(_):
        if installed is None:
            raise config.importlib.metadata.PackageNotFoundError
        return installed

    monkeypatch.setattr(config.importlib.metadata, "version", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr("gdn_lab.backends.flashinfer.no_prefill", lambda major: f"asked for {major}")
    assert config.this_machine() == Machine(capability, installed, prefill)
