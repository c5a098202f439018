"""Every way to sum over ranks: one record each. Light to import: no torch.

A variant has a name in rows, tables and `-p variants`; its colour and marker are those of all figures.
"""

from typing import NamedTuple


class ReduceVariant(NamedTuple):
    """One way to sum over ranks. fused: residual and RMSNorm are part of the same kernel. on: "cuda" or "cpu"."""

    name: str
    description: str
    on: str
    colour: str
    marker: str
    fused: bool = False


VARIANTS = {
    variant.name: variant
    for variant in (
        ReduceVariant("nccl", "NCCL's all-reduce, without multicast", "cuda", "#5F5F5F", "s"),
        ReduceVariant("torch-one-shot", "torch.ops.symm_mem.one_shot_all_reduce", "cuda", "#A6BDDB", "^"),
        ReduceVariant("torch-two-shot", "torch.ops.symm_mem.two_shot_all_reduce_", "cuda", "#5A5AA8", "v"),
        ReduceVariant("one-shot", "Triton on peer pointers: all rows to all ranks", "cuda", "#EE8866", "o", True),
        ReduceVariant("two-shot", "Triton on peer pointers: through each row's owner", "cuda", "#BB5566", "D", True),
        ReduceVariant("gloo", "gloo's all-reduce, on CPUs", "cpu", "#225555", "P"),
    )
}


def variants_on(device: str) -> list[str]:
    """Names of the variants of a device, "cuda" or "cpu"."""
    return [variant.name for variant in VARIANTS.values() if variant.on == device]
