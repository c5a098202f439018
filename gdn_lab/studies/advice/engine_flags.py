"""The engine's settings for a decode backend as flags to paste, and the rules that refuse one. Imports no torch."""

from dataclasses import asdict

from ...config import BACKENDS, EngineSettings, Machine, resolve


def settings_for(backend: str, dtype: str) -> EngineSettings:
    """The settings that decode with `backend` on a state of `dtype`, and prefill with the default."""
    return EngineSettings(linear_attn_decode_backend=backend, mamba_ssm_dtype=dtype)


def flags(settings: EngineSettings) -> str:
    """What the engine's command line takes, defaults left out: "--linear-attn-decode-backend flashinfer …"."""
    default = asdict(EngineSettings())
    changed = {name: value for name, value in asdict(settings).items() if value != default[name]}
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changed.items())


def refusal(settings: EngineSettings, machine: Machine) -> str | None:
    """The sentence of the first rule that the settings break on a machine; None if the engine accepts them."""
    try:
        resolve(settings, machine)
    except ValueError as error:
        return str(error)
    return None


def refusals(dtype: str, machine: Machine) -> dict[str, str]:
    """{setting: sentence} of each backend that the engine would refuse, for decode alone and for both phases."""
    found = {}
    for backend in BACKENDS:
        alone = settings_for(backend, dtype)
        both = EngineSettings(linear_attn_backend=backend, mamba_ssm_dtype=dtype)
        for setting, settings in (("linear_attn_decode_backend", alone), ("linear_attn_backend", both)):
            if sentence := refusal(settings, machine):
                found[f"{setting} {backend}"] = sentence
    return found
