"""Gates and keys as trained: what the small model's GDN layers are given on a document."""

from typing import NamedTuple

import torch
from torch import Tensor

from .checkpoint import CHECKPOINT, load
from .inference import Kernels, Requests, SmallModel
from .language import STATEMENT, documents


class LayerInputs(NamedTuple):
    """Inputs of one GDN layer over n documents of T tokens: q, k [n, T, HK, K]; v [n, T, HV, V]; a, b [n, T, HV], all
    bfloat16 and on the CPU; A_log, dt_bias [HV] float32. q and k are not yet normalised, as decode() takes them."""

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor
    A_log: Tensor
    dt_bias: Tensor


def as_trained(
    tokens: Tensor | None = None, *, length: int = 1023, seed: int = 0, path=CHECKPOINT
) -> list[LayerInputs]:
    """Return the inputs of every GDN layer of the checkpoint on documents.

    tokens [n, T] int64: the documents; by default one of each kind, of `length` tokens, rounded up to whole statements,
    from `seed`. FileNotFoundError where there is no checkpoint.
    """
    if tokens is None:
        tokens = documents(3, -(-length // STATEMENT), most_names=128, seed=seed).tokens
    model = SmallModel(*load(path))
    requests = Requests(model, len(tokens), Kernels())
    requests.inputs = {}
    requests.prefill(tokens)
    return [LayerInputs(layer, *inputs, *model.gates[layer]) for layer, inputs in requests.inputs.items()]


def half_lives(inputs: LayerInputs) -> Tensor:
    """Tokens after which each head's state has decayed to a half, at its mean decay over the documents, [HV]."""
    x = inputs.a.double() + inputs.dt_bias.double()
    log_g = -inputs.A_log.double().exp() * torch.nn.functional.softplus(x)
    return -torch.log(torch.tensor(2.0)) / log_g.mean((0, 1))
