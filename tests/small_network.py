"""A network of a few thousand random weights, its checkpoint, and the model that inference makes of it."""

import torch

from gdn_lab.trained.checkpoint import load, save
from gdn_lab.trained.inference import SmallModel
from gdn_lab.trained.network import Network
from gdn_lab.trained.sizes import Sizes

SIZES = Sizes(
    hidden=32,
    num_k_heads=1,
    num_v_heads=2,
    head_dim=32,
    attn_heads=2,
    attn_kv_heads=1,
    attn_dim=16,
    window=16,
    ffn=32,
)


def network_and_model(folder) -> tuple[Network, SmallModel]:
    """The same weights twice: rounded to what the checkpoint holds, and read from it."""
    torch.manual_seed(0)
    network = Network(SIZES)
    save(folder / "model.safetensors", network)
    sizes, tensors = load(folder / "model.safetensors")
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network, SmallModel(sizes, tensors)
