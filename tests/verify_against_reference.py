"""One verify call against the reference, and the promises that hold for every call: used for every backend."""

import torch
from against_reference import same_bits
from tolerances import assert_close

from gdn_lab import reference, verify
from gdn_lab.backends.base import VERIFY_MODES
from gdn_lab.ops import make_inputs

UPDATE, INTERMEDIATE, OUTPUT, BOTH = VERIFY_MODES


def inputs_of(shape, batch, tokens, kind="strong", *, device="cpu", dtype=torch.bfloat16, seed=1):
    """make_inputs with decay from e^-20 and less to nearly 1 ("strong"), only near 1 ("mild"), or that with a row's
    keys within a fiftieth of one direction and beta near 1 ("parallel"): each token undoes much of the one before."""
    x = make_inputs(shape, batch, tokens=tokens, device=device, dtype=dtype, seed=seed, strong_decay=kind == "strong")
    if kind == "parallel":
        x.k.copy_(x.k[:, :1].float() + 0.02 * x.k.float())
        x.b.add_(3.0)
    return x


def spread(x, kind):
    """A tensor [B, T, …] with other strides: "packed" as it is (make_inputs: a view of one mixed_qkv), "contiguous", or
    "odd" (tokens and rows at odd distances, beginning at an odd element, with NaN between)."""
    if kind == "packed":
        return x
    if kind == "contiguous":
        return x.contiguous()
    B, T, width = *x.shape[:2], x.shape[2:].numel()
    token = width + 8 | 1
    wide = torch.full((B, T * token + 2), torch.nan, dtype=x.dtype, device=x.device)
    moved = wide.as_strided((B, T, width), (wide.stride(0), token, 1), 1)
    moved.copy_(x.reshape(B, T, width))
    return wide.as_strided(x.shape, (wide.stride(0), token, *x.contiguous().stride()[2:]), 1)


def buffer_of(pool, batch, tokens, reserved):
    """intermediate_states for a call, filled with NaN; of more tokens than the call has with `reserved`."""
    whole = torch.full(
        (batch, reserved or tokens, *pool.state.shape[1:]), torch.nan, dtype=pool.dtype, device=pool.device
    )
    return whole, whole[:, :tokens]


def check_verify(
    pool, indices, tokens, *, backend, mode, io_dtype=torch.bfloat16, strides="packed", kind="strong", seed=1,
    inputs=None, reserved=None, states=None, padding_is_zero=True, interpreted=False, **options,
):  # fmt: skip
    """Call verify and check o, the states after each token and the new state of live rows against the reference; every
    slot, state and conv window that the call should leave bit for bit; padding rows' output. Returns (o, inputs)."""
    inputs = inputs or inputs_of(pool.shape, len(indices), tokens, kind, device=pool.device, dtype=io_dtype, seed=seed)
    arguments = [spread(x, strides) for x in inputs.arguments()]
    live = [row for row, slot in enumerate(indices.tolist()) if slot >= 0]
    before, conv_before, old = pool.state.clone(), pool.conv.clone(), pool.read(indices[live])
    kept = [x.clone() for x in (*arguments, indices)]
    if states is not None:
        whole = states
    elif "intermediate" in mode:
        whole, states = buffer_of(pool, len(indices), tokens, reserved)

    o = verify(
        *arguments, **inputs.gates(), pool=pool, indices=indices, backend=backend, intermediate_states=states,
        update_state="update" in mode, **options,
    )  # fmt: skip

    reference_options = {name: options[name] for name in ("scale", "use_qk_l2norm") if name in options}
    expected_o, expected = reference.verify(
        *(x[live] for x in arguments), **inputs.gates(), state=old, **reference_options
    )
    assert o.dtype == inputs.v.dtype and o.shape == inputs.v.shape and o.device == inputs.v.device
    assert_close("o", o[live], expected_o, o.dtype, interpreted=interpreted)
    if states is not None:
        logical = states if pool.layout == "VK" else states.transpose(-1, -2)
        assert_close("intermediate states", logical[live], expected, pool.dtype, interpreted=interpreted)
        assert torch.isnan(whole[:, tokens:]).all(), "states beyond the call's tokens have changed"
    mine = torch.zeros(pool.slots, dtype=torch.bool, device=pool.device)
    mine[0] = True  # the null slot may change
    if "update" in mode:
        assert_close("state", pool.read(indices[live]), expected[:, -1], pool.dtype, interpreted=interpreted)
        mine[indices[live].long()] = True
    assert same_bits(pool.state[~mine], before[~mine]), "a state that the call should leave has changed"
    assert same_bits(pool.conv, conv_before), "the convolution window has changed"
    for name, x, was in zip(("q", "k", "v", "a", "b", "indices"), (*arguments, indices), kept, strict=True):
        assert same_bits(x, was), f"{name} has changed"
    padding = [row for row in range(len(indices)) if row not in live]
    if padding and padding_is_zero:
        assert not o[padding].any(), "a padding row's output is not zero"
    return o, inputs


def check_commit(pool, indices, accepted):
    """Call commit() on reserve_drafts()'s buffers and check, bit for bit: a row's slot holds the state after its
    accepted tokens, its window the last three inputs; every other slot, and that of a row with none accepted, is as it
    was."""
    state, conv = pool.state.clone(), pool.conv.clone()
    states, fed = pool.intermediate_states, pool.draft_inputs
    for row, (slot, n) in enumerate(zip(indices.tolist(), accepted.tolist(), strict=True)):
        if slot >= 0 and n > 0:
            state[slot] = states[row, n - 1]
            conv[slot] = torch.cat([conv[slot], fed[row, :, :n]], dim=1)[:, -3:]
    kept = [x.clone() for x in (indices, accepted, states, fed)]
    pool.commit(indices, accepted)
    assert same_bits(pool.state[1:], state[1:]), "state after commit()"
    assert same_bits(pool.conv[1:], conv[1:]), "convolution window after commit()"
    for x, was in zip((indices, accepted, states, fed), kept, strict=True):
        assert same_bits(x, was), "an argument of commit() has changed"
