"""decode(), verify(), prefill(): check, choose a backend, call it. And what engines did before kernels took a pool.

What can be read off the tensors without waiting for the GPU is checked on every call. What lies in GPU memory (the
range and uniqueness of indices, NaN in the state) is checked inside `with checks(True):` or under GDN_LAB_CHECKS=1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .backends.base import Call, dtype_name
from .backends.registry import launch_for
from .models import GDNShape
from .pool import StatePool, checks, checks_values

__all__ = [
    "DecodeInputs",
    "checks",
    "decode",
    "decode_gathered",
    "make_inputs",
    "prefill",
    "prefill_detour",
    "verify",
]

DRAFT_TOKENS = (2, 16)  # of one verify call: fewest and most
_INDEX_DTYPES = (torch.int32, torch.int64)


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
    scale: of q, default K ** -0.5. out: [B, HV, V], contiguous, q's dtype; given, the call allocates nothing.

    Never synchronises unless checks are on. Raises ValueError naming the argument, what was expected and what came; or
    with the sentence of the backend that refuses. The operation is defined in reference.py.
    """
    _check_call((q.size(0),), q.size(0), q, k, v, a, b, A_log, dt_bias, pool, indices, out)
    if checks_values():
        _check_slots(pool, indices)
    call = Call("decode", pool.layout, pool.dtype, q.dtype, indices.dtype, pool.shape, pool.device)
    launch = launch_for(backend, call)
    if out is None:
        out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if q.size(0):
        launch(
            q,
            k,
            v,
            a,
            b,
            A_log=A_log,
            dt_bias=dt_bias,
            state=pool.launch_state,
            indices=indices,
            scale=pool.shape.scale if scale is None else scale,
            use_qk_l2norm=use_qk_l2norm,
            out=out,
        )
    return out


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
    lead = tuple(q.shape[:2])
    _check_call(lead, q.size(0), q, k, v, a, b, A_log, dt_bias, pool, indices, out)
    fewest, most = DRAFT_TOKENS
    if not fewest <= q.size(1) <= most:
        raise ValueError(f"q: expected {fewest} to {most} draft tokens in [B, T, HK, K], got {list(q.shape)}")
    if intermediate_states is not None:
        pool.check_intermediate_states(intermediate_states, *lead)
    if checks_values():
        _check_slots(pool, indices)
    if update_state:
        mode = "update" if intermediate_states is None else "update and intermediate"
    else:
        mode = "output" if intermediate_states is None else "intermediate"
    call = Call("verify", pool.layout, pool.dtype, q.dtype, indices.dtype, pool.shape, pool.device, mode)
    launch = launch_for(backend, call)
    if out is None:
        out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if q.size(0):
        launch(
            q,
            k,
            v,
            a,
            b,
            A_log=A_log,
            dt_bias=dt_bias,
            state=pool.launch_state._replace(intermediate=intermediate_states),
            indices=indices,
            scale=pool.shape.scale if scale is None else scale,
            use_qk_l2norm=use_qk_l2norm,
            out=out,
            update_state=update_state,
        )
    return out


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
    sequences = indices.size(0) if indices.dim() else 0
    _check_call((q.size(0),), sequences, q, k, v, a, b, A_log, dt_bias, pool, indices, out)
    if (
        cu_seqlens.shape != (sequences + 1,)
        or cu_seqlens.dtype not in _INDEX_DTYPES
        or cu_seqlens.get_device() != pool.state.get_device()
        or not cu_seqlens.is_contiguous()
    ):
        dtype = cu_seqlens.dtype if cu_seqlens.dtype in _INDEX_DTYPES else torch.int32
        _refuse("cu_seqlens", cu_seqlens, (sequences + 1,), dtype, pool.device)
    if checks_values():
        _check_slots(pool, indices)
        _check_bounds(cu_seqlens, q.size(0))
    call = Call("prefill", pool.layout, pool.dtype, q.dtype, indices.dtype, pool.shape, pool.device)
    launch = launch_for(backend, call)
    if out is None:
        out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if q.size(0):
        launch(
            q,
            k,
            v,
            a,
            b,
            A_log=A_log,
            dt_bias=dt_bias,
            state=pool.launch_state,
            indices=indices,
            cu_seqlens=cu_seqlens,
            scale=pool.shape.scale if scale is None else scale,
            use_qk_l2norm=use_qk_l2norm,
            out=out,
        )
    return out


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
    batch = scratch.state[1 : n + 1]
    batch.copy_(pool.state.index_select(0, slots).transpose(-1, -2))
    out = prefill(q, k, v, a, b, pool=scratch, indices=rows, **options)
    pool.state.index_copy_(0, slots, batch.transpose(-1, -2).contiguous())
    return out


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
    if (scratch.shape, scratch.layout, scratch.dtype, scratch.device) != (
        pool.shape,
        pool.layout,
        pool.dtype,
        pool.device,
    ) or scratch.slots <= len(indices):
        raise ValueError(f"scratch: expected {len(indices) + 1} slots like those of {pool}, got {scratch}")
    if indices.shape != q.shape[:1] or indices.get_device() != pool.state.get_device():
        _refuse("indices", indices, q.shape[:1], indices.dtype, pool.device)
    if checks_values():
        _check_slots(pool, indices)
    slots = (indices.clamp(min=0) if padding else indices).long()
    batch = scratch.state[1 : len(indices) + 1]
    torch.index_select(pool.state, 0, slots, out=batch)
    out = decode(q, k, v, a, b, pool=scratch, indices=rows, **options)
    pool.state.index_copy_(0, slots, batch)
    return out


