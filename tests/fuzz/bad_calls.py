"""Random calls with one argument that cannot be: each must be refused in a sentence and leave everything as it was."""

from random import Random

import torch
from against_reference import filled_pool, row_slots, same_bits
from prefill_against_reference import bounds_of

from gdn_lab import checks, decode, prefill, verify
from gdn_lab.ops import make_inputs

from .calls import DTYPES, a_shape

CALLS = {"decode": decode, "verify": verify, "prefill": prefill}
INPUTS = ("q", "k", "v", "a", "b")
TENSORS = (*INPUTS, "A_log", "dt_bias", "indices", "out")
NOT_TENSORS = (None, 3, 2.5, "words", [1, 2], (1.0,), {}, object())


def one_bad_call(random: Random) -> str:
    """Make a call with one bad argument; AssertionError if it is not refused as it should be. Return its phase."""
    phase = random.choice(list(CALLS))
    arguments = good_arguments(random, phase)
    name, value = bad_argument(random, phase, arguments)
    pool, kept = arguments["pool"], {n: x.clone() for n, x in arguments.items() if isinstance(x, torch.Tensor)}
    state, conv = pool.state.clone(), pool.conv.clone()
    told = f"{phase}: {name} = {describe(value)}"
    try:
        with checks():
            CALLS[phase](**(arguments | {name: value}))
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 500, f"{told}: {error}"
        # Where the lengths of indices and cu_seqlens contradict each other, either may be meant.
        blamed = (f"{name}:", "backend", "pool", *(["cu_seqlens:"] if name == "indices" else []))
        assert str(error).startswith(blamed), f"{told} is blamed on another: {error}"
    except Exception as error:
        raise AssertionError(f"{told}: {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"{told} is accepted")
    assert same_bits(pool.state, state) and same_bits(pool.conv, conv), f"{told} has changed the pool"
    assert all(same_bits(arguments[n], x) for n, x in kept.items()), f"{told} has changed an argument"
    return phase


def good_arguments(random: Random, phase: str) -> dict:
    """Draw the arguments of a call of two rows or sequences that would be served."""
    shape, dtype = a_shape(random, "torch"), random.choice(DTYPES)
    tokens = random.randint(2, 5) if phase == "verify" else None
    lengths = [random.randint(1, 4) for _ in range(2)]
    inputs = make_inputs(shape, sum(lengths) if phase == "prefill" else 2, tokens=tokens, dtype=dtype)
    pool = filled_pool(shape, 5, layout=random.choice(["VK", "KV"]), dtype=random.choice(DTYPES))
    arguments = dict(zip(INPUTS, inputs.arguments(), strict=True)) | inputs.gates()
    arguments |= {"pool": pool, "indices": row_slots(2, 5), "out": torch.zeros(inputs.v.shape, dtype=dtype)}
    if phase == "verify":
        arguments["intermediate_states"] = torch.zeros(2, tokens, *pool.state.shape[1:], dtype=pool.dtype)
    if phase == "prefill":
        arguments["cu_seqlens"] = bounds_of(lengths)
    return arguments


def bad_argument(random: Random, phase: str, arguments: dict):
    """Draw (name, bad value) of one argument."""
    own = {"decode": (), "verify": ("intermediate_states",), "prefill": ("cu_seqlens",)}[phase]
    name = random.choice([*TENSORS, *own, *own, "indices", "pool", "backend", "scale"])
    if name == "pool":
        return name, random.choice([None, "pool", 3, arguments["pool"].state])
    if name == "backend":
        return name, random.choice([None, "", "none", "torch/none", "torch/", 3, "triton", "flashinfer/vk"])
    if name == "scale":
        return name, random.choice(["1", [1.0], {}, object()])
    x, optional = arguments[name], name in ("out", "intermediate_states")
    changes = [
        lambda: random.choice(NOT_TENSORS[1:] if optional else NOT_TENSORS),
        lambda: x.tolist(),
    ]
    changes += [lambda: x.to("meta"), lambda: x[None], lambda: x[..., :-1], lambda: x[:-1], lambda: x.to_sparse()]
    changes += [lambda: x.to(torch.complex64), lambda: x.bool(), lambda: x.to(torch.int16), lambda: x.double()]
    if x.shape[-1] > 1:
        changes.append(lambda: x.repeat_interleave(2, -1)[..., ::2])
    changes += [lambda: inside(arguments["pool"].state, x)] * (2 if optional else 1)
    if name == "intermediate_states":
        changes += [lambda: x.as_strided(x.shape, (random.choice([0, x.stride(0) - 1]), *x.stride()[1:]))] * 2
    if name == "indices":
        bad = random.choice([[0, 1], [3, 3], [5, 1], [1, 2**31 - 1]])
        changes += [lambda: torch.tensor(bad, dtype=x.dtype)] * 3
    if name == "cu_seqlens":
        total = int(x[-1])
        bad = random.choice(
            [[0, 1, total - 1], [1, 1, total], [0, total + 1, total], [-1, 1, total], [0, 1, total + 1]]
        )
        changes += [lambda: torch.tensor(bad, dtype=x.dtype)] * 3
    return name, random.choice(changes)()


def inside(state, x):
    """Return a tensor like x that lies in the pool's state, as far as there is room; else one that is too short."""
    flat = state.view(-1)
    return flat[: x.numel()].view(x.shape) if flat.numel() >= x.numel() else flat


def describe(value) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)} on {value.device}, {value.layout}"
    return repr(value)[:100]
