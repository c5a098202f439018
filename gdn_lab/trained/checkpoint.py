"""The checkpoint of the small model: matrices in bfloat16, as engines have them; A_log and dt_bias in float32."""

import json
from pathlib import Path

import torch
from torch import Tensor

from ..tensor_file import read_tensors, tensor_header, write_tensors
from .sizes import Sizes

FOLDER = Path(__file__).resolve().parents[2] / "data" / "trained"
CHECKPOINT = FOLDER / "model.safetensors"
FLOAT32 = ("A_log", "dt_bias")


def save(path, network, notes: dict | None = None) -> None:
    """Write a Network's weights, its sizes and notes (what JSON can hold)."""
    tensors = {
        name: tensor.float() if name.endswith(FLOAT32) else tensor.to(torch.bfloat16)
        for name, tensor in network.state_dict().items()
    }
    write_tensors(path, tensors, {"sizes": json.dumps(network.sizes.as_dict()), "notes": json.dumps(notes or {})})


def load(path=CHECKPOINT) -> tuple[Sizes, dict[str, Tensor]]:
    """(sizes, {name: tensor}) of a checkpoint. ValueError where the file is none of this model's."""
    notes = tensor_header(path).get("__metadata__", {})
    if "sizes" not in notes:
        raise ValueError(f"{path}: expected a checkpoint that gdn_lab.trained wrote, got one without its sizes")
    return Sizes(**json.loads(notes["sizes"])), read_tensors(path)
