"""The state pool: what a serving engine keeps for each request, in slots that requests take and give back.

Two memory orders of the recurrent state, both contiguous:

    VK (K-last)   [slots, HV, V, K]   a row of S, all K values of one v, is one run of memory
    KV            [slots, HV, K, V]   a column of S, all V values of one k, is one run of memory

Slot 0 is the null slot: never handed out, so that backends may overwrite it for padding rows.
"""

import contextlib
import os
import threading
from contextvars import ContextVar

import torch
from torch import Tensor

from .backends.base import Ring, State, usable_device
from .e4m3 import FP8, check_layout, draft_dtype
from .memory import shares_memory
from .models import CONV_WINDOW, GDNShape, draft_nbytes, slot_nbytes
from .ring import described, drop, make_ring, slots_at_once, store, stored, true_state, write_pending
from .rollback import commit, drafts
from .rounding import Stochastic, check_rounding

LAYOUTS = ("VK", "KV")
STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CONV_DTYPE = torch.bfloat16  # the window holds activations, which engines keep in bf16 whatever the state's dtype

_check_values = ContextVar("checks", default=os.environ.get("GDN_LAB_CHECKS", "") == "1")


@contextlib.contextmanager
def checks(on: bool = True):
    """Inside, calls of this thread or task check values too: range of indices, duplicates, NaN in the state; and warn
    of a float16 state within a factor of 8 of its limit.

    That synchronises with a GPU.
    """
    token = _check_values.set(on)
    try:
        yield
    finally:
        _check_values.reset(token)


def checks_values() -> bool:
    """Whether calls check values now."""
    return _check_values.get()


