"""Checks of a decode kernel that need no GPU, each a function of a Candidate that returns what it did, or raises.

Wrong: the kernel is not right. Refused: it cannot be told here. Each call is checked whole (attempt.py), so a fault
shows in every line that meets it. A check of random calls makes as many as its time allows, from LEAST to MOST. In
Triton's interpreter, which takes seconds for a call, every check makes as many as its time allows.
"""

import dataclasses
import threading
import time

import torch

from .. import reference
from ..hard_inputs import KINDS
from .attempt import CUTS, STRICT, Refused, Wrong, attempt, check_not_late, judge, kept, near, taken
from .candidate import Candidate
from .far_memory import far_pool
from .making import make, same_bits, spoil
from .trials import LIMITS, PADDINGS, SCALES, STRIDES, drawn, random_of

LEAST, MOST = 3, 60
LATE_S = 0.1  # after which a call must have finished writing
STEPS = 8
BATCHES = (1, 8, 17, 33, 65, 130)


def spread(candidate: Candidate, trials, seconds: float, least: int = LEAST) -> str:
    """Attempt trials until the time is used up, but at least some; return how many."""
    began, done, refused = time.monotonic(), 0, None
    for trial in trials:
        if done >= least and time.monotonic() - began > seconds:
            break
        try:
            attempt(candidate, trial)
            done += 1
        except Refused as reason:
            refused = reason
    if refused and not done:
        raise refused
    return f"{done} call{'s' * (done != 1)}" + (f"; refused: {refused}" if refused else "")


def whole(candidate: Candidate, trials: list, seconds: float) -> str:
    """Attempt all trials, or in Triton's interpreter as many as the time allows; return how many."""
    if not candidate.cuts:
        return spread(candidate, trials, float("inf"))
    done = spread(candidate, trials, seconds, least=1)
    return done if done.startswith(f"{len(trials)} ") else f"{done} of {len(trials)}, as the interpreter is slow"


def against_the_reference(candidate: Candidate, seconds: float) -> str:
    """Random inputs and states, over all shapes and dtypes."""

    def trials():
        for number in range(MOST):
            random = random_of(candidate.seed, number)
            call = random.choice(candidate.calls)
            yield candidate.usual(**_of(call), batch=random.randint(1, 6), seed=random.getrandbits(31))

    return spread(candidate, trials(), seconds)


def shapes_and_dtypes(candidate: Candidate, seconds: float) -> str:
    """Each shape, and each dtype of state, of inputs and of indices."""
    return whole(candidate, [candidate.usual(**_of(call)) for call in candidate.covering], seconds)


def hard_inputs(candidate: Candidate, seconds: float) -> str:
    """Every kind of hard inputs; of several that are wrong, all are named."""
    wrong, first = [], None
    for kind in KINDS:
        try:
            attempt(candidate, candidate.usual(kind=kind, batch=candidate.rows(4)))
        except Wrong as error:
            wrong, first = [*wrong, kind], first or error
    if wrong:
        raise Wrong(f"wrong on {', '.join(wrong)}: {first}")
    return ", ".join(KINDS)


def gate_limits(candidate: Candidate, seconds: float) -> str:
    """Gates at their limits: beta of 0 and 1, softplus far below, near and far above its threshold."""
    return whole(candidate, [candidate.usual(kind=LIMITS, batch=5, seed=candidate.seed + n) for n in range(3)], seconds)


def norms_and_scales(candidate: Candidate, seconds: float) -> str:
    """Keys from 1e-6 to 1e10 times their size, the epsilon of the norm, no norm, and other scales."""
    largest = 3 if candidate.usual().io_dtype == torch.float16 else 10
    trials = [candidate.usual(magnitude=10.0**power) for power in (-6, -4, -3, -2, largest)]
    trials += [candidate.usual(scale=scale) for scale in SCALES[1:]]
    trials += [candidate.usual(l2norm=False), candidate.usual(l2norm=False, scale=1.0)]
    return whole(candidate, trials, seconds)


def new_requests(candidate: Candidate, seconds: float) -> str:
    """A state of zeros, as a new request has, and a large one."""
    return whole(candidate, [candidate.usual(state_std=std, strong_decay=False) for std in (0.0, 1e-3, 30.0)], seconds)


def padding(candidate: Candidate, seconds: float) -> str:
    """Padding rows of every index that means padding, at every place, and nothing but padding."""
    rows = [(1,), (0,), (3,), (0, 2, 3), (0, 1, 2, 3)]
    trials = [candidate.usual(batch=4, padding=p, padding_value=value) for value in PADDINGS for p in rows]
    return spread(candidate, sorted(trials, key=lambda trial: rows.index(trial.padding)), seconds)


def other_slots(candidate: Candidate, seconds: float) -> str:
    """Slots that no row names, the memory around the pool and around `out`, and all arguments: bit for bit."""
    return whole(
        candidate, [candidate.usual(batch=b, spare=spare) for b, spare in ((1, 0), (1, 12), (7, 1), (5, 5))], seconds
    )


def nan_elsewhere(candidate: Candidate, seconds: float) -> str:
    """NaN in slots that no row names, and in one row of the call: the others are the same bit for bit."""
    trials = [candidate.usual(poison=True, padding=p, batch=4) for p in ((), (1,))]
    done = whole(candidate, trials, seconds)
    trial = candidate.usual(batch=candidate.rows(5), padding=(1,))
    clean = _outcome(candidate, candidate.make(trial))
    for spoilt in (0,) if candidate.cuts else (0, 1, 4):
        made = candidate.make(trial)
        for x in made.arguments:
            x[spoilt] = torch.nan
        if spoilt not in trial.padding:
            spoil(made.pool, made.indices[spoilt].long())
        dirty = _outcome(candidate, made)
        others = [n for n, row in enumerate(made.live) if row != spoilt]
        if not all(same_bits(x[others], y[others]) for x, y in zip(clean, dirty, strict=True)):
            what = "padding row" if spoilt in trial.padding else "row"
            raise Wrong(f"NaN in {what} {spoilt} changed another row's output or state ({trial})")
    return f"{done}, and NaN in one row"


