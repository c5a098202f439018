"""Run one small call of every kernel that this machine can run, and check it: what `make sanitize` watches.

    gdn-lab smoke [group ...]      all groups unless named; --list prints them

A group is a backend with kernels; "step": whole decode steps of a toy model, in configurations that launch the kernels
around GDN apart and fused, and the projections' kernel by itself; or "server": smoke_server.py.

A call has two rows, one of them padding where the phase allows it, so that compute-sanitizer, which slows kernels a
hundredfold, finishes in minutes. A state of bf16, or what else a variant takes, and for decode by a backend's first
variant float32 too. A variant that defers its writes makes as many steps of ten rows as fill each ring, which it then
writes. Prints where it runs, then a line for each call; exits with 1 if one fails or differs from the reference.
"""

from functools import partial

import torch

from .. import ops, reference
from ..backends.base import dtype_name
from ..backends.registry import BACKENDS, VARIANTS, backends, refusal
from ..bench.environment import environment
from ..e4m3 import draft_dtype
from ..layer import Step, StepWeights
from ..layer.fp8 import dequantize, dequantize_rows, quantize_rows, random_weight
from ..models import GDNShape
from ..names import LIBRARIES
from ..pool import StatePool
from ..rounding import FP8
from ..tolerances import FP8_STATE
from . import smoke_server
from .errors import UsageError

SHAPE = GDNShape(1, 2)
ROWS, RING_ROWS = 2, 10  # of a call; with a ring more than change places among themselves
TOKENS = 5  # of a verify call: more than triton's recurrent kernel takes for a bf16 state
LENGTHS = (70, 5)  # of the sequences of a prefill call: more than one chunk, and less than one
STEPS = {  # configurations and models: with experts, and dense
    "cuda": (("before", "qwen3.5-397b-a17b"), ("best", "qwen3.5-397b-a17b"), ("best", "qwen3.5-27b")),
    "cpu": (("torch", "qwen3.5-397b-a17b"), ("torch", "qwen3.5-27b")),
}
LARGEST_ERROR = 0.05  # coarse on purpose: this looks for memory errors, the tests for wrong arithmetic
VERIFY_FLAGS = {  # update_state, with intermediate states
    "update": (True, False),
    "intermediate": (False, True),
    "output": (False, False),
}


def groups() -> list[str]:
    """Return the names of the groups: backends that are installed and launch kernels, "step" and "server"."""
    launching = [r.name for r in backends() if r.installed and any(v.role != "eager" for v in r.variants)]
    return [*launching, "step", "server"]


