"""What each way costs: µs of a decode step at one batch, all ways timed against each other, each checked first."""

from functools import partial

import torch

from ... import reference
from ...backends.registry import VARIANTS
from ...bench import pools
from ...bench.roof import measure_roof
from ...bench.rows import Rows, common_fields, recorded, timing_fields
from ...bench.timers import time_interleaved
from ...costs import DECODE_BYTES_FORMULA, decode_bytes
from ...ops import make_inputs
from ...pool import StatePool
from ...tolerances import distance
from .ways import SHORTCUTS, Way, all_ways

TIMER = "cuda_graph_replay"
CHECKED_ROWS = 2
CALLS = 2  # of a replay, on slots of their own


def timed_ways(shape, device) -> list[Way]:
    """The ways whose step may take a time of its own: rounded gates save no bytes, eager PyTorch is no kernel. What
    defers its writes is timed over whole periods of its ring, by notebook 12."""
    found = [way for way in all_ways(device) if way.shortcut not in SHORTCUTS and VARIANTS[way.backend].role != "eager"]
    found = [way for way in found if not VARIANTS[way.backend].ring]
    return [way for way in found if way.refusal(shape, device) is None]


def cost_sweep(shape, batch: int, *, device, samples: int, model: str, tp: int, seed: int = 0, run=None) -> list[dict]:
    """Return a row for each way: µs of decode() of `batch` rows, on slots read from memory, as ROW_FIELDS says.

    Nothing is timed on a CPU. A wrong way is not timed. Every way's pool is filled with the same numbers.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return []
    found = Rows(run, {"batch": batch, "tokens": 1, "model": model, "tp": tp, "seed": seed})
    x = make_inputs(shape, batch, device=device, seed=seed)
    calls, checks = {}, {}
    with recorded(run), torch.no_grad():
        for way in timed_ways(shape, device):
            pool = _filled_pool(way, shape, CALLS * batch + 1, device, seed)
            sets = pools.slot_sets(pool.slots, batch, CALLS, device=device, seed=seed)
            out = torch.empty_like(x.v, memory_format=torch.contiguous_format)
            options = x.gates() | {"pool": pool, "out": out}
            each = [partial(way.decode, *x.arguments(), indices=indices, **options) for indices in sets]
            right, error, state_error = _checked(x, pool, sets[0], each[0], out)
            checks[way] = {"max_abs_error": error, "max_abs_error_state": state_error}
            if right:
                calls[way] = each
            else:
                found.add(_fields(way, shape) | checks[way] | {"status": "wrong"})
        roof = measure_roof(device)
        timings = time_interleaved(calls, timer=TIMER, device=device, samples=samples)
        for way, timing in timings.items():
            nbytes = decode_bytes(shape, batch, way.dtype)
            rates = timing_fields(timing, nbytes, DECODE_BYTES_FORMULA, roof, device, "cold")
            found.add(_fields(way, shape) | checks[way] | rates)
    return list(found)


def _fields(way: Way, shape) -> dict:
    return common_fields("decode", shape, way.dtype, way.io_dtype) | way.fields()


def _filled_pool(way: Way, shape, slots: int, device, seed: int) -> StatePool:
    """Make a way's pool of random state."""
    options = {"dtype": way.dtype, "device": device, "rounding": way.rounding, "seed": seed}
    pool = StatePool(shape, slots, **options)
    rng = torch.Generator(device).manual_seed(seed)
    for part in pool.state.split(pools.STATE_PART):
        part.normal_(0, pools.STATE_STD, generator=rng)
    return pool


def _checked(x, pool: StatePool, indices, call, out) -> tuple[bool, float | None, float | None]:
    """Run a call and compare its first rows with the float64 reference: right or not, largest errors of o and state."""
    few = slice(0, CHECKED_ROWS)
    start = pool.read(indices[few])
    call()
    o, state = reference.decode(*(part[few] for part in x.arguments()), **x.gates(), state=start)
    right, error = distance(out[few].cpu(), o, out.dtype)
    right_state, state_error = distance(pool.read(indices[few]).cpu(), state, pool.dtype)
    return right and right_state, error, state_error
