"""Random calls of decode, verify, commit and prefill, each judged by the float64 reference.

Sizes, dtypes, layouts, strides, padding, slots and inputs are drawn from one random number generator a call. What holds
for every call is checked too: slots and windows that it does not name stay bit for bit, and so do its arguments.
"""

import functools
from random import Random

import torch
from against_reference import PADDING, check_decode, filled_pool, row_slots
from prefill_against_reference import check_prefill
from verify_against_reference import BOTH, INTERMEDIATE, OUTPUT, UPDATE, check_commit, check_verify

from gdn_lab import GDNShape, StatePool
from gdn_lab.backends import registry
from gdn_lab.hard_inputs import KINDS, hard_inputs
from gdn_lab.ops import decode_gathered, make_inputs, prefill_detour

FP32, BF16, FP16 = DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_SIZES = {"torch": (range(1, 41), range(1, 41)), "triton": ((16, 32), (32, 64))}  # K, V
LENGTHS = (0, 0, 1, 1, 2, 3, 5, 17, 63, 64, 65, 130)  # of prefill's sequences; a chunk has 64 tokens
PADDINGS = (PADDING, -7, -(2**31))


def one_call(random: Random, backend: str) -> str:
    """Make and check one random call on `backend` and return the name of what was called.

    AssertionError says what is wrong.
    """
    kind = random.choice([decode, decode, verify, verify, prefill])
    return kind(random, backend)


def decode(random: Random, backend: str) -> str:
    batch = random.randint(0, 6)
    pool, indices, options = a_call(random, backend, "decode", batch)
    options["strides"] = random.choice(["packed", "contiguous", "wide", "odd", "apart"])
    if random.random() < 0.8:
        check_decode(pool, indices, **options)
        return "decode"
    rows = torch.arange(1, batch + 1, dtype=torch.int32)
    scratch = StatePool(pool.shape, batch + 2, layout=pool.layout, dtype=pool.dtype)
    padding = bool((indices < 0).any())
    gathered = functools.partial(decode_gathered, scratch=scratch, rows=rows, padding=padding)
    check_decode(pool, indices, **options, call=gathered, padding_is_zero=False)
    return "decode_gathered"


def verify(random: Random, backend: str) -> str:
    batch, tokens = random.randint(0, 5), random.randint(2, 16 if backend == "torch" else 5)
    pool, indices, options = a_call(random, backend, "verify", batch, tokens)
    mode = random.choice([UPDATE, INTERMEDIATE, INTERMEDIATE, OUTPUT, BOTH])
    options["strides"] = random.choice(["packed", "contiguous", "odd"])
    if mode != INTERMEDIATE or random.random() < 0.3:
        check_verify(pool, indices, tokens, mode=mode, reserved=random.choice([None, tokens + 2]), **options)
        return "verify"
    pool.reserve_drafts(batch + random.randint(0, 2), tokens + random.randint(0, 2))
    if pool.intermediate_states is None:  # no rows
        return "verify"
    states = pool.intermediate_states[:batch, :tokens]
    check_verify(pool, indices, tokens, mode=mode, states=states, **options)
    rng = torch.Generator().manual_seed(random.getrandbits(32))
    pool.draft_inputs.copy_(torch.randn(pool.draft_inputs.shape, generator=rng))
    accepted = torch.tensor([random.randint(0, tokens) for _ in range(batch)], dtype=a_dtype(random))
    check_commit(pool, indices, accepted)
    return "verify and commit"


def prefill(random: Random, backend: str) -> str:
    lengths = [random.choice(LENGTHS) for _ in range(random.randint(0, 4))]
    pool, indices, options = a_call(random, backend, "prefill", len(lengths), rows=sum(lengths))
    options |= {"bounds_dtype": a_dtype(random), "operands": FP32 if backend == "torch" else None}
    if backend == "torch" and pool.layout == "VK" and random.random() < 0.2:
        options["backend"] = "torch"
        scratch = StatePool(pool.shape, len(lengths) + 2, layout="KV", dtype=pool.dtype)
        rows = torch.arange(1, len(lengths) + 1, dtype=indices.dtype)
        call = functools.partial(prefill_detour, scratch=scratch, rows=rows)
        check_prefill(pool, lengths, indices, **options, call=call, padding_is_zero=False)
        return "prefill_detour"
    check_prefill(pool, lengths, indices, **options)
    return "prefill"


