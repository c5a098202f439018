"""decode(), verify(), prefill(): check, choose a backend, call it. And what engines did before kernels took a pool.

What can be read off the tensors without waiting for the GPU is checked on every call. What lies in GPU memory (the
range and uniqueness of indices, NaN in the state) is checked inside `with checks(True):` or under GDN_LAB_CHECKS=1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import check_call, check_indices, check_intermediate_states, without_autograd
from .backends import author_files
from .backends.base import Call
from .backends.registry import defers, launch_for
from .models import GDNShape
from .pool import StatePool, checks

__all__ = [
    "DecodeInputs",
    "checks",
    "decode",
    "decode_gathered",
    "make_inputs",
    "normalised",
    "prefill",
    "prefill_detour",
    "verify",
]

DRAFT_TOKENS = (2, 16)  # of one verify call: fewest and most


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    A_log: Tensor,
    dt_bias: Tensor,
    pool: StatePool,
    indices: Tensor,
    backend: str = "auto",
    scale: float | None = None,
    use_qk_l2norm: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Take one token for each row: update the rows' slots of the pool in place and return o [B, HV, V].

    q, k [B, HK, K]; v [B, HV, V]; a, b [B, HV]: one dtype, may be strided views whose last dimension is contiguous.
    A_log, dt_bias [HV] float32. indices [B] int32 or int64: each row's slot; negative is padding: such a row changes no
    slot that was handed out, and its output is undefined (zero on `torch`, `triton`, `cutedsl`).
    backend: "auto" (the fastest that can), a name ("triton"), or a name and variant ("triton/kv8").
    scale: of q, default K ** -0.5. out: [B, HV, V], contiguous, q's dtype; given, the call allocates nothing. It may be
    v, and share memory with no other argument and not with the pool.

    Autograd records nothing. Never synchronises unless checks are on. Raises ValueError naming the argument, what was
    expected and what came; or with the sentence of the backend that refuses. reference.py defines the operation.
    """
    check_call(1, q, k, v, a, b, A_log, dt_bias, pool, indices, out, backend, scale)
    call = _call("decode", q, indices, pool)
    inputs = (q, k, v, a, b, A_log, dt_bias)
    if pool.ring and not defers(backend, call):
        pool.settle(indices)
    return _launched(call, backend, inputs, pool.launch_state, indices, scale, use_qk_l2norm, out)


def verify(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    A_log: Tensor,
    dt_bias: Tensor,
    pool: StatePool,
    indices: Tensor,
    backend: str = "auto",
    scale: float | None = None,
    use_qk_l2norm: bool = True,
    out: Tensor | None = None,
    intermediate_states: Tensor | None = None,
    update_state: bool = True,
) -> Tensor:
    """Take T = 2…16 draft tokens for each row, one after the other from the row's state; return o [B, T, HV, V].

    q, k [B, T, HK, K]; v [B, T, HV, V]; a, b [B, T, HV]; otherwise as decode().
    update_state: the rows' slots take the state after all T tokens. Otherwise the pool's state stays as it is.
    intermediate_states [B, T, HV, V, K] of the pool's dtype (a KV pool: [B, T, HV, K, V]), contiguous but for its first
    dimension: the state after each token is stored there, for StatePool.commit() once it is known how many tokens are
    accepted; pool.intermediate_states[:B, :T] is such a buffer. Its padding rows are undefined.

    out: [B, T, HV, V], contiguous, q's dtype. Synchronisation, padding and errors as decode().
    """
    check_call(2, q, k, v, a, b, A_log, dt_bias, pool, indices, out, backend, scale)
    fewest, most = DRAFT_TOKENS
    if not fewest <= q.size(1) <= most:
        raise ValueError(f"q: expected {fewest} to {most} draft tokens in [B, T, HK, K], got {list(q.shape)}")
    if intermediate_states is not None:
        check_intermediate_states(
            intermediate_states, pool, q.size(0), q.size(1), (q, k, v, a, b, A_log, dt_bias, indices, out)
        )
    if update_state:
        mode = "update" if intermediate_states is None else "update and intermediate"
    else:
        mode = "output" if intermediate_states is None else "intermediate"
    call = _call("verify", q, indices, pool)._replace(mode=mode)
    pool.settle(indices)
    state = pool.launch_state._replace(intermediate=intermediate_states)
    inputs = (q, k, v, a, b, A_log, dt_bias)
    return _launched(call, backend, inputs, state, indices, scale, use_qk_l2norm, out, update_state=update_state)


def prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    A_log: Tensor,
    dt_bias: Tensor,
    pool: StatePool,
    indices: Tensor,
    cu_seqlens: Tensor,
    backend: str = "auto",
    scale: float | None = None,
    use_qk_l2norm: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Take packed sequences of any length, each from its slot's state, and store its last; return o [tokens, HV, V].

    q, k [tokens, HK, K]; v [tokens, HV, V]; a, b [tokens, HV]; otherwise as decode(). Sequence n holds the tokens
    cu_seqlens[n] to cu_seqlens[n + 1] and may be empty: its state then stays as it is.
    cu_seqlens [n + 1] int32 or int64, on the pool's device, contiguous: from 0 to tokens, never falling.
    indices [n] int32 or int64: each sequence's slot. Zero the slot of a new request (acquire() does); what it holds is
    the cached prefix's state. Negative is padding, as in decode().

    out: [tokens, HV, V], contiguous, q's dtype. Allocates scratch; `torch` reads cu_seqlens on the host, the others
    never synchronise. Errors as decode(); the values of cu_seqlens are checked where those of indices are.
    """
    if cu_seqlens is None:
        raise ValueError("cu_seqlens: expected where each sequence begins and the last ends, int32 [n + 1], got None")
    check_call(1, q, k, v, a, b, A_log, dt_bias, pool, indices, out, backend, scale, cu_seqlens)
    call = _call("prefill", q, indices, pool)
    pool.settle(indices)
    inputs, state = (q, k, v, a, b, A_log, dt_bias), pool.launch_state
    return _launched(call, backend, inputs, state, indices, scale, use_qk_l2norm, out, cu_seqlens=cu_seqlens)


def _call(phase: str, q: Tensor, indices: Tensor, pool: StatePool) -> Call:
    """Return what decides which variant can serve a call."""
    stochastic = pool.launch_state.rounding is not None and pool.scales is None  # FP8 has no other rounding
    ring, key_dtype = (pool.ring.updates, pool.ring.keys.dtype) if pool.ring else (0, None)
    return Call(
        *(phase, pool.layout, pool.dtype, q.dtype, indices.dtype, pool.shape, pool.device),
        stochastic=stochastic,
        ring=ring,
        key_dtype=key_dtype,
    )


def _launched(call, backend, inputs, state, indices, scale, use_qk_l2norm, out, **of_phase):
    """Launch a call that has been checked, unless it is empty, and return its output.

    inputs: q, k, v, a, b, A_log, dt_bias. of_phase: what only this phase's launch takes.
    """
    launch = launch_for(backend, call)
    q, k, v, a, b, A_log, dt_bias = without_autograd(*inputs)
    if out is None:
        out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if q.shape[0]:
        launch(
            q,
            k,
            v,
            a,
            b,
            A_log=A_log,
            dt_bias=dt_bias,
            state=state,
            indices=indices,
            scale=call.shape.scale if scale is None else scale,
            use_qk_l2norm=use_qk_l2norm,
            out=out,
            **of_phase,
        )
    return out


@torch.no_grad()
def prefill_detour(q, k, v, a, b, *, pool: StatePool, indices: Tensor, scratch: StatePool, rows: Tensor, **options):
    """Run prefill() on a VK pool by a KV round trip, as engines did whose prefill kernel took only KV pools: gather the
    slots, transpose, run on that, transpose back, scatter.

    scratch: a KV pool of at least n + 1 slots with the pool's shape, dtype and device; its slots 1…n are overwritten.
    rows: arange(1, n + 1) of the indices' dtype. Other arguments and errors as prefill(). Padding uses the
    null slot.
    """
    n = len(indices)
    if (pool.layout, scratch.layout, scratch.shape, scratch.dtype, scratch.device) != (
        "VK",
        "KV",
        pool.shape,
        pool.dtype,
        pool.device,
    ) or scratch.slots <= n:
        raise ValueError(f"scratch: expected KV and {n + 1} slots, and a VK pool otherwise like it, got {scratch}")
    slots = indices.clamp(min=0).long()
    pool.settle(indices)
    batch = scratch.state[1 : n + 1]
    batch.copy_(pool.state.index_select(0, slots).transpose(-1, -2))
    out = prefill(q, k, v, a, b, pool=scratch, indices=rows, **options)
    pool.state.index_copy_(0, slots, batch.transpose(-1, -2).contiguous())
    return out


@torch.no_grad()
def decode_gathered(
    q,
    k,
    v,
    a,
    b,
    *,
    pool: StatePool,
    indices: Tensor,
    scratch: StatePool,
    rows: Tensor,
    padding: bool = True,
    **options,
):
    """Run decode() as engines did before kernels took a pool: gather the slots into a batch, run on it, scatter back.

    scratch: a pool of at least B + 1 slots with the pool's shape, layout, dtype and device; its slots 1…B are
    overwritten. rows: arange(1, B + 1) int32. Other arguments and errors as decode(). Padding rows use the
    null slot; padding=False promises that there are none. Without padding and with int64 indices, the gather and the
    scatter are one kernel each and nothing else is added.
    """
    if (scratch.shape, scratch.layout, scratch.dtype, scratch.device, scratch.rounding) != (
        pool.shape,
        pool.layout,
        pool.dtype,
        pool.device,
        pool.rounding,
    ) or scratch.slots <= len(indices):
        raise ValueError(f"scratch: expected {len(indices) + 1} slots like those of {pool}, got {scratch}")
    if pool.scales is not None:
        raise ValueError(f"pool: expected a state without scales, got {pool}; decode() takes it in place")
    check_indices(indices, len(q), pool)
    pool.settle(indices)
    slots = (indices.clamp(min=0) if padding else indices).long()
    batch = scratch.state[1 : len(indices) + 1]
    torch.index_select(pool.state, 0, slots, out=batch)
    out = decode(q, k, v, a, b, pool=scratch, indices=rows, **options)
    pool.state.index_copy_(0, slots, batch)
    return out


@dataclass(frozen=True)
class DecodeInputs:
    """Arguments of one call. q, k, v are views of one packed mixed_qkv [B, conv_dim] (verify: [B, T, conv_dim]), as
    engines have them. For prefill() B is the number of tokens."""

    q: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor
    A_log: Tensor
    dt_bias: Tensor
    mixed_qkv: Tensor

    def arguments(self) -> tuple[Tensor, ...]:
        """Return the positional arguments of decode(), verify() and prefill()."""
        return self.q, self.k, self.v, self.a, self.b

    def gates(self) -> dict[str, Tensor]:
        """Return the keyword arguments A_log and dt_bias of decode(), verify() and prefill()."""
        return {"A_log": self.A_log, "dt_bias": self.dt_bias}


def make_inputs(
    shape: GDNShape, batch: int, *, tokens=None, device="cpu", dtype=torch.bfloat16, seed=0, strong_decay=True
):
    """Make random DecodeInputs of decode(), or with `tokens` of verify() with that many draft tokens a row. Those of
    prefill() are like those of decode(), `batch` counting tokens.

    q, k, v standard normal, packed; A_log of A uniform in 1…16 as the models are initialised. With strong_decay, g
    ranges from e^-20 and less to nearly 1; without, it stays near 1, as in most trained heads. The same seed gives the
    same numbers on every device.
    """
    rng = torch.Generator().manual_seed(seed)
    HK, HV, K, V = shape.dims
    lead = (batch,) if tokens is None else (batch, tokens)
    mixed_qkv = torch.randn(*lead, shape.conv_dim, generator=rng).to(device, dtype)
    q, k, v = mixed_qkv.split([HK * K, HK * K, HV * V], dim=-1)
    ba = torch.randn(*lead, 2 * HV, generator=rng)
    ba[..., HV:] = ba[..., HV:] * 4 - 1 if strong_decay else ba[..., HV:] - 6
    ba = ba.to(device, dtype)
    A_log = torch.empty(HV).uniform_(1, 16, generator=rng).log_().to(device)
    dt_bias = (torch.randn(HV, generator=rng) * 0.5).to(device)
    q, k, v = q.view(*lead, HK, K), k.view(*lead, HK, K), v.view(*lead, HV, V)
    return DecodeInputs(q, k, v, ba[..., HV:], ba[..., :HV], A_log, dt_bias, mixed_qkv)


# Here everything is there that a kernel file of GDN_LAB_KERNELS may import.
author_files.load_named()


def normalised(inputs: DecodeInputs) -> DecodeInputs:
    """Normalise q and k in place, in float32: what a call with use_qk_l2norm=False expects."""
    for part in (inputs.q, inputs.k):
        part.copy_(torch.nn.functional.normalize(part.float(), dim=-1))
    return inputs
