"""One small call of every kernel that this machine can run, held against the oracle: what `make sanitize` watches.

    python -m gdn_lab.smoke [backend ...]

Two rows on a pool of four slots, one of them padding where the phase allows it, so that compute-sanitizer, which slows
kernels a hundredfold, is through in minutes. Decode with bf16 and float32 state, where kernels differ by more than a
conversion; the other phases with bf16. Prints where it runs, then a line a call, and exits 1 if one fails or is not the
oracle's.
"""

import sys
from functools import partial

import torch

from . import ops, reference
from .backends.base import dtype_name
from .backends.registry import BACKENDS, refusal
from .measure import environment
from .pool import StatePool
from .shapes import GDNShape

SHAPE = GDNShape(1, 2)
TOKENS = 3  # of a verify step
LENGTHS = (70, 5)  # of the sequences of a prefill: more than one chunk, and less than one
DTYPES = {"decode": (torch.bfloat16, torch.float32), "verify": (torch.bfloat16,), "prefill": (torch.bfloat16,)}
LARGEST_ERROR = 0.05  # coarse on purpose: this looks for wrong memory, the tests for wrong arithmetic
VERIFY_MODES = {
    "update": (True, False), "intermediate": (False, True), "output": (False, False)
}  # update_state, with intermediate states  # fmt: skip


def calls(names=()):
    """(what, function that returns the largest error) of each variant, phase and mode that can serve here."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for backend in BACKENDS.values():
        if names and backend.name not in names:
            continue
        for variant in backend.variants:
            for phase in variant.phases:
                name = f"{backend.name}/{variant.name}"
                for dtype in [dtype for dtype in DTYPES[phase] if dtype in variant.state_dtypes]:
                    reason = refusal(name, SHAPE, layout=variant.layout, dtype=dtype, device=device, phase=phase)
                    if reason:
                        print(f"{phase} {name} {dtype_name(dtype)}: {reason}", flush=True)
                        continue
                    pool = partial(StatePool, SHAPE, 4, layout=variant.layout, dtype=dtype, device=device)
                    for mode, call in PHASES[phase]:
                        what = " ".join(filter(None, (phase, mode, name, dtype_name(dtype))))
                        yield what, partial(call, pool, name)


def _decode(make_pool, backend):
    pool, indices = _filled(make_pool, padding=True)
    x = ops.make_inputs(SHAPE, 2, device=pool.device)
    expected, state = reference.decode(*x.arguments(), **x.gates(), state=pool.read(indices))
    o = ops.decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend=backend)
    return _error(o[:1], expected[:1], pool, indices[:1], state[:1])


def _verify(update_state, keeps, make_pool, backend):
    pool, indices = _filled(make_pool, padding=True)
    x = ops.make_inputs(SHAPE, 2, tokens=TOKENS, device=pool.device)
    before = pool.read(indices)
    expected, states = reference.verify(*x.arguments(), **x.gates(), state=before)
    buffer = torch.empty(2, TOKENS, *pool.state.shape[1:], dtype=pool.dtype, device=pool.device) if keeps else None
    o = ops.verify(
        *x.arguments(), **x.gates(), pool=pool, indices=indices, backend=backend,
        intermediate_states=buffer, update_state=update_state,
    )  # fmt: skip
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
    "verify": [(mode, partial(_verify, *flags)) for mode, flags in VERIFY_MODES.items()],
    "prefill": [(None, _prefill)],
}


def _filled(make_pool, padding: bool):
    """A pool of random state and the slots of two rows, the second of them padding if asked."""
    pool = make_pool()
    pool.state.normal_(0, 0.3)
    return pool, torch.tensor([3, -1 if padding else 1], dtype=torch.int32, device=pool.device)


def _error(o, expected, pool, indices, state) -> float:
    """The largest error of output and state; infinity if something is not finite."""
    errors = torch.cat([(o.cpu() - expected.cpu()).flatten(), (pool.read(indices).cpu() - state.cpu()).flatten()]).abs()
    return errors.max().item() if torch.isfinite(errors).all() else float("inf")


def where() -> str:
    """GPU, driver, versions and commit, so that a log says what it is of."""
    facts = environment()
    said = [facts["gpu_name"] or facts["cpu"]]
    said += [
        f"{name} {facts[name]}" for name in ("driver", "torch", "triton", "flashinfer", "cutlass_dsl") if facts[name]
    ]
    if facts["git_commit"]:
        said.append(f"commit {facts['git_commit'][:10]}{' with changes' if facts['git_dirty'] else ''}")
    return ", ".join([*said, facts["utc"]])


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BACKENDS]
    if unknown:
        print(f"backend: {', '.join(unknown)} unknown; choose some of {', '.join(BACKENDS)}", file=sys.stderr)
        return 2
    print(f"Every kernel once, small: {where()}", flush=True)
    wrong = 0
    for what, call in calls(names):
        try:
            error = call()
        except Exception as error:  # each library fails in its own way; the others are looked at all the same
            print(f"{what}: FAILED, {type(error).__name__}: {error}", flush=True)
            wrong += 1
            continue
        verdict = "right" if error <= LARGEST_ERROR else "WRONG"
        wrong += verdict == "WRONG"
        print(f"{what}: {verdict}, largest error {error:.1e}", flush=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
