"""Gates of a real checkpoint: the GDN layers of a Hugging Face folder of Qwen3-Next or Qwen3.5.

Of each such layer a few small tensors are read, from whichever file holds them: A_log, dt_bias, the norm before the
layer, and the projection that makes b and a. Names, with `model.` or `model.language_model.` before them:

- layers.N.input_layernorm.weight                    [hidden], the norm multiplies by 1 + weight
- layers.N.linear_attn.A_log, .dt_bias               [HV]
- layers.N.linear_attn.in_proj_ba.weight             Qwen3-Next: [HK · 2 · HV/HK, hidden], each key head's b, then a
- layers.N.linear_attn.in_proj_b.weight, in_proj_a   Qwen3.5: [HV, hidden] each

A normalised activation has entries of variance 1, so a and b of a head have about the standard deviation of the norm
of their row of the projection times 1 + weight. Their means are taken as 0, for activations are not known here.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...tensor_file import read_tensors, tensor_header
from .regimes import Gates

LAYER = re.compile(r"(?P<layer>(?:.*\.)?layers\.(?P<number>\d+))\.linear_attn\.A_log")
INDEX = "model.safetensors.index.json"


class CheckpointGates(NamedTuple):
    """Gates of all heads of all GDN layers, side by side. layers: their numbers."""

    gates: Gates
    layers: list[int]

    def sample(self, heads: int) -> Gates:
        """Choose `heads` heads, evenly over all in the order of their decay at a = 0."""
        gates = self.gates
        rate = gates.A_log.exp() * torch.nn.functional.softplus(gates.dt_bias)
        chosen = torch.linspace(0, len(rate) - 1, heads).round().long()
        return Gates(*(x[rate.argsort()[chosen]] for x in gates))


def checkpoint_gates(folder) -> CheckpointGates:
    """Read a folder's gates. ValueError, one sentence, where it is no such checkpoint or a tensor is missing."""
    folder = Path(folder).expanduser()
    files = _files(folder)
    layers = sorted((int(found["number"]), found["layer"]) for name in files if (found := LAYER.fullmatch(name)))
    if not layers:
        raise ValueError(
            f"checkpoint: expected a folder of Qwen3-Next or Qwen3.5, {folder} has no tensor layers.N.linear_attn.A_log"
        )
    gates = [_layer(folder, files, layer) for _, layer in layers]
    return CheckpointGates(Gates(*(torch.cat(parts) for parts in zip(*gates, strict=True))), [n for n, _ in layers])


def _files(folder: Path) -> dict[str, str]:
    """{tensor: file of the folder that holds it}, by the index, or by the files' headers where there is none."""
    if not folder.is_dir():
        raise ValueError(f"checkpoint: expected a folder with safetensors files, got {str(folder)!r}")
    if (folder / INDEX).is_file():
        try:
            return dict(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"checkpoint: {folder / INDEX} is damaged ({error}); fetch it again") from None
    paths = sorted(folder.glob("*.safetensors"))
    return {name: path.name for path in paths for name in tensor_header(path)}


def _layer(folder: Path, files: dict[str, str], layer: str) -> Gates:
    """The gates of one layer, whose tensors' names begin with `layer`."""

    def read(name: str) -> Tensor:
        full = f"{layer}.{name}"
        path = folder / files.get(full, "")
        if full not in files or not path.is_file():
            raise ValueError(
                f"checkpoint: expected {full} in {folder}, got no file that has it; fetch the folder whole"
            )
        return read_tensors(path, [full])[full].float()

    A_log, dt_bias = read("linear_attn.A_log"), read("linear_attn.dt_bias")
    scale = 1 + read("input_layernorm.weight")
    if f"{layer}.linear_attn.in_proj_ba.weight" in files:
        b, a = _split(read("linear_attn.in_proj_ba.weight"), len(A_log), _key_heads(folder))
    else:
        b, a = read("linear_attn.in_proj_b.weight"), read("linear_attn.in_proj_a.weight")
    a_std, b_std = ((projection * scale).norm(dim=1) for projection in (a, b))
    return Gates(A_log, dt_bias, torch.zeros_like(a_std), a_std, b_std, torch.ones_like(b_std))


def _split(projection: Tensor, heads: int, key_heads: int) -> tuple[Tensor, Tensor]:
    """Split in_proj_ba into b's and a's rows, [HV, hidden] each."""
    grouped = projection.view(key_heads, 2, heads // key_heads, -1)
    return grouped[:, 0].flatten(0, 1), grouped[:, 1].flatten(0, 1)


def _key_heads(folder: Path) -> int:
    """Key heads of a GDN layer, by config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return int(config.get("text_config", config)["linear_num_key_heads"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"checkpoint: expected linear_num_key_heads in {folder / 'config.json'} ({type(error).__name__}: {error})"
        ) from None
