"""How the products of experts_kernels.py are launched: tiles, parts and warps, by how many tokens an expert has.

inner: an expert's intermediate size on this rank.
"""

from itertools import product
from typing import NamedTuple

import torch

from ..backends.base import KernelCase
from ..models import MODELS


class GateUp(NamedTuple):
    """How gate_up_kernel is launched: its constants, warps, and stages of its loop."""

    block_m: int  # tokens of a product
    tile: int  # of inner
    block_k: int  # of H
    sub: int = 1  # blocks of H in a step of the loop
    split: int = 1  # parts of H
    warps: int = 4
    stages: int = 4


class Down(NamedTuple):
    """How down_kernel is launched; block_m and split are gate_up's."""

    tile: int  # of H
    tiles: int  # tiles of a program: one, where inner is more than one block
    block_k: int  # of inner
    warps: int = 4
    stages: int = 4


PROGRAMS = 264  # fill an H100's 132 SMs twice: with fewer, weights are split further


def tilings(
    slots: int, tokens: float, hidden: int, inner: int, fp8: bool, roomy: bool = True
) -> tuple[GateUp, Down]:  # fmt: skip
    """What the two products are launched with. slots: at most, of BLOCK_M tokens; tokens: of an expert, on average.
    roomy: a block may have 110 KB of shared memory, as on compute capability 9.0 and 10.0 but not on 12.0.

    A stage of a loop is 16 KB of weights, so that three programs fit an SM, with 48 KB in flight each; of gate_up's for
    few tokens in FP8 32 KB, two blocks of H, and two programs with 64 KB. Chosen by times on an H100.
    """
    if inner not in (32, 64) and inner % 128:
        raise ValueError(f"inner: an expert's intermediate size must be 32, 64 or a multiple of 128, got {inner}")
    if hidden % 128:
        raise ValueError(f"hidden: expected a multiple of 128, got {hidden}")
    block_m = 16 if tokens <= 6 else 32
    block_k = 128 if fp8 else 64
    tile = min(64, inner)
    split = 4 if inner <= 128 and slots * (inner // tile) < PROGRAMS and hidden // block_k % 8 == 0 else 1
    sub = 2 if fp8 and block_m == 16 and hidden // block_k % (2 * split) == 0 else 1
    gate_up = GateUp(block_m, tile, block_k, sub, split, stages=4 if sub == 1 else 3 if roomy else 2)
    if inner > 128:
        return gate_up, Down(128 if block_m == 16 else 64, 1, block_k)
    tile = 128 if fp8 else 64
    tiles = 8 * 128 // tile
    while tiles > 1 and slots * (hidden // tile) < PROGRAMS * tiles:
        tiles //= 2
    return gate_up, Down(tile, tiles, inner)


def hidden_buffer(gate_up: GateUp, rows: int, inner: int, device) -> torch.Tensor:
    """h between the two products, as gate_up_kernel writes it."""
    if gate_up.split == 1:
        return torch.empty(rows, inner, dtype=torch.bfloat16, device=device)
    return torch.empty(gate_up.split, rows, 2, inner, dtype=torch.float32, device=device)


def has_room(device: torch.device) -> bool:
    """Whether a block on `device` may have as much shared memory as tilings() would like; a CPU's interpreter has."""
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin >= 110 << 10


def cdiv(size: int, block: int) -> int:
    return -(-size // block)


def power_of_2(size: int) -> int:
    """The smallest power of 2 that is no smaller than size."""
    return 1 << (size - 1).bit_length()


def kernel_cases() -> list[KernelCase]:
    """What the table's models compile at 1, 2, 4 or 8 GPUs and any batch, for resources.py."""
    from .kernels.experts_kernels import combine_kernel, down_kernel, gate_up_kernel, route_kernel

    cases = {}

    def case(label, kernel, pointers, warps, stages=None, architectures=None, **constants):
        types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(("counts", "work", "lists", "ids"), "*i32")
        types = {name: kind for name, kind in (types | pointers).items() if name in kernel.arg_names}
        constants |= {"OVERLAP": True}
        cases[label] = KernelCase(f"experts {label}", kernel, types, constants, warps, architectures, stages)

    models = [entry for entry in MODELS.values() if entry.experts]
    for fp8, entry, tp, batch in product((True, False), models, (1, 2, 4, 8), (1, 8, 64, 256, 512)):
        tokens, inner = batch * entry.top_k, entry.moe_intermediate // tp
        sizes = (min(entry.experts, tokens), tokens / entry.experts, entry.hidden, inner, fp8)
        up, down = tilings(*sizes)
        narrow, _ = tilings(*sizes, roomy=False)
        whole, name = inner == down.block_k, "fp8" if fp8 else "bf16"
        data, scale = ("*fp8e4nv", "*fp32") if fp8 else ("*bf16", "*bf16")
        pointers = {"x": data, "x_scale": scale, "w": data, "w_scale": scale, "y": "*bf16"}
        pointers["h"] = "*bf16" if up.split == 1 else "*fp32"
        common = dict(BLOCK_M=up.block_m, SPLIT=up.split, FP8=fp8)
        label = f"{name} tokens {up.block_m} split {up.split}"
        constants = common | dict(TILE=up.tile, BLOCK_K=up.block_k, SUB=up.sub)
        for how, stages, architectures in (
            ("", up.stages, ("sm_90a", "sm_100a")), (" narrow", narrow.stages, ("sm_120a",)),
        ):  # fmt: skip
            name = f"gate_up {label} tile {up.tile}{how}"
            case(name, gate_up_kernel, pointers, up.warps, stages, architectures, **constants)
        constants = common | dict(TILE=down.tile, BLOCK_K=down.block_k, WHOLE=whole)
        label = f"down {label} tile {down.tile} × {down.block_k}{'' if whole else ' of more'}"
        case(label, down_kernel, pointers, down.warps, down.stages, **constants)
    types = {"weights": "*fp32", "logits": "*bf16"}
    constants = dict(TOP_K=10, BLOCK_M=16, BLOCK_TOP=16, BLOCK_E=512)
    case("route", route_kernel, types, 1, **constants)
    types = {"weights": "*fp32"} | dict.fromkeys(("x", "shared_gate", "y", "out"), "*bf16")
    for chunk in (1024, 4096):
        constants = dict(TOP_K=10, CHUNK=chunk, BLOCK_H=4096, BLOCK_E=1024)
        case(f"combine {chunk}", combine_kernel, types, chunk // 512, **constants)
    return list(cases.values())
