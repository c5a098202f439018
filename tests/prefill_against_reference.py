"""One prefill call against the float64 reference, and the promises that hold for every call: used for every backend."""

import torch
from against_reference import same_bits
from tolerances import assert_close

from gdn_lab import prefill, reference
from gdn_lab.ops import make_inputs
from gdn_lab.tolerances import LOGARITHMS, OPERANDS


def bounds_of(lengths, *, dtype=torch.int32, device="cpu"):
    """Return cu_seqlens of sequences of these lengths."""
    return torch.tensor([0, *lengths]).cumsum(0).to(device, dtype)


def inputs_of(shape, tokens, kind="strong", *, device="cpu", dtype=torch.bfloat16, seed=1):
    """Return make_inputs() with decay from e^-20 and less to nearly 1 ("strong"), only near 1 ("mild"), or that with
    every key within a twentieth of one direction ("parallel"), where the chunk's triangular system is far from the
    identity."""
    x = make_inputs(shape, tokens, device=device, dtype=dtype, seed=seed, strong_decay=kind == "strong")
    if kind == "parallel":
        direction = torch.randn(x.k.shape[1:], generator=torch.Generator().manual_seed(seed)).to(device)
        x.k.copy_(direction + 0.05 * x.k.float())
        x.b.add_(2.0)  # beta near 1
    return x


def extra_of(operands, units=1):
    """Return what prefill may be off by besides ARITHMETIC, where products take `operands`."""
    return LOGARITHMS + units * OPERANDS[operands]


def check_prefill(
    pool, lengths, indices, *, backend, io_dtype=torch.bfloat16, kind="strong", seed=1, inputs=None,
    bounds_dtype=torch.int32, operands=None, padding_is_zero=True, interpreted=False, units=1, call=prefill, **options,
):  # fmt: skip
    """Call prefill and check o and the final states against the float64 reference, every slot that the call does not
    name bit for bit, and padding's output; return o.

    operands: the dtype of the products, by default that of the inputs.
    """
    inputs = inputs or inputs_of(pool.shape, sum(lengths), kind, device=pool.device, dtype=io_dtype, seed=seed)
    bounds = bounds_of(lengths, dtype=bounds_dtype, device=pool.device)
    live = [n for n, slot in enumerate(indices.tolist()) if slot >= 0]
    before, old = pool.state.clone(), pool.read(indices)
    kept = [x.clone() for x in (*inputs.arguments(), indices, bounds)]

    o = call(*inputs.arguments(), **inputs.gates(), pool=pool, indices=indices, cu_seqlens=bounds, backend=backend,
             **options)  # fmt: skip

    reference_options = {name: options[name] for name in ("scale", "use_qk_l2norm") if name in options}
    expected_o, expected = reference.prefill(
        *inputs.arguments(), **inputs.gates(), state=old, cu_seqlens=bounds, **reference_options
    )
    mine = torch.zeros(sum(lengths), dtype=torch.bool)  # tokens of live sequences
    for n in live:
        mine[sum(lengths[:n]) : sum(lengths[: n + 1])] = True
    extra = extra_of(operands or inputs.q.dtype, units)
    assert o.dtype == inputs.v.dtype and o.shape == inputs.v.shape
    assert_close("o", o.cpu()[mine], expected_o[mine], o.dtype, interpreted=interpreted, extra=extra)
    assert_close("state", pool.read(indices[live]), expected[live], pool.dtype, interpreted=interpreted, extra=extra)
    empty = [n for n in live if not lengths[n]]
    assert same_bits(pool.state[indices[empty].long()], before[indices[empty].long()]), "an empty sequence's state"

    named = torch.zeros(pool.slots, dtype=torch.bool, device=pool.device)
    named[indices[live].long()] = True
    named[0] = True  # the null slot may change
    assert same_bits(pool.state[~named], before[~named]), "a slot that no sequence names has changed"
    for x, was in zip((*inputs.arguments(), indices, bounds), kept, strict=True):
        assert same_bits(x, was), "an argument has changed"
    if padding_is_zero:
        assert not o.cpu()[~mine].any(), "padding's output is not zero"
    return o