class StatePool:
    """Recurrent state and convolution window of one GDN layer for `slots - 1` requests.

    shape: heads of the layer on this GPU. slots: slots allocated, slot 0 (the null slot) included; at least 2.
    layout: "VK" or "KV". dtype: float32, bfloat16 or float16 of the state, or in VK float8_e4m3fn with a float32 scale
    for each row (e4m3.py). device: as torch takes it. memory: zeros for state, conv and of FP8 scales, a piece of what
    several layers share; by default new. rounding: how decode() rounds the state that it stores, "nearest" or, to
    bfloat16 or float16, "stochastic" (rounding.py), with random bits by `seed`, an int from 0 to 2^31 - 1; None is
    "nearest", of FP8 "stochastic", which is all that it has. A slot's bits begin anew when it is handed out. prefill()
    and write() round once, to nearest.

    state [slots, HV, V, K] (VK) or [slots, HV, K, V] (KV); conv [slots, conv_dim, 3] bf16. Both start as zeros. scales:
    of FP8, [slots, HV, V] float32, else None.
    For verify, reserve_drafts() adds intermediate_states and draft_inputs, from which commit() takes the accepted part.
    For decode that defers its writes, reserve_ring() adds a ring; `state` alone is then not a slot's true state.
    Raises ValueError for an unknown layout or dtype or too few slots.
    """

    def __init__(
        self,
        shape: GDNShape,
        slots: int,
        *,
        layout="VK",
        dtype=torch.bfloat16,
        device=None,
        memory: tuple[Tensor, ...] | None = None,
        rounding: str | None = None,
        seed: int = 0,
    ):
        if not isinstance(shape, GDNShape):
            raise ValueError(f"shape: expected a GDNShape, got {type(shape).__name__}")
        if type(slots) is not int or slots < 2:
            raise ValueError(f"slots: expected an int of at least 2 (slot 0 is the null slot), got {slots!r}")
        if layout not in LAYOUTS:
            raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
        if dtype not in (*STATE_DTYPES, FP8):
            raise ValueError(f"dtype: expected one of {', '.join(map(str, (*STATE_DTYPES, FP8)))}, got {dtype}")
        check_layout(dtype, layout)
        rounding = rounding or ("stochastic" if dtype is FP8 else "nearest")
        check_rounding(rounding, seed, dtype)
        self.shape, self.slots, self.layout, self.dtype, self.rounding = shape, slots, layout, dtype, rounding
        device = usable_device(device)
        inner = (shape.head_v_dim, shape.head_k_dim) if layout == "VK" else (shape.head_k_dim, shape.head_v_dim)
        rows = (slots, shape.num_v_heads, shape.head_v_dim)
        if memory is None:
            memory = (
                torch.zeros(slots, shape.num_v_heads, *inner, dtype=dtype, device=device),
                torch.zeros(slots, shape.conv_dim, CONV_WINDOW, dtype=CONV_DTYPE, device=device),
            )
            memory += (torch.zeros(rows, device=device),) if dtype is FP8 else ()
        self._memory = memory
        self.state, self.conv, self.scales = memory if dtype is FP8 else (*memory, None)
        self.device = self.state.device
        stochastic = Stochastic.of(*rows, seed, self.device, dtype) if rounding == "stochastic" else None
        self.launch_state = State(self.state, rounding=stochastic, scales=self.scales)  # what a backend's launch takes
        self.intermediate_states = self.draft_inputs = self.ring = self.last_call = None  # last_call: of arguments.py
        self._free = list(range(slots - 1, 0, -1))  # handed out from the end: lowest slot first
        self._lock = threading.Lock()  # of _free

    def __repr__(self):
        return (
            f"StatePool({self.slots} slots of {self.shape.num_v_heads} heads, {self.layout}, "
            f"{str(self.dtype).removeprefix('torch.')}, {self.device}, {self.nbytes / 1e6:.1f} MB, {self.free} free"
            f"{f', {described(self.ring)}' if self.ring else ''})"
        )

    @staticmethod
    def slot_nbytes(shape: GDNShape, dtype=torch.bfloat16) -> dict[str, int]:
        """Return bytes of one slot in one layer: {"state": HV·V·K elements of dtype, "conv": conv_dim·3 of bf16};
        of FP8 also "scales": HV·V of float32."""
        scales = {"scales": shape.num_v_heads * shape.head_v_dim * 4} if dtype is FP8 else {}
        return slot_nbytes(shape, dtype.itemsize) | scales

    @staticmethod
    def draft_nbytes(shape: GDNShape, tokens: int, dtype=torch.bfloat16) -> dict[str, int]:
        """Return the bytes that verifying one request's `tokens` draft tokens keeps in one layer until commit():
        {"intermediate_states": a state for each token, "draft_inputs": the convolution's input for each}."""
        return draft_nbytes(shape, tokens, draft_dtype(dtype).itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of state and convolution window, the null slot included, of drafts and ring where reserved, and of the
        counters of stochastic rounding."""
        steps = self.launch_state.rounding and self.launch_state.rounding.steps
        more = sum(x.nbytes for x in (self.intermediate_states, self.draft_inputs, self.ring, steps) if x is not None)
        return self.slots * sum(self.slot_nbytes(self.shape, self.dtype).values()) + more

    @property
    def free(self) -> int:
        """Slots that acquire() can still hand out."""
        return len(self._free)

    @torch.no_grad()
    def acquire(self, n: int) -> Tensor:
        """Hand out n slots, zeroed: int32 [n] on the pool's device. RuntimeError if fewer than n are free.

        Several threads may acquire and release at once; a call that fails takes no slot.
        """
        if type(n) is not int or n < 0:
            raise ValueError(f"n: expected an int of at least 0, got {n!r}")
        taken = []
        try:
            with self._lock:
                if n > self.free:
                    raise RuntimeError(
                        f"the pool is full: acquire({n}) with {self.free} of {self.slots - 1} slots free; "
                        "release slots first or build the pool with more"
                    )
                kept = len(self._free) - n
                taken, self._free[kept:] = self._free[kept:][::-1], []
            indices = torch.tensor(taken, dtype=torch.int32, device=self.device)
            for part in self._memory:  # scales too: NaN of the request before would make NaN of zeros
                part[indices] = 0
            if self.launch_state.rounding is not None:
                self.launch_state.rounding.steps[indices] = 0
            if self.ring:
                drop(self.ring, indices.long())
        except BaseException:  # Ctrl-C too: the slots are free again
            with self._lock:
                self._free.extend(reversed(taken))
            raise
        return indices

    def release(self, indices: Tensor) -> None:
        """Take slots back; negative entries (padding) are skipped.

        ValueError, with nothing released, if one is out of range, twice in the list, or not handed out.
        """
        given = [slot for slot in self._slots_of(indices) if slot >= 0]
        if len(set(given)) < len(given):
            raise ValueError(f"indices: expected each slot once, got {given}")
        with self._lock:
            idle = sorted(set(given) & ({0} | set(self._free)))
            if idle:
                raise ValueError(f"indices: expected slots that were handed out, got {idle}, free or the null slot")
            self._free.extend(reversed(given))

    @torch.no_grad()
    def read(self, indices: Tensor) -> Tensor:
        """Return the state of the given slots, [n, HV, V, K] float32 in any layout; zeros for negative indices."""
        slots = torch.tensor(self._slots_of(indices), dtype=torch.int64, device=self.device)
        state = self._true_state(slots.clamp(min=0)).to(torch.float32)
        state = state if self.layout == "VK" else state.transpose(-1, -2)
        return torch.where((slots >= 0)[:, None, None, None], state, 0.0).contiguous()

    @torch.no_grad()
    def write(self, indices: Tensor, state: Tensor) -> None:
        """Store state [n, HV, V, K], rounded to the pool's dtype; rows of negative indices are skipped.

        ValueError for a state of another shape or that holds no real numbers, and for a slot that is named twice.
        """
        slots = torch.tensor(self._slots_of(indices), dtype=torch.int64)
        if not isinstance(state, Tensor) or state.is_complex():
            raise ValueError(f"state: expected a tensor of real numbers, got {_seen(state)}")
        named = [slot for slot in slots.tolist() if slot >= 0]
        if len(set(named)) < len(named):
            raise ValueError(f"indices: expected each slot once, got {named}")
        expected = (len(slots), self.shape.num_v_heads, self.shape.head_v_dim, self.shape.head_k_dim)
        if state.shape != expected:
            raise ValueError(f"state: expected shape {list(expected)} ([n, HV, V, K]), got {list(state.shape)}")
        live = slots >= 0
        state = state if self.layout == "VK" else state.transpose(-1, -2)
        slots = slots[live].to(self.device)
        store(self.state, self.scales, slots, state[live.to(state.device)].to(self.device))
        if self.ring:
            drop(self.ring, slots)

    def reserve_ring(self, updates: int = 16, *, key_dtype=torch.bfloat16, memory: Ring | None = None) -> None:
        """Allocate what decode needs to defer the write of the state: a ring of `updates` updates of each slot.

        updates: 16, 32 or 64; 0 frees the ring. key_dtype: of the inputs q, k, v, a, b. A variant that defers
        (`Variant.ring`) then writes the state in one of updates + 1 steps; any other call first writes what is pending
        in its slots. All methods see the true state. A second call replaces the ring. memory: an empty ring to use, a
        piece of what several layers share; by default new. ValueError for a KV pool.
        """
        if updates and self.layout != "VK":
            raise ValueError(f"updates: expected 0, got {updates}; a pool of layout {self.layout} has no ring, VK has")
        if updates and self.launch_state.rounding is not None and self.dtype is not FP8:
            raise ValueError(f"updates: expected 0, got {updates}; a pool that rounds stochastically has no ring")
        options = {"dtype": self.dtype, "key_dtype": key_dtype, "device": self.device}
        ring = (memory or make_ring(self.shape, self.slots, updates, **options)) if updates else None
        self.settle(torch.arange(1, self.slots, device=self.device))
        self.ring, self.launch_state = ring, self.launch_state._replace(ring=ring)

    @torch.no_grad()
    def settle(self, indices: Tensor) -> None:
        """Write the pending updates of the slots in `indices`, int32 or int64 [n], to their states, rounded once.

        Without a ring there is nothing to do. Negative indices are skipped. Never synchronises with a GPU.
        """
        if self.ring and len(indices):
            write_pending(self.ring, self.state, indices, self.scales)

    def folds(self, indices: Tensor) -> Tensor:
        """Tell of slots, int32 or int64 [n], whether the next step of a ring rounds their state to FP8: bool [n]."""
        if self.ring is None or self.scales is None:
            return torch.zeros(len(indices), dtype=torch.bool, device=self.device)
        return self.ring.span[indices.long(), 1] == self.ring.updates - 1

    def _true_state(self, slots: Tensor) -> Tensor:
        """Return the state of the slots, int64 [n], in the pool's layout; float32 where there is a ring or FP8."""
        if self.ring:
            return true_state(self.ring, self.state, slots, self.scales)
        return self.state[slots] if self.scales is None else stored(self.state, self.scales, slots)

    def reserve_drafts(self, rows: int, tokens: int) -> None:
        """Allocate what verify calls of up to `rows` requests and `tokens` draft tokens keep until commit().

        intermediate_states [rows, tokens, HV, V, K] (KV: [rows, tokens, HV, K, V]) of the pool's dtype, bf16 for FP8,
        for verify(…, intermediate_states=pool.intermediate_states[:B, :T], update_state=False); draft_inputs [rows,
        conv_dim, tokens] bf16, into which the caller writes what it feeds the causal convolution for each draft token:
        the window in `conv` must stay as it was before them. Row i of both belongs to row i of the call, whatever its
        slot.
        A second call replaces the buffers, and needs room for both; rows = 0 frees them. A call that fails leaves them.
        """
        for name, value in (("rows", rows), ("tokens", tokens)):
            if type(value) is not int or value < 0:
                raise ValueError(f"{name}: expected an int of at least 0, got {value!r}")
        if not (rows and tokens):
            self.intermediate_states = self.draft_inputs = None
            return
        states, inputs = (rows, tokens, *self.state.shape[1:]), (rows, self.shape.conv_dim, tokens)
        states = torch.zeros(states, dtype=draft_dtype(self.dtype), device=self.device)
        inputs = torch.zeros(inputs, dtype=CONV_DTYPE, device=self.device)
        self.intermediate_states, self.draft_inputs = states, inputs

    @torch.no_grad()
    def commit(
        self,
        indices: Tensor,
        accepted: Tensor,
        *,
        intermediate_states: Tensor | None = None,
        draft_inputs: Tensor | None = None,
    ) -> None:
        """After a verify call that left the state, make it the state after each row's first `accepted` draft tokens.

        indices [B] int32 or int64: the call's; padding rows (negative) are skipped. accepted [B] int32 or int64 on
        the pool's device, 0 to T: 0 leaves the slot as it is, bit for bit. Nothing of a rejected draft stays: the
        convolution window becomes the last 3 of the old window followed by the accepted tokens' inputs.
        intermediate_states [B, T, …] as verify() filled it, and draft_inputs [B, conv_dim, T] bf16: both, or by default
        the first B rows of those that reserve_drafts() made.

        By index on the GPU, without synchronising; with checks on, and always on a CPU, values are checked. ValueError.
        """
        if not isinstance(indices, Tensor) or indices.dim() != 1:
            raise ValueError(f"indices: expected an int32 or int64 tensor [B], got {_seen(indices)}")
        rows = len(indices)
        intermediate_states, draft_inputs = drafts(self, rows, intermediate_states, draft_inputs)
        if not isinstance(intermediate_states, Tensor) or intermediate_states.dim() < 2:
            raise ValueError(f"intermediate_states: expected a tensor [B, T, …], got {_seen(intermediate_states)}")
        tokens = intermediate_states.shape[1]
        self.check_intermediate_states(intermediate_states, rows, tokens)
        self._check_tensor("draft_inputs", draft_inputs, (rows, self.shape.conv_dim, tokens), (CONV_DTYPE,))
        if draft_inputs.stride(-1) != 1:
            raise ValueError(
                f"draft_inputs: expected the last dimension contiguous, got strides {list(draft_inputs.stride())}"
            )
        self._check_memory("draft_inputs", draft_inputs)
        self._check_tensor("indices", indices, (rows,), (torch.int32, torch.int64))
        self._check_tensor("accepted", accepted, (rows,), (torch.int32, torch.int64))
        if checks_values() or self.device.type == "cpu":
            self._check_accepted(indices, accepted, tokens)
        if not (rows and tokens):
            return
        if self.ring:
            drop(self.ring, torch.where((indices >= 0) & (accepted > 0), indices, 0).long())
        commit(self.state, self.conv, indices, accepted, intermediate_states, draft_inputs, self.scales)

    @torch.no_grad()
    def to(self, *, layout=None, dtype=None, device=None) -> "StatePool":
        """Return a new pool with the same contents and the same slots handed out, in another layout, dtype or device.

        As much room for drafts is reserved as here, but drafts not yet committed are not copied. A stochastic pool
        stays one unless its new dtype is float32, which decode() does not round; to and from FP8 the rounding is the
        new dtype's. A VK pool has an empty ring if this one has a ring.
        """
        layout, dtype, device = layout or self.layout, dtype or self.dtype, device or self.device
        stochastic = self.launch_state.rounding
        keeps = stochastic is not None and dtype is not torch.float32 and (dtype is FP8) == (self.dtype is FP8)
        rounding = {"rounding": "stochastic", "seed": stochastic.seed} if keeps else {}
        other = StatePool(self.shape, self.slots, layout=layout, dtype=dtype, device=device, **rounding)
        if keeps:
            other.launch_state.rounding.steps.copy_(stochastic.steps)
        for slots in torch.arange(self.slots, device=self.device).split(slots_at_once(self.state)):
            state = self._true_state(slots)
            state = state if other.layout == self.layout else state.transpose(-1, -2)
            store(other.state, other.scales, slots.to(other.device), state.to(other.device))
        if self.ring and other.layout == "VK":
            other.reserve_ring(self.ring.updates, key_dtype=self.ring.keys.dtype)
        other.conv.copy_(self.conv)
        other._free = list(self._free)
        if self.intermediate_states is not None:
            other.reserve_drafts(*self.intermediate_states.shape[:2])
        return other

    def check_intermediate_states(self, states: Tensor, rows: int, tokens: int) -> None:
        """Raise ValueError unless `states` can hold the state after each of `tokens` tokens of `rows` rows."""
        expected = (rows, tokens, *self.state.shape[1:])
        self._check_tensor("intermediate_states", states, expected, (draft_dtype(self.dtype),))
        row, *inner = states.stride()
        whole = tuple(inner) == self.state.stride() or not rows or states[0].is_contiguous()
        if not whole or rows > 1 and row < tokens * self.state.stride()[0]:
            raise ValueError(
                f"intermediate_states: expected {list(expected)} contiguous but for its first dimension, its rows "
                f"apart, got strides {list(states.stride())}"
            )
        self._check_memory("intermediate_states", states)

    def _check_tensor(self, name, x, shape, dtypes) -> None:
        strided = isinstance(x, Tensor) and x.layout is torch.strided
        if not strided or x.shape != shape or x.dtype not in dtypes or x.device != self.device:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(f"{name}: expected {names} {list(shape)} on {self.device}, got {_seen(x)}")
        if x.requires_grad:
            raise ValueError(f"{name}: expected a tensor that requires no gradient; pass {name}.detach()")

    def _check_memory(self, name, x) -> None:
        for own, memory in (("state", self.state), ("conv", self.conv)):
            if shares_memory(x, memory):
                raise ValueError(f"{name}: lies in pool.{own}, which the call updates; pass memory of its own")

    def _check_accepted(self, indices: Tensor, accepted: Tensor, tokens: int) -> None:
        """Check the values of commit()'s arguments. Synchronises with a GPU."""
        slots = [slot for slot in self._slots_of(indices) if slot >= 0]
        if 0 in slots or len(set(slots)) < len(slots):
            raise ValueError(f"indices: expected each slot once, from 1 up, or negative for padding, got {slots}")
        outside = [n for n in accepted[indices >= 0].tolist() if not 0 <= n <= tokens]
        if outside:
            raise ValueError(f"accepted: expected 0 to {tokens} draft tokens for each row, got {outside}")

    def _slots_of(self, indices: Tensor) -> list[int]:
        """Return indices [n] as Python ints, checked against the pool's range. Synchronises with a GPU."""
        if not isinstance(indices, Tensor) or indices.dim() != 1 or indices.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"indices: expected an int32 or int64 tensor [n], got {_seen(indices)}")
        if indices.is_meta:
            raise ValueError("indices: expected a tensor with values, got one on meta")
        slots = indices.tolist()
        outside = [slot for slot in slots if slot >= self.slots]
        if outside:
            raise ValueError(f"indices: expected slots below {self.slots}, got {outside}")
        return slots


def _seen(x) -> str:
    """What an argument is, in a few words."""
    return f"{x.dtype} {list(x.shape)} on {x.device}" if isinstance(x, Tensor) else type(x).__name__
