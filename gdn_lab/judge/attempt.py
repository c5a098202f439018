"""One call of a kernel, compared with the float64 reference; what else it may not do is checked of every call, too."""

import torch

from .. import reference
from ..bench.call_checks import changed_slots
from ..tolerances import ARITHMETIC, CORRECTIONS, LAST_PLACE, ROUNDING, allowed, fp8_step_allowed
from .making import GUARD, Made, same_bits
from .trials import Trial

NAMES = ("q", "k", "v", "a", "b", "indices", "A_log", "dt_bias")
STRICT, CUTS = ROUNDING, ROUNDING | {torch.bfloat16: LAST_PLACE[torch.bfloat16]}  # Triton's interpreter cuts to bf16


class Wrong(Exception):
    """A kernel did what it must not. One sentence: what was seen, and what was expected.

    row: of the live rows, the one that is wrong most, None where no row is.
    """

    row: int | None = None


class Refused(Exception):
    """A check cannot be made here, or the kernel says that it does not do this. One sentence."""


def attempt(candidate, trial: Trial) -> float:
    """Make a trial's call and judge it; return the largest error as a share of what is allowed.

    Wrong, with the trial, if something is not as it must be.
    """
    trial = candidate.suited(trial)
    made = candidate.make(trial)
    before = kept(made)
    try:
        return judge(candidate, made, before, *taken(made, candidate.run(made)))
    except Wrong as error:
        raise with_row(Wrong(f"{error} ({trial})"), error.row) from None


def kept(made: Made) -> dict:
    """Return copies of what a call may not change, in the order of the current stream and without waiting for it."""
    tensors = (*made.arguments, made.indices, made.inputs.A_log, made.inputs.dt_bias)
    copies = {name: x.clone() for name, x in zip(NAMES, tensors, strict=True)}
    folds = made.pool.folds(made.live_slots)
    scales = None if made.pool.scales is None else made.pool.scales.clone()
    return copies | {
        "memory": made.memory.clone(),
        "conv": made.pool.conv.clone(),
        "scales": scales,
        "folds": folds,
    }


def taken(made: Made, out) -> tuple:
    """Return the output and copies of it and of the states at once, in the order of the current stream.

    What a kernel writes later, from another stream or thread, is not in the copies.
    """
    return out, out.clone(), states_of(made)


def states_of(made: Made) -> torch.Tensor:
    """Copy the states of the live rows, [n, HV, V, K]; of a pool with a ring with what is pending, float32."""
    pool, indices = made.pool, made.live_slots
    if pool.ring:
        return pool.read(indices)
    states = pool.state[indices.long()].clone()
    return states if pool.layout == "VK" else states.transpose(-1, -2)


def judge(candidate, made: Made, before: dict, out, out_then, states_then) -> float:
    """Raise Wrong unless a call has done what it must, and nothing else; return the largest share of near()."""
    trial, live = made.trial, made.live
    rows = [x[live] for x in (before[name] for name in NAMES[:5])]
    gates = {"A_log": before["A_log"], "dt_bias": before["dt_bias"]}
    options = {"scale": trial.scale, "use_qk_l2norm": trial.l2norm, "device": candidate.device}
    o, states = reference.decode(*rows, **gates, state=made.old, **options)
    rounding = CUTS if candidate.cuts else STRICT
    share = 0.0
    if live:
        of_output, of_state, dtype = slack(candidate, made, before["folds"], states)
        share = near("the output", out_then[live], o, trial.io_dtype, rounding, more=of_output)
        share = max(share, near("the state", states_then, states, dtype, rounding, more=of_state))
    _check_the_rest(made, before, out, out_then, states_then)
    return share