def calls(names=()):
    """Yield (what, function) for each variant, phase and mode that can serve here, and for the steps.

    The function returns whether the result is right, and the largest error.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield from _backend_calls(names, device)
    if not names or "step" in names:
        yield from _step_calls(device)
    if not names or "server" in names:
        yield from smoke_server.calls(device)


def _backend_calls(names, device):
    for backend in BACKENDS.values():
        if names and backend.name not in names:
            continue
        for variant in backend.variants:
            for phase in variant.phases:
                dtypes = [dtype for dtype in (torch.bfloat16, torch.float32) if dtype in variant.state_dtypes]
                both = phase == "decode" and variant is backend.variants[0]
                for dtype in (dtypes if both else dtypes[:1]) or variant.state_dtypes[:1]:
                    yield from _variant_calls(variant, phase, dtype, device)
            if "decode" in variant.stochastic and torch.bfloat16 in variant.state_dtypes:
                yield from _variant_calls(variant, "decode", torch.bfloat16, device, "stochastic")


def _variant_calls(variant, phase, dtype, device, rounding=None):
    slots = (RING_ROWS if variant.ring else ROWS) + 2
    pool = partial(StatePool, SHAPE, slots, layout=variant.layout, dtype=dtype, device=device, rounding=rounding)
    for mode, call in PHASES[phase]:
        what = " ".join(filter(None, (phase, mode, variant.full_name, dtype_name(dtype), rounding)))
        options = dict(layout=variant.layout, dtype=dtype, device=device, phase=phase, mode=mode)
        options["stochastic"] = rounding is not None
        if reason := refusal(variant.full_name, SHAPE, **options):
            print(f"{what}: {reason}", flush=True)
            continue
        yield what, partial(call, pool, variant.full_name)


def _step_calls(device):
    for name, model in STEPS[device.type]:
        weights = StepWeights.random(model, 8, toy=True, device=device)
        if reason := Step.refusal(name, weights):
            print(f"step {name} {model}: {reason}", flush=True)
            continue
        yield f"step {name} {model}", partial(_step, weights, name)
    for precision in ("fp8", "bf16") if device.type == "cuda" else ():
        yield f"linear {precision}", partial(_linear, precision, device)


def _step(weights, name):
    found = Step(weights, name, 3).check()
    errors = found.max_abs_error, found.max_abs_error_state
    return found.right, max(float("inf") if error is None else error for error in errors)


def _linear(precision, device):
    """Multiply few rows by a weight with many columns, so that programs share a tile's sum."""
    from ..layer.kernels.projections import linear

    weight = random_weight(256, 2048, precision=precision, device=device)
    x = torch.randn(3, 2048, device=device)
    rows = quantize_rows(x) if precision == "fp8" else (x.bfloat16(), None)
    given = dequantize_rows(*rows) if precision == "fp8" else rows[0]
    out = linear(*rows, weight, torch.empty(3, 256, dtype=torch.bfloat16, device=device))
    error = (out.double() - given.double() @ dequantize(weight, torch.float64).T).abs().max().item()
    return error <= LARGEST_ERROR, error