def _check_call(lead, rows, q, k, v, a, b, A_log, dt_bias, pool, indices, out):
    """Check shapes, dtypes, devices and strides: all that is known on the host. Part of every call, so kept cheap.

    lead: the dimensions of q, k, v, a, b and out before the heads. rows: the length of indices.
    """
    shape, gpu, dtype = pool.shape, pool.state.get_device(), q.dtype  # get_device() is -1 on the CPU
    HK, HV, K, V = shape.dims
    if gpu >= 0 and torch.cuda.current_device() != gpu:  # kernels are launched on the current device
        raise ValueError(
            f"pool: is on {pool.device} and the current device is cuda:{torch.cuda.current_device()}; "
            f"call inside torch.cuda.device({gpu})"
        )
    qk_shape, v_shape, gate_shape = (*lead, HK, K), (*lead, HV, V), (*lead, HV)
    if not dtype.is_floating_point:
        raise ValueError(f"q: expected a floating-point dtype, got {dtype_name(dtype)}")
    if q.shape != qk_shape or q.get_device() != gpu or q.stride(-1) != 1:
        _refuse("q", q, qk_shape, dtype, pool.device)
    if k.shape != qk_shape or k.dtype is not dtype or k.get_device() != gpu or k.stride(-1) != 1:
        _refuse("k", k, qk_shape, dtype, pool.device)
    if v.shape != v_shape or v.dtype is not dtype or v.get_device() != gpu or v.stride(-1) != 1:
        _refuse("v", v, v_shape, dtype, pool.device)
    if a.shape != gate_shape or a.dtype is not dtype or a.get_device() != gpu or a.stride(-1) != 1:
        _refuse("a", a, gate_shape, dtype, pool.device)
    if b.shape != gate_shape or b.dtype is not dtype or b.get_device() != gpu or b.stride(-1) != 1:
        _refuse("b", b, gate_shape, dtype, pool.device)
    for name, x in (("A_log", A_log), ("dt_bias", dt_bias)):
        if x.shape != (HV,) or x.dtype is not torch.float32 or x.get_device() != gpu or not x.is_contiguous():
            _refuse(name, x, (HV,), torch.float32, pool.device)
    if (
        indices.shape != (rows,)
        or indices.dtype not in _INDEX_DTYPES
        or indices.get_device() != gpu
        or not indices.is_contiguous()
    ):
        _refuse(
            "indices", indices, (rows,), indices.dtype if indices.dtype in _INDEX_DTYPES else torch.int32, pool.device
        )
    if out is not None and (
        out.shape != v_shape or out.dtype is not dtype or out.get_device() != gpu or not out.is_contiguous()
    ):
        _refuse("out", out, v_shape, dtype, pool.device)


def _refuse(name, x, shape, dtype, device):
    """Raise the ValueError for one tensor that is not what it should be."""
    seen = f"{dtype_name(x.dtype)} {list(x.shape)} on {x.device}"
    if not x.is_contiguous():
        seen += f" with strides {list(x.stride())}"
    layout = "the last dimension contiguous" if name in ("q", "k", "v", "a", "b") else "contiguous"
    raise ValueError(f"{name}: expected {dtype_name(dtype)} {list(shape)} on {device}, {layout}; got {seen}")


def _check_slots(pool, indices):
    """Check the values of indices and state. Synchronises with the GPU."""
    slots = [slot for slot in indices.tolist() if slot >= 0]
    outside = [slot for slot in slots if slot >= pool.slots]
    if outside:
        raise ValueError(f"indices: expected slots below {pool.slots} or negative for padding, got {outside}")
    if 0 in slots:
        raise ValueError("indices: expected slots from 1 (slot 0 is the null slot) or negative for padding, got 0")
    twice = sorted({slot for slot in slots if slots.count(slot) > 1})
    if twice:
        raise ValueError(f"indices: expected each live slot once, got {twice} more than once")
    if slots:
        live = torch.tensor(slots, device=pool.device)
        finite = torch.isfinite(pool.state[live]).flatten(1).all(1).tolist()
        if not all(finite):
            bad = [slot for slot, good in zip(slots, finite, strict=True) if not good]
            raise ValueError(f"pool.state: expected finite values, got NaN or infinity in slots {bad}")


def _check_bounds(cu_seqlens, tokens):
    """Check the values of cu_seqlens. Synchronises with the GPU."""
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != tokens or bounds != sorted(bounds):
        raise ValueError(f"cu_seqlens: expected 0 to {tokens}, the tokens of q, and never falling, got {bounds}")


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
