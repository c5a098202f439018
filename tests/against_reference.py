"""One decode call against the reference, and the promises that hold for every call: used for every backend."""

import torch
from tolerances import assert_close

from gdn_lab import decode, reference
from gdn_lab.backends.registry import variant
from gdn_lab.judge.making import PADDING, as_strided, filled_pool, row_slots, same_bits
from gdn_lab.ops import make_inputs
from gdn_lab.tolerances import CORRECTIONS

__all__ = ["PADDING", "as_strided", "check_decode", "filled_pool", "row_slots", "same_bits"]


def check_decode(
    pool, indices, *, backend, io_dtype=torch.bfloat16, strides="packed", strong_decay=True, seed=1, inputs=None,
    rows=None, padding_is_zero=True, interpreted=False, call=decode, **options,
):  # fmt: skip
    """Calls decode and checks o and the new state of the live rows (of `rows`, where given, to save time) against
    the reference, every slot and conv window it had no business with bit for bit, and padding rows' output.

    Returns (o, inputs)."""
    inputs = inputs or make_inputs(
        pool.shape, len(indices), device=pool.device, dtype=io_dtype, seed=seed, strong_decay=strong_decay
    )
    q, k, v, a, b = as_strided(inputs, strides)
    if ring := variant(backend).ring if "/" in backend else 0:
        pool.reserve_ring(ring, key_dtype=q.dtype)
    live = [row for row, slot in enumerate(indices.tolist()) if slot >= 0]
    chosen = [row for row in live if rows is None or row in rows]
    before, conv_before = pool.state.clone(), pool.conv.clone()
    old = pool.read(indices[chosen])
    kept = [x.clone() for x in (q, k, v, a, b, indices)]

    o = call(q, k, v, a, b, **inputs.gates(), pool=pool, indices=indices, backend=backend, **options)

    reference_options = {name: options[name] for name in ("scale", "use_qk_l2norm") if name in options}
    arguments = (x[chosen] for x in (q, k, v, a, b))
    expected_o, expected_state = reference.decode(*arguments, **inputs.gates(), state=old, **reference_options)
    assert o.dtype == v.dtype and o.shape == v.shape and o.device == v.device
    assert_close("o", o[chosen], expected_o, o.dtype, interpreted=interpreted)
    extra = CORRECTIONS[pool.dtype] if ring else 0.0
    assert_close("state", pool.read(indices[chosen]), expected_state, pool.dtype, interpreted=interpreted, extra=extra)

    mine = torch.zeros(pool.slots, dtype=torch.bool, device=pool.device)
    mine[indices[live].long()] = True
    mine[0] = True  # the null slot may change
    assert same_bits(pool.state[~mine], before[~mine]), "a slot that no row names has changed"
    assert same_bits(pool.conv, conv_before), "the convolution window has changed"
    for name, x, was in zip(("q", "k", "v", "a", "b", "indices"), (q, k, v, a, b, indices), kept, strict=True):
        assert same_bits(x, was), f"{name} has changed"
    padding = [row for row in range(len(indices)) if row not in live]
    if padding and padding_is_zero:
        assert not o[padding].any(), "a padding row's output is not zero"
    return o, inputs