def _decode(make_pool, backend):
    """One step; with a ring one of half the rows, so that its slots fill at two times, and until all have been written.

    Then what is pending is written.
    """
    ring = VARIANTS[backend].ring
    pool, every = _filled(make_pool, padding=True, rows=RING_ROWS if ring else ROWS)
    pool.reserve_ring(ring)
    found = [_step_of(pool, every[: len(every) // 2], backend, seed=0)] if ring else []
    found += [_step_of(pool, every, backend, seed=step) for step in range(1, ring + 2)]
    live = every[:-1]
    before = pool.read(live)
    pool.settle(live)
    found.append(_error(before, before, pool, live, before))
    return all(right for right, _ in found), max(error for _, error in found)


def _step_of(pool, indices, backend, seed):
    x = ops.make_inputs(SHAPE, len(indices), device=pool.device, seed=seed)
    live = [row for row, slot in enumerate(indices.tolist()) if slot >= 0]
    expected, state = reference.decode(*x.arguments(), **x.gates(), state=pool.read(indices))
    o = ops.decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend=backend)
    return _error(o[live], expected[live], pool, indices[live], state[live])


def _verify(update_state, keeps, make_pool, backend):
    pool, indices = _filled(make_pool, padding=True)
    x = ops.make_inputs(SHAPE, 2, tokens=TOKENS, device=pool.device)
    before = pool.read(indices)
    expected, states = reference.verify(*x.arguments(), **x.gates(), state=before)
    dtype = draft_dtype(pool.dtype)
    buffer = torch.empty(2, TOKENS, *pool.state.shape[1:], dtype=dtype, device=pool.device) if keeps else None
    o = ops.verify(
        *x.arguments(),
        **x.gates(),
        pool=pool,
        indices=indices,
        backend=backend,
        intermediate_states=buffer,
        update_state=update_state,
    )
    after = states[:1, -1] if update_state else before[:1]
    if keeps:
        kept = buffer.transpose(-1, -2) if pool.layout == "KV" else buffer
        o = torch.cat([o.flatten(1), kept.flatten(1)], 1)
        expected = torch.cat([expected.flatten(1), states.flatten(1)], 1)
        inputs = torch.ones(2, SHAPE.conv_dim, TOKENS, dtype=pool.conv.dtype, device=pool.device)
        pool.commit(indices, torch.full_like(indices, 2), intermediate_states=buffer, draft_inputs=inputs)
        after = states[:1, 1]
    return _error(o[:1], expected[:1], pool, indices[:1], after)


def _prefill(make_pool, backend):
    pool, indices = _filled(make_pool, padding=False)
    x = ops.make_inputs(SHAPE, sum(LENGTHS), device=pool.device)
    bounds = torch.tensor([0, LENGTHS[0], sum(LENGTHS)], dtype=torch.int32, device=pool.device)
    options = dict(**x.gates(), cu_seqlens=bounds)
    expected, state = reference.prefill(*x.arguments(), **options, state=pool.read(indices))
    o = ops.prefill(*x.arguments(), **options, pool=pool, indices=indices, backend=backend)
    return _error(o, expected, pool, indices, state)


PHASES = {
    "decode": [(None, _decode)],
    "verify": [(mode, partial(_verify, *flags)) for mode, flags in VERIFY_FLAGS.items()],
    "prefill": [(None, _prefill)],
}


def _filled(make_pool, padding: bool, rows: int = ROWS):
    """Return a pool of random state and the slots of `rows` rows, the last of them padding if asked."""
    pool = make_pool()
    slots = torch.arange(1, pool.slots, device=pool.device)
    shape = len(slots), SHAPE.num_v_heads, SHAPE.head_v_dim, SHAPE.head_k_dim
    pool.write(slots, 0.3 * torch.randn(shape, device=pool.device))
    indices = slots.flip(0)[:rows].int()
    if padding:
        indices[-1] = -1
    return pool, indices


def _error(o, expected, pool, indices, state) -> tuple[bool, float]:
    """Return whether the largest error of output and state is small, and that error."""
    of_output, of_state = ((o.cpu() - expected.cpu()).abs().max(), (pool.read(indices).cpu() - state.cpu()).abs().max())
    rounding = FP8_STATE * state.abs().max().item() if pool.dtype is FP8 else 0.0
    right = of_output <= LARGEST_ERROR and of_state <= LARGEST_ERROR + rounding  # NaN is not
    return bool(right), max(of_output.item(), of_state.item())


def where() -> str:
    """Return GPU, driver, versions and commit in one line, for the head of a log."""
    facts = environment()
    versions = [f"{name} {facts[name]}" for name in ("driver", *LIBRARIES) if facts[name]]
    commit = []
    if facts["git_commit"]:
        commit = [f"commit {facts['git_commit'][:10]}{' with changes' if facts['git_dirty'] else ''}"]
    return ", ".join([facts["gpu_name"] or facts["cpu"], *versions, *commit, facts["utc"]])


def add_arguments(parser) -> None:
    """Add the command's arguments to an argparse parser."""
    parser.add_argument("groups", nargs="*", help="backends, step or server; all unless named")
    parser.add_argument("--list", action="store_true", help="print the groups, one a line, and run nothing")


def run(arguments) -> int:
    """Run the calls of the named groups; 1 if one of them fails or is wrong."""
    if arguments.list:
        print("\n".join(groups()))
        return 0
    if unknown := [name for name in arguments.groups if name not in (*BACKENDS, "step", "server")]:
        raise UsageError(f"group: {', '.join(unknown)} unknown; choose some of {', '.join(BACKENDS)}, step, server")
    print(f"Every kernel once, small: {where()}", flush=True)
    wrong = 0
    for what, call in calls(arguments.groups):
        try:
            right, error = call()
        except Exception as error:  # each library fails in its own way; the other calls still run
            print(f"{what}: FAILED, {type(error).__name__}: {error}", flush=True)
            wrong += 1
            continue
        wrong += not right
        print(f"{what}: {'right' if right else 'WRONG'}, largest error {error:.1e}", flush=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1 if wrong else 0