def strides(candidate: Candidate, seconds: float) -> str:
    """q, k, v, a and b as views of packed tensors, contiguous, wide apart, and beginning at an odd element."""
    return whole(candidate, [candidate.usual(strides=kind, batch=b) for b in (3, 1) for kind in STRIDES], seconds)


def large_batches(candidate: Candidate, seconds: float) -> str:
    """Batches that are no multiple of a tile, up to 130 rows."""
    smallest = min(candidate.calls, key=lambda call: call[0].num_v_heads * call[0].head_v_dim)
    sizes = BATCHES[:1] if candidate.cuts else BATCHES
    return whole(candidate, [candidate.usual(**_of(smallest), batch=batch) for batch in sizes], seconds)


def large_offsets(candidate: Candidate, seconds: float) -> str:
    """Slots whose first element lies beyond 2^31 and 2^32 elements. On a CPU the memory in between is never touched."""
    if candidate.cuts:
        raise Refused("Triton's interpreter copies the whole pool")
    smallest = min(candidate.calls, key=lambda call: call[0].state_elements * call[1].itemsize)
    with far_pool(candidate, smallest) as (made, slots):
        out, out_then, states_then = taken(made, candidate.run(made))
        rows, trial = [x[made.live] for x in made.arguments], made.trial
        o, states = reference.decode(*rows, **made.inputs.gates(), state=made.old)
        rounding = CUTS if candidate.cuts else STRICT
        near("the output", out_then, o, trial.io_dtype, rounding)
        near("the state", states_then, states, trial.state_dtype, rounding)
        return f"slots {', '.join(f'{slot:,}' for slot in slots)}"


def steps_in_a_row(candidate: Candidate, seconds: float) -> str:
    """STEPS calls with the same tensors, whose values change: inputs, indices, and now and then the states.

    A kernel that keeps an output, an index or a state by its pointer, or writes a state one call late, is wrong here.
    """
    made = candidate.make(candidate.usual(batch=candidate.rows(4), strong_decay=False))
    steps = 4 if candidate.cuts else STEPS
    for step in range(steps):
        if step not in (2, 6):  # the same inputs once more: only the state has changed
            fresh = make(dataclasses.replace(made.trial, seed=candidate.seed + 100 + step), made.pool.layout, "cpu")
            for x, new in zip(made.arguments, fresh.arguments, strict=True):
                x.copy_(new)
        if step in (1, 5):
            made.indices.copy_(made.indices.roll(1))
        if step == 3:  # the slots go to other requests
            made.pool.write(made.indices, fresh.old.to(made.pool.device))
        made.old = made.pool.read(made.indices)
        before = kept(made)
        try:
            judge(candidate, made, before, *taken(made, candidate.run(made)))
        except Wrong as error:
            raise Wrong(f"in step {step} of calls with the same tensors and new values: {error}") from None
    return f"{steps} steps"


def output(candidate: Candidate, seconds: float) -> str:
    """`out` that holds NaN, infinity, zeros or numbers before, that the call allocates, or that is v itself."""
    trials = [candidate.usual(out=value, batch=4) for value in ("nan", "inf", "0", "3e4", "allocated", "v")]
    return whole(candidate, trials, seconds)


def late_writes(candidate: Candidate, seconds: float) -> str:
    """Nothing is written after the call has returned, and no thread is left that could."""
    threads = threading.active_count()
    made = candidate.make(candidate.usual())
    before = kept(made)
    out, out_then, states_then = taken(made, candidate.run(made))
    time.sleep(LATE_S)
    judge(candidate, made, before, out, out_then, states_then)
    if candidate.device.type == "cuda":
        torch.cuda.synchronize(candidate.device)
    check_not_late(made, out, out_then, states_then)
    if threading.active_count() > threads:
        raise Wrong(f"the call left {threading.active_count() - threads} more threads running")
    return f"nothing within {LATE_S * 1e3:.0f} ms"


def determinism(candidate: Candidate, seconds: float) -> str:
    """The same call from the same state gives the same bits."""
    trial = candidate.usual(batch=candidate.rows(8))
    first = _outcome(candidate, candidate.make(trial))
    times = 2 if candidate.cuts else 10
    for _ in range(times):
        again = _outcome(candidate, candidate.make(trial))
        if not all(same_bits(x, y) for x, y in zip(first, again, strict=True)):
            raise Wrong(f"the same call gave other bits ({trial})")
    return f"{times} times the same bits"


def random_calls(candidate: Candidate, seconds: float) -> str:
    """Random calls in which everything may be special at once; `gdn-lab check --seconds 600` makes more of them."""
    most = 3 if candidate.cuts else 9
    trials = (drawn(random_of(candidate.seed, n), candidate.calls, most_rows=most) for n in range(MOST))
    return spread(candidate, trials, seconds)


def _outcome(candidate: Candidate, made) -> tuple:
    """Make a call; return the output and the states of its live rows."""
    _, out, states = taken(made, candidate.run(made))
    return out[made.live], states


def _of(call) -> dict:
    return dict(zip(("shape", "state_dtype", "io_dtype", "index_dtype"), call, strict=True))
