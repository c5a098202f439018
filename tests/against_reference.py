"""One decode call against the reference, and the promises that hold for every call: used for every backend."""

import torch
from tolerances import assert_close

from gdn_lab import StatePool, decode, reference
from gdn_lab.backends.registry import variant
from gdn_lab.ops import make_inputs
from gdn_lab.tolerances import CORRECTIONS

PADDING = -1


def filled_pool(shape, slots, *, layout, dtype, device="cpu", seed=0):
    """A pool whose every slot, the null slot too, holds random state."""
    pool = StatePool(shape, slots, layout=layout, dtype=dtype, device=device)
    rng = torch.Generator(device).manual_seed(seed)
    for part in pool.state.split(64):
        part.copy_(torch.randn(part.shape, generator=rng, device=device))
    pool.conv.copy_(torch.randn(pool.conv.shape, generator=rng, device=device))
    return pool


def row_slots(batch, slots, *, padding=(), dtype=torch.int32, device="cpu", seed=0):
    """Distinct random slots from 1 up for `batch` rows, with the rows in `padding` made padding."""
    order = torch.randperm(slots - 1, generator=torch.Generator().manual_seed(seed))[:batch] + 1
    order[list(padding)] = PADDING
    return order.to(device, dtype)


def as_strided(inputs, kind):
    """(q, k, v, a, b) of make_inputs with other strides. NaN around them: a read beside a tensor shows in the result.

    "packed": as they are, views of one mixed_qkv. "contiguous". "wide": rows 64 elements further apart. "odd": rows of
    odd stride that begin at an odd element. "apart": no two tensors of the same strides, heads apart too.
    """
    if kind == "packed":
        return inputs.arguments()
    if kind == "contiguous":
        return tuple(x.contiguous() for x in inputs.arguments())
    moved = []
    for n, x in enumerate(inputs.arguments()):
        if kind == "apart":
            B, heads, *dim = x.shape
            wide = x.new_full((B, heads + n, *(size + 16 * (n + 1) for size in dim)), torch.nan)
            view = wide[:, :heads, : dim[0]] if dim else wide[:, :heads]
        else:
            width = x.shape[1:].numel()
            before, row = (0, width + 64) if kind == "wide" else (3, width + 8 | 1)
            view = x.new_full((x.shape[0], row), torch.nan)[:, before : before + width].view(x.shape)
        moved.append(view.copy_(x))
    return tuple(moved)


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


def same_bits(x, y):
    """Bit for bit the same: NaN equals itself, 0 differs from -0."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.dtype == y.dtype and torch.equal(x.contiguous().view(whole), y.contiguous().view(whole))
