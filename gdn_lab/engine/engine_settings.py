"""The configuration and the state's dtype that an engine's settings choose for a whole model.

    configuration, dtype = configured(EngineSettings(linear_attn_decode_backend="flashinfer"), this_machine())

linear_attn_decode_backend triton is `before-32`, flashinfer is `after`, cutedsl is `best`; the prefill backend is the
settings' own. What the engine refuses (config.py) is refused here with the same sentence.
"""

from dataclasses import replace

from ..config import EngineSettings, Machine, resolve
from ..layer.configurations import Configuration, configuration

DECODES = {"triton": "before-32", "flashinfer": "after", "cutedsl": "best"}


def configured(
    settings: EngineSettings, machine: Machine, *, model_ssm_dtype: str = "float32"
) -> tuple[Configuration, str]:
    """The Configuration, and the name of the state's dtype. ValueError for what the engine refuses.

    A prefill backend that takes no pool of the decode backend's memory order is refused too: one pool serves both.
    """
    resolved = resolve(settings, machine, model_ssm_dtype=model_ssm_dtype)
    entry = configuration(DECODES[resolved.decode_backend])
    layouts = {"triton": ("VK", "KV"), "flashinfer": ("VK",)}
    if entry.layout not in layouts[resolved.prefill_backend]:
        raise ValueError(
            f"linear_attn_prefill_backend: {resolved.prefill_backend!r} takes a VK (K-last) pool, and "
            f"{resolved.decode_backend!r} decodes on a {entry.layout} pool; set linear_attn_prefill_backend to triton"
        )
    return replace(entry, prefill=resolved.prefill_backend), resolved.ssm_dtype
