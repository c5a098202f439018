"""Checks of the arguments of decode(), verify() and prefill().

What can be read off the tensors without waiting for a GPU is checked on every call, so that part is kept cheap: what is
as in the pool's last call passes by a comparison, shapes and strides by one, addresses by another. Only where something
does not fit is it worked out which argument is to blame.
"""

import warnings
from collections import Counter
from itertools import pairwise
from numbers import Real
from operator import attrgetter

import torch
from torch import Tensor

from .backends.base import dtype_name
from .memory import first_sharing, shares_memory
from .models import GDNShape
from .pool import StatePool, checks_values
from .ring import stored

INDEX_DTYPES = (torch.int32, torch.int64)
FLOAT16_MARGIN = 8  # checks(True) warns of a float16 state that comes this near to its limit
INPUTS = ("q", "k", "v", "a", "b")
# What the host raises when an argument is no tensor, or a tensor without strides.
NOT_AS_EXPECTED = (AttributeError, TypeError, RuntimeError, IndexError)
_traits = attrgetter("shape", "dtype", "is_meta", "requires_grad")


def check_call(dims, q, k, v, a, b, A_log, dt_bias, pool, indices, out, backend, scale, cu_seqlens=None):
    """Raise ValueError for the first argument that does not fit the others. Synchronises only under checks().

    dims: the dimensions of q ahead of its heads: 1 ([B] or [tokens]) or 2 ([B, T]). cu_seqlens: of prefill() alone.
    """
    try:
        fits = type(backend) is str and (scale is None or isinstance(scale, Real)) and _device_is_current(pool.state)
        given = [x for x in (pool.state, q, k, v, a, b, A_log, dt_bias, indices, out, cu_seqlens) if x is not None]
        layout, addresses = (dims, out is None, _layout(given)), tuple(map(Tensor.data_ptr, given))
        last = pool.last_call or (None, None)
        if layout != last[0]:
            fits = fits and _fits(dims, q, k, v, a, b, A_log, dt_bias, pool, indices, out, cu_seqlens)
        if layout != last[0] or addresses != last[1]:
            fits = fits and _memory_is_apart(pool.state, out, v, (q, k, a, b, A_log, dt_bias, indices, cu_seqlens))
            pool.last_call = (layout, addresses) if fits else None
    except NOT_AS_EXPECTED:
        fits = False
    if not fits:
        named = {"q": q, "k": k, "v": v, "a": a, "b": b, "A_log": A_log, "dt_bias": dt_bias, "indices": indices}
        named |= {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
        named |= {} if out is None else {"out": out}
        _refuse_call(dims, named, pool, backend, scale)
    if checks_values():
        check_slots(pool, indices)
    elif indices.get_device() < 0 and not indices.is_meta:  # on a CPU a value costs nothing to read
        _check_range(pool, indices)
    if cu_seqlens is not None:
        tokens, sequences = q.shape[0], indices.shape[0]
        if tokens and not sequences:
            raise ValueError(f"cu_seqlens: expected sequences that cover the {tokens} tokens of q, got none")
        if checks_values() or pool.device.type == "cpu":
            _check_bounds(cu_seqlens, tokens)


def _device_is_current(state: Tensor) -> bool:
    """Whether kernels, which are launched on the current device, run where the state is."""
    gpu = state.get_device()
    return gpu < 0 or torch.cuda.current_device() == gpu


def _layout(tensors) -> tuple:
    """Return all of the tensors that _fits() looks at; with their addresses, all that _memory_is_apart() does."""
    return (*map(_traits, tensors), *map(Tensor.stride, tensors), *map(Tensor.get_device, tensors))


def _fits(dims, q, k, v, a, b, A_log, dt_bias, pool, indices, out, cu_seqlens) -> bool:
    """Whether shapes, dtypes, devices and strides are as expected: all that the host knows."""
    state, dtype, lead = pool.state, q.dtype, q.shape[:dims]
    HK, HV, K, V = pool.shape.dims
    gpu = state.get_device()  # -1 on the CPU, and on meta
    qk_shape, v_shape, gate_shape = (*lead, HK, K), (*lead, HV, V), (*lead, HV)
    if gpu < 0:
        meta = state.is_meta
        for x in (q, k, v, a, b, A_log, dt_bias, indices):
            if x.is_meta is not meta:
                return False
    rows = indices.shape[0] if cu_seqlens is not None else lead[0]
    return (
        dtype.is_floating_point
        and q.shape == qk_shape
        and q.get_device() == gpu
        and (q.stride()[-1] == 1 or not q.numel())
        and k.shape == qk_shape
        and k.dtype is dtype
        and k.get_device() == gpu
        and (k.stride()[-1] == 1 or not k.numel())
        and v.shape == v_shape
        and v.dtype is dtype
        and v.get_device() == gpu
        and (v.stride()[-1] == 1 or not v.numel())
        and a.shape == gate_shape
        and a.dtype is dtype
        and a.get_device() == gpu
        and (a.stride()[-1] == 1 or not a.numel())
        and b.shape == gate_shape
        and b.dtype is dtype
        and b.get_device() == gpu
        and (b.stride()[-1] == 1 or not b.numel())
        and A_log.shape == (HV,)
        and A_log.dtype is torch.float32
        and A_log.get_device() == gpu
        and A_log.is_contiguous()
        and dt_bias.shape == (HV,)
        and dt_bias.dtype is torch.float32
        and dt_bias.get_device() == gpu
        and dt_bias.is_contiguous()
        and indices.shape == (rows,)
        and indices.dtype in INDEX_DTYPES
        and indices.get_device() == gpu
        and indices.is_contiguous()
        and (out is None or (out.shape == v_shape and _is_like(out, dtype, state)))
        and (cu_seqlens is None or (cu_seqlens.shape == (rows + 1,) and _is_bounds(cu_seqlens, state)))
    )


def _is_like(x, dtype, state) -> bool:
    return x.dtype is dtype and x.device == state.device and x.is_contiguous() and not x.requires_grad


def _is_bounds(cu_seqlens, state) -> bool:
    return cu_seqlens.dtype in INDEX_DTYPES and cu_seqlens.device == state.device and cu_seqlens.is_contiguous()


def without_autograd(q, k, v, a, b, A_log, dt_bias) -> tuple[Tensor, ...]:
    """Return the tensors, detached where one requires a gradient, as a model's A_log does: a pool must keep no graph.

    Costs less than torch.no_grad(), and serves libraries that take no tensor that requires a gradient.
    """
    tensors = q, k, v, a, b, A_log, dt_bias
    if (
        A_log.requires_grad
        or dt_bias.requires_grad
        or q.requires_grad
        or k.requires_grad
        or v.requires_grad
        or a.requires_grad
        or b.requires_grad
    ):
        return tuple(x.detach() for x in tensors)
    return tensors


# ---- which argument is to blame -------------------------------------------------------------------------------------


def _refuse_call(dims: int, named: dict, pool, backend, scale):
    """Raise the ValueError of the first argument that does not fit. named: {name: tensor} of all that should be one."""
    if not isinstance(pool, StatePool):
        raise ValueError(f"pool: expected a StatePool, got {_seen(pool)}")
    if type(backend) is not str:
        raise ValueError(f"backend: expected a name such as 'auto' or 'triton/vk', got {_seen(backend)}")
    if not (scale is None or isinstance(scale, Real)):
        raise ValueError(f"scale: expected a number or None, got {_seen(scale)}")
    for name, x in named.items():
        if not isinstance(x, Tensor) or x.layout is not torch.strided:
            raise ValueError(f"{name}: expected a tensor on {pool.device}, got {_seen(x)}")
    current = torch.cuda.current_device() if pool.device.type == "cuda" else None
    if current != pool.device.index:
        raise ValueError(
            f"pool: is on {pool.device} and the current device is cuda:{current}; "
            f"call inside torch.cuda.device({pool.device.index})"
        )
    for name, (shape, dtypes) in _expected(dims, named, pool.shape).items():
        x = named[name]
        strided = name in INPUTS
        if x.shape != shape or x.dtype not in dtypes or x.device != pool.device or not _has_strides(x, strided):
            _refuse(name, x, shape, x.dtype if x.dtype in dtypes else dtypes[0], pool.device)
    _refuse_memory(named, pool.state)


def _expected(dims: int, named: dict, shape: GDNShape) -> dict:
    """{name: (shape, dtypes)} that each argument should have, by what most of q, k, v, a and b agree on."""
    HK, HV, K, V = shape.dims
    tails = {"q": (HK, K), "k": (HK, K), "v": (HV, V), "a": (HV,), "b": (HV,)}
    leads = [tuple(named[name].shape[:dims]) for name, tail in tails.items() if named[name].dim() == dims + len(tail)]
    lead = Counter(leads).most_common(1)[0][0] if leads else ("B", "T")[:dims]
    dtypes = [named[name].dtype for name in tails if named[name].dtype.is_floating_point]
    dtype = Counter(dtypes).most_common(1)[0][0] if dtypes else torch.bfloat16
    expected = {name: ((*lead, *tail), (dtype,)) for name, tail in tails.items()}
    expected |= {name: ((HV,), (torch.float32,)) for name in ("A_log", "dt_bias")}
    if "cu_seqlens" in named:
        rows = _sequences(named["indices"], named["cu_seqlens"])
        expected |= {"indices": ((rows,), INDEX_DTYPES), "cu_seqlens": ((rows + 1,), INDEX_DTYPES)}
    else:
        expected["indices"] = ((lead[0],), INDEX_DTYPES)
    return expected | ({"out": ((*lead, HV, V), (dtype,))} if "out" in named else {})


def _sequences(indices: Tensor, cu_seqlens: Tensor) -> int:
    """The number of sequences of a prefill call, by indices if that is one-dimensional, else by cu_seqlens."""
    return indices.shape[0] if indices.dim() == 1 else max(cu_seqlens.numel() - 1, 0)


def _has_strides(x: Tensor, strided: bool) -> bool:
    if strided:
        return x.numel() == 0 or x.stride(-1) == 1
    return x.is_contiguous()


def _seen(x) -> str:
    """What an argument is, in a few words."""
    if isinstance(x, Tensor):
        seen = f"{dtype_name(x.dtype)} {list(x.shape)} on {x.device}"
        if x.layout is not torch.strided:
            return f"{seen}, {str(x.layout).removeprefix('torch.')}"
        return seen if x.is_contiguous() else f"{seen} with strides {list(x.stride())}"
    return repr(x)[:40] if isinstance(x, (str, int, float, type(None))) else type(x).__name__


def _refuse(name, x, shape, dtype, device):
    """Raise the ValueError for one tensor that is not what it should be."""
    layout = "the last dimension contiguous" if name in INPUTS else "contiguous"
    size = f"[{', '.join(map(str, shape))}]"
    raise ValueError(f"{name}: expected {dtype_name(dtype)} {size} on {device}, {layout}; got {_seen(x)}")


# ---- memory that is shared ------------------------------------------------------------------------------------------


def _memory_is_apart(state, out, v, others) -> bool:
    """Whether no argument lies in the pool, and `out` shares memory with none but a v that it is.

    A kernel reads q, k, a and b for one value head after it has written another's output; v it reads only where it
    then writes, so out may be v. others: the other tensors that the call reads, or None.
    """
    start = state.data_ptr()
    if not start:  # on meta
        return True
    end = start + state.nbytes
    if start <= v.data_ptr() < end:
        return False
    for x in others:
        if x is not None and start <= x.data_ptr() < end:
            return False
    if out is None:
        return True
    if v.data_ptr() != out.data_ptr() or not v.is_contiguous():
        others = (v, *others)
    return first_sharing(out, (state, *others)) is None


def _refuse_memory(named: dict, state: Tensor):
    """Raise the ValueError of the first argument whose memory is not its own. named: as in _refuse_call()."""
    for name, x in named.items():
        if shares_memory(x, state):
            raise ValueError(f"{name}: lies in pool.state, which the call updates; pass memory of its own")
    out = named["out"]
    if out.requires_grad:
        raise ValueError("out: expected a tensor that requires no gradient; pass out.detach()")
    for name, x in named.items():
        if name not in ("v", "out") and shares_memory(out, x):
            raise ValueError(f"out: shares memory with {name}, which the call still reads; pass memory of its own")
    raise ValueError("out: shares memory with v and is not v itself; pass v or memory of its own")


def check_intermediate_states(states: Tensor, pool: StatePool, rows: int, tokens: int, others) -> None:
    """Raise ValueError unless `states` can take the state after each token without touching anything else.

    others: the call's other tensors, or None for one that it does not have.
    """
    pool.check_intermediate_states(states, rows, tokens)
    if first_sharing(states, others) is not None:
        raise ValueError("intermediate_states: shares memory with another argument; pass memory of its own")


# ---- values ----------------------------------------------------------------------------------------------------------


def check_indices(indices, rows: int, pool) -> None:
    """Raise ValueError unless `indices` [rows] names slots of the pool; its values are checked as check_call() does."""
    if not isinstance(indices, Tensor) or indices.layout is not torch.strided:
        raise ValueError(f"indices: expected a tensor on {pool.device}, got {_seen(indices)}")
    if indices.shape != (rows,) or indices.dtype not in INDEX_DTYPES or indices.device != pool.device:
        dtype = indices.dtype if indices.dtype in INDEX_DTYPES else torch.int32
        _refuse("indices", indices, (rows,), dtype, pool.device)
    if checks_values():
        check_slots(pool, indices)
    elif pool.device.type == "cpu":
        _check_range(pool, indices)


def check_slots(pool, indices):
    """Check the values of indices and state. Synchronises with the GPU."""
    _check_range(pool, indices)
    slots = [slot for slot in indices.tolist() if slot >= 0]
    if 0 in slots:
        raise ValueError("indices: expected slots from 1 (slot 0 is the null slot) or negative for padding, got 0")
    twice = sorted(slot for slot, times in Counter(slots).items() if times > 1)
    if twice:
        raise ValueError(f"indices: expected each live slot once, got {twice} more than once")
    if slots:
        live = torch.tensor(slots, device=pool.device)
        states = pool.state[live] if pool.scales is None else stored(pool.state, pool.scales, live)
        finite = torch.isfinite(states).flatten(1).all(1).tolist()
        if not all(finite):
            bad = [slot for slot, good in zip(slots, finite, strict=True) if not good]
            raise ValueError(f"pool.state: expected finite values, got NaN or infinity in slots {bad}")
        if pool.dtype is torch.float16:
            _warn_of_float16(slots, states)


def _warn_of_float16(slots: list[int], state: Tensor) -> None:
    """Warn of slots in which an element is within a factor of FLOAT16_MARGIN of float16's largest number."""
    most = torch.finfo(torch.float16).max / FLOAT16_MARGIN
    largest = state.abs().flatten(1).amax(1).tolist()
    near = {slot: size for slot, size in zip(slots, largest, strict=True) if size > most}
    if near:
        warnings.warn(
            f"pool.state: |S| reaches {max(near.values()):,.0f} in slots {list(near)}, within a factor of "
            f"{FLOAT16_MARGIN} of float16's limit, 65,504; beyond it lies infinity: take bfloat16 or float32",
            stacklevel=4,
        )


def _check_range(pool, indices):
    slots = indices.tolist()
    if slots and max(slots) >= pool.slots:
        outside = [slot for slot in slots if slot >= pool.slots]
        raise ValueError(f"indices: expected slots below {pool.slots} or negative for padding, got {outside}")


def _check_bounds(cu_seqlens, tokens):
    """Check the values of cu_seqlens. Synchronises with the GPU."""
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != tokens or any(end < start for start, end in pairwise(bounds)):
        raise ValueError(f"cu_seqlens: expected 0 to {tokens}, the tokens of q, and never falling, got {bounds}")
