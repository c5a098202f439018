"""The pool's ring of updates that are not yet part of the state (backends.base.Ring), in plain PyTorch.

The kernel of backends/triton/replay.py fills and empties it; here it is made, read and dropped. Nothing synchronises.
"""

import functools

import torch
from torch import Tensor

from .backends.base import Operands, Ring, dtype_name, dtype_names
from .e4m3 import FP8, RowScaled, quantised
from .models import GDNShape

UPDATES = (16, 32, 64)  # that a slot can hold back
KEY_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ELEMENTS_AT_ONCE = 1 << 24  # of the state whose true values are computed at once: 64 MiB in float32


def make_ring(shape: GDNShape, slots: int, updates: int, *, dtype, key_dtype, device, layers: int = 1) -> Ring:
    """Make an empty ring for each slot, their phases staggered so that about the same number is full at each step.

    updates: C, of UPDATES. dtype: of the state. key_dtype: of the decode inputs. ValueError for others. layers: have as
    many slots each, one layer's after the other's, and take turns with the operands.
    """
    if updates not in UPDATES:
        raise ValueError(f"updates: expected one of {', '.join(map(str, UPDATES))}, got {updates!r}")
    if key_dtype not in KEY_DTYPES:
        raise ValueError(f"key_dtype: expected {dtype_names(KEY_DTYPES)}, got {key_dtype}")
    HK, HV, K, V = shape.dims
    zeros = functools.partial(torch.zeros, device=device)
    slots_of_layer, slots = slots, layers * slots
    ring = Ring(
        keys=zeros(slots, HK, updates, K, dtype=key_dtype),
        corrections=zeros(slots, HV, updates, V, dtype=correction_dtype(dtype)),
        log_decays=zeros(slots, HV, updates),
        span=zeros(slots, 2, dtype=torch.int32),
        arrivals=zeros(slots, dtype=torch.int32),
        operands=make_operands(shape, slots_of_layer, updates, device) if dtype is FP8 else None,
    )
    ring.span[:] = torch.arange(slots, dtype=torch.int32, device=device)[:, None] % ring.period
    return ring


def make_operands(shape: GDNShape, slots: int, updates: int, device) -> Operands:
    """Make what the kernels of a step on an FP8 state hand to each other."""
    HK, HV, K, _ = shape.dims
    zeros = functools.partial(torch.zeros, device=device)
    return Operands(
        taken=zeros(slots, 2, dtype=torch.int32),
        due=zeros(1 + slots, dtype=torch.int32),
        factors=zeros(slots, HV, 2 * updates + 5),
        terms=zeros(slots, HK, 6, K, dtype=FP8),
    )


def correction_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of u: bf16 for a state of no more bits. u can leave fp16's range; float32 needs all its bits."""
    return torch.bfloat16 if dtype in (torch.bfloat16, FP8) else torch.float32


def slots_at_once(state: Tensor) -> int:
    """Return of how many slots of a state [slots, HV, V, K] the true state is computed at once, in float32."""
    return max(1, ELEMENTS_AT_ONCE // state[0].numel())


def drop(ring: Ring, slots: Tensor) -> None:
    """Forget the pending updates of the slots, int64 [n]; each keeps its phase."""
    ring.span[slots, 0] = ring.span[slots, 1]


def stored(state: Tensor, scales: Tensor | None, slots: Tensor) -> Tensor:
    """Return the state of the slots, int64 [n], as stored: float32. scales: of an FP8 state's rows, or None."""
    return state[slots].float() if scales is None else RowScaled(state[slots], scales[slots]).dequantised()


def store(state: Tensor, scales: Tensor | None, slots: Tensor, values: Tensor, where: Tensor | None = None) -> None:
    """Store values [n, HV, V, K], rounded to nearest, in the slots, int64 [n]; or only where a bool [n] says so.

    Slots that are named twice must be stored nowhere, as padding's null slot.
    """
    if scales is None:
        values = values.to(state.dtype)
        state[slots] = values if where is None else torch.where(where[:, None, None, None], values, state[slots])
    else:
        rounded = quantised(values)
        if where is not None:
            rounded = rounded.where(where, RowScaled(state[slots], scales[slots]))
        state[slots], scales[slots] = rounded


def true_state(ring: Ring, state: Tensor, slots: Tensor, scales: Tensor | None = None) -> Tensor:
    """Return the state of the slots, int64 [n], with their pending updates: [n, HV, V, K] float32.

    state: the pool's, [slots, HV, V, K]; scales: of its rows where it is FP8. Whatever a free slot or an unused entry
    of the ring holds does not count.
    """
    parts = [_true_state(ring, stored(state, scales, some), some) for some in slots.split(slots_at_once(state))]
    return torch.cat(parts) if parts else state.new_empty(0, *state.shape[1:], dtype=torch.float32)


def _true_state(ring: Ring, S: Tensor, slots: Tensor) -> Tensor:
    first, end = (x[:, None] for x in ring.span[slots].unbind(1))
    js = torch.arange(ring.updates, device=S.device)
    pending = ((js >= first) & (js < end))[:, None, :]  # [n, 1, C]
    log_g = torch.where(pending, ring.log_decays[slots], 0.0)
    total = log_g.flip(-1).cumsum(-1).flip(-1)  # Σ_{i ≥ j} g_i
    after = torch.cat([total[..., 1:], torch.zeros_like(total[..., :1])], dim=-1)  # Σ_{i > j} g_i
    u = torch.where(pending[..., None], ring.corrections[slots].float() * after.exp()[..., None], 0.0)
    keys = torch.where(pending[..., None], ring.keys[slots].float(), 0.0)
    keys = keys.repeat_interleave(u.shape[1] // keys.shape[1], dim=1)
    return total[..., 0].exp()[..., None, None] * S + u.transpose(-1, -2) @ keys


def write_pending(ring: Ring, state: Tensor, indices: Tensor, scales: Tensor | None = None) -> None:
    """Add the pending updates of the slots in `indices`, int [n], to their states, rounded once, and drop them."""
    slots = indices.clamp(min=0).long()  # padding: the null slot, which has none
    if state.device.type == "cuda":
        from .backends.triton import replay_fold, replay_fp8_copies

        if scales is None:
            replay_fold.settle(state, ring, indices)
        else:
            replay_fp8_copies.settle(state, scales, ring, indices)
    else:
        for some in slots.split(slots_at_once(state)):
            pending = ring.span[some, 0] != ring.span[some, 1]
            store(state, scales, some, true_state(ring, state, some, scales), pending)
    drop(ring, slots)


def described(ring: Ring) -> str:
    """Return a few words on a ring."""
    return f"a ring of {ring.updates} updates with {dtype_name(ring.keys.dtype)} keys"