def slack(candidate, made: Made, folded: torch.Tensor, states: torch.Tensor) -> tuple:
    """Return how much more the output and the state may be off, and the dtype that the state is rounded to.

    A ring rounds its u: relative to the largest element of the state. An FP8 state is read with FP8 sums, off relative
    to its longest row, and rounded in the rows of which `folded`, a bool [n], says so.
    """
    trial = made.trial
    if not made.pool.ring:
        return 0.0, 0.0, trial.state_dtype
    of_ring = CORRECTIONS[trial.state_dtype] * states.abs().max()
    if made.pool.scales is None:
        return 0.0, of_ring, trial.state_dtype
    of_read, of_state = fp8_step_allowed(made.old, states, folded)
    if candidate.cuts:
        of_state = of_state + of_ring  # the interpreter cuts u to bf16
    scale = trial.shape.scale if trial.scale is None else trial.scale
    return 2 * abs(scale) * of_read, of_state, torch.float32


def _check_the_rest(made: Made, before: dict, out, out_then, states_then) -> None:
    """Raise Wrong where something has changed that a call must leave, or has changed since it returned."""
    changed = changed_slots(before["memory"], made.memory, made.indices)
    if made.pool.scales is not None:
        changed = sorted({*changed, *changed_scales(before["scales"], made)})
    if changed:
        raise Wrong(f"{_slots(changed, made.pool.slots)} changed, which no row names")
    if not same_bits(made.pool.conv, before["conv"]):
        raise Wrong("the convolution windows changed")
    tensors = (*made.arguments, made.indices, made.inputs.A_log, made.inputs.dt_bias)
    for name, x in zip(NAMES, tensors, strict=True):
        if not same_bits(x, before[name]) and not (name == "v" and made.trial.out == "v"):
            raise Wrong(f"the argument {name} changed")
    if made.out_memory is not None:
        guards = torch.cat([made.out_memory[:GUARD], made.out_memory[-GUARD:]])
        if not bool((guards == guards[0]).all()) or guards[0] != -7.75:
            raise Wrong("memory next to `out` changed")
    check_not_late(made, out, out_then, states_then)


def changed_scales(before: torch.Tensor, made: Made) -> list[int]:
    """Return the slots that no row names and whose scales differ in some bit from those before the call."""
    differs = (before.view(torch.int32) != made.pool.scales.view(torch.int32)).flatten(1).any(1).tolist()
    named = {0, *made.indices.tolist()}
    return [slot for slot, changed in enumerate(differs) if changed and slot not in named]


def check_not_late(made: Made, out, out_then, states_then) -> None:
    """Raise Wrong if the output or a state has changed since the call returned."""
    if not same_bits(out[made.live], out_then[made.live]) or not same_bits(states_of(made), states_then):
        raise Wrong("the output or the state changed after the call had returned")


def near(what: str, actual, expected, dtype, rounding=STRICT, more=0.0) -> float:
    """Raise Wrong unless every element is near enough to the reference, which is float64.

    more: allowed besides, a number or one for each element. Returns the largest error as a share of what is allowed.
    """
    actual = actual.detach().to(expected.device, torch.float64)
    if not bool(torch.isfinite(expected).all()):
        raise AssertionError(f"{what}: the reference is not finite, so nothing can be judged by it")
    most = allowed(expected, dtype, ARITHMETIC, rounding) + more
    error = (actual - expected).abs()
    wrong = ~(error <= most)  # NaN is wrong
    if not bool(wrong.any()):
        return float((error / most.clamp_min(torch.finfo(torch.float64).tiny)).max())
    worst = int((error - most).nan_to_num(nan=torch.inf).argmax())
    at = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
    sentence = (
        f"{what} is wrong in {int(wrong.sum()):,} of {wrong.numel():,} elements, worst at {list(at)} of the live rows: "
        f"{actual[at]:.6g}, expected {expected[at]:.6g} within {most[at]:.2g}"
    )
    raise with_row(Wrong(sentence), at[0])


def with_row(error: Wrong, row: int | None) -> Wrong:
    """Return the error with the row that it is about."""
    error.row = row
    return error


def _slots(changed: list[int], slots: int) -> str:
    """Name slots that changed, and the memory around the pool."""
    names = {-1: "the memory before slot 0", slots: "the memory behind the last slot"}
    inside = [str(slot) for slot in changed if slot not in names]
    found = [f"slot{'s' * (len(inside) > 1)} {', '.join(inside)}"] if inside else []
    return " and ".join(found + [names[slot] for slot in changed if slot in names])