# ---- what a call is made of -----------------------------------------------------------------------------------------


def a_call(random: Random, backend: str, phase: str, batch: int, tokens=None, rows=None):
    """Draw (pool, indices [batch], options of the check). rows: of the inputs, by default `batch`."""
    shape = a_shape(random, backend)
    variant = random.choice([v for v in registry.BACKENDS[backend].variants if phase in v.phases and not v.ring])
    pool = filled_pool(
        shape,
        max(2, batch + 1 + random.randint(0, 3)),
        layout=variant.layout,
        dtype=random.choice(DTYPES),
        seed=random.randint(0, 99),
    )
    indices = some_slots(random, pool, batch)
    io_dtype = an_io_dtype(random, backend, phase)
    rows = batch if rows is None else rows
    inputs, normalised = some_inputs(random, pool, indices, rows, tokens, io_dtype)
    options = {
        "backend": random.choice([backend, variant.full_name]),
        "inputs": inputs,
        "io_dtype": io_dtype,
        "use_qk_l2norm": normalised,
        "scale": random.choice([None, 1.0, 0.25, 0.0, -0.5]),
        "interpreted": backend != "torch",
    }
    if random.random() < 0.3:
        options["out"] = torch.full(inputs.v.shape, torch.nan, dtype=io_dtype)
    return pool, indices, options


def a_shape(random: Random, backend: str) -> GDNShape:
    keys, values = HEAD_SIZES[backend]
    heads = random.randint(1, 3)
    return GDNShape(heads, heads * random.randint(1, 3), random.choice(keys), random.choice(values))


def an_io_dtype(random: Random, backend: str, phase: str) -> torch.dtype:
    """Triton's interpreter gets products of bf16 wrong, which prefill has."""
    return random.choice([FP32, FP16] if backend == "triton" and phase == "prefill" else DTYPES)


def a_dtype(random: Random) -> torch.dtype:
    return random.choice([torch.int32, torch.int64])


def some_slots(random: Random, pool: StatePool, batch: int) -> torch.Tensor:
    """Draw distinct slots, some rows padding; NaN may lie in slots that no row names."""
    padding = [row for row in range(batch) if random.random() < 0.2]
    indices = row_slots(batch, pool.slots, padding=padding, dtype=a_dtype(random), seed=random.getrandbits(32))
    indices[indices < 0] = random.choice(PADDINGS)
    if random.random() < 0.3:
        named = set(indices.tolist())
        pool.state[[slot for slot in range(pool.slots) if slot not in named]] = torch.nan
    return indices


def some_inputs(random: Random, pool: StatePool, indices, rows: int, tokens, io_dtype):
    """Draw (inputs, whether q and k are normalised by the call), and set the state that a hard kind starts from."""
    seed = random.getrandbits(32)
    kind = random.choice([None, *KINDS])
    options = {"tokens": tokens, "dtype": io_dtype, "seed": seed}
    if kind is None:
        inputs = make_inputs(pool.shape, rows, **options, strong_decay=random.random() < 0.5)
    else:
        inputs, state_std = hard_inputs(pool.shape, rows, **options)[kind]
        pool.state[indices[indices >= 0].long()] *= state_std
    if kind is None and random.random() < 0.3:
        limits = torch.tensor([-80.0, 0.0, 20.5, 80.0], dtype=io_dtype)
        for gate in (inputs.a, inputs.b):
            gate.copy_(limits[torch.randint(0, 4, gate.shape, generator=torch.Generator().manual_seed(seed))])
    if random.random() < 0.7:
        if kind is None and random.random() < 0.3:
            for x in (inputs.q, inputs.k):
                x.mul_(10.0 ** random.uniform(-6, 3 if io_dtype == FP16 else 12))
        return inputs, True
    for x in (inputs.q, inputs.k):  # the longest that keys may be for the state to stay bounded
        x.copy_(torch.nn.functional.normalize(x.float(), dim=-1))
    return inputs, False
