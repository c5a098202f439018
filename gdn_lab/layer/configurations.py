"""How a decode step can run: one record for each configuration.

To add one, add a record to CONFIGURATIONS: sweeps, tables, figures and the notebook's parameter take it from there.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Configuration:
    """One way to run a decode step.

    name: what parameters and rows call it. label: what tables and figures call it. gdn: the `backend` that decode()
    gets; prefill, verify: what those of a whole model get. layout: of the pool, "VK" or "KV". description: half a
    sentence. fused: norms quantise for FP8, nothing is split, the shared expert is one of the experts, launches use
    programmatic dependent launch (PDL), and products of few rows run this workbook's kernels; otherwise each of these
    is a launch of its own and products are torch's.
    deferred: a `backend` of decode() that defers its writes, which studies take in place of gdn where recorded times
    say that it is faster; "" never.
    state_dtype: of the pool whatever dtype a study asks for; "" is the one it asks for.
    device: "cuda" or "cpu", where configurations "auto" includes it; "" includes it nowhere.
    """

    name: str
    gdn: str
    layout: str
    description: str
    label: str = ""
    fused: bool = False
    device: str = ""
    prefill: str = "auto"
    verify: str = "auto"
    deferred: str = ""
    state_dtype: str = ""

    def __post_init__(self):
        if not self.label:
            object.__setattr__(self, "label", f"{self.name} ({self.gdn})")

    def decoding_with(self, gdn: str) -> "Configuration":
        """The same with another `backend` of decode()."""
        return replace(self, gdn=gdn, label="")


CONFIGURATIONS: dict[str, Configuration] = {
    configuration.name: configuration
    for configuration in (
        Configuration(
            name="before",
            gdn="triton/kv8",
            layout="KV",
            description="SGLang before the pull request: Triton on a KV pool, value tiles of 8",
            device="cuda",
        ),
        Configuration(
            name="before-32",
            gdn="triton/kv32",
            layout="KV",
            description="the same with value tiles of 32",
            device="cuda",
        ),
        Configuration(
            name="after",
            gdn="flashinfer/vk",
            layout="VK",
            prefill="flashinfer/vk",
            verify="flashinfer/vk",
            description="SGLang after it: FlashInfer on a VK (K-last) pool, in place",
            device="cuda",
        ),
        Configuration(
            name="best",
            gdn="cutedsl/vk",
            layout="VK",
            description="the fastest here: this workbook's kernels, fused, with PDL",
            fused=True,
            deferred="triton/replay",
            device="cuda",
        ),
        Configuration(
            name="replay",
            gdn="triton/replay",
            layout="VK",
            description="best, with a state that is read in each step and written in one of 17",
            fused=True,
        ),
        Configuration(
            name="replay-fp8",
            gdn="triton/replay-fp8",
            layout="VK",
            state_dtype="float8_e4m3fn",
            description="replay with the state in FP8, whose rounding shows in the output: notebooks 10 and 12",
            fused=True,
        ),
        Configuration(
            name="torch-kv",
            gdn="torch/kv",
            prefill="torch/kv",
            verify="torch/kv",
            layout="KV",
            description="eager PyTorch on a KV pool, any device",
            device="cpu",
        ),
        Configuration(
            name="torch",
            gdn="torch/vk",
            prefill="torch/vk",
            verify="torch/vk",
            layout="VK",
            description="eager PyTorch on a VK (K-last) pool, any device",
            device="cpu",
        ),
    )
}


def configuration(name: str | Configuration) -> Configuration:
    """The record called `name`, or the record that is given. ValueError with the known names if there is none."""
    if isinstance(name, Configuration):
        return name
    if name not in CONFIGURATIONS:
        raise ValueError(f"configuration: {name!r} is unknown; choose one of {', '.join(CONFIGURATIONS)}")
    return CONFIGURATIONS[name]


def made_for(device_type: str) -> list[str]:
    """Names of the configurations that "auto" means on a device of this type, "cuda" or "cpu"."""
    return [entry.name for entry in CONFIGURATIONS.values() if entry.device == device_type]
