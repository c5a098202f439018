"""Sweep of verify(): each variant in each mode that it can serve, checked, timed against the others, checked again.

StatePool.commit(), without which the mode "intermediate" is half a step, is timed with them as `pool/commit`.
"""

from functools import partial

import torch

from ... import ops, reference
from ...bench.cases import Case, Point, SweepOptions, cases_of, checked_batches, checked_names
from ...bench.pools import STATE_STD, pool_slots
from ...bench.sweep import Part, Sweep
from ...costs import COMMIT_BYTES_FORMULA, VERIFY_BYTES_FORMULA, commit_bytes, verify_bytes
from ...hard_inputs import in_one_call, split_kinds
from ...models import GDNShape
from ...tolerances import Check, distance, worse

MODES = tuple(VERIFY_BYTES_FORMULA)
COMMIT = "commit"
CHECKED_ROWS = 8  # of a call, spread over it: the reference has a state for each row and token


def verify_sweep(shape: GDNShape, batches, tokens, *, modes=MODES, slots: int | None = None, **options) -> list[dict]:
    """Time verify() at each batch size and each number of draft tokens T; slots, options, rows, errors as decode_sweep.

    tokens: numbers of draft tokens, 2 to 16. modes: of MODES. Rows also have `tokens` and `mode`; the mode of
    pool/commit is "commit", in which every row accepts all T tokens. Of each call CHECKED_ROWS rows are compared with
    the reference: their output, and the states after each token or the new state.
    """
    options = SweepOptions(**options)
    batches, tokens, (fewest, most) = checked_batches(batches), list(tokens), ops.DRAFT_TOKENS
    if not tokens or any(type(t) is not int or not fewest <= t <= most for t in tokens):
        raise ValueError(f"tokens: expected numbers from {fewest} to {most}, got {tokens}")
    cases, refused = cases_of("verify", checked_names("modes", modes, MODES), shape, options)
    if any(case.mode == "intermediate" for case in cases):
        cases.append(Case("pool", "commit", cases[0].layout, mode=COMMIT))
    slots = pool_slots(slots, shape, options.dtype, max(batches), cases, options.device)
    sweep = VerifySweep(shape, cases, refused, options, slots)
    return sweep.run([[Point(batch, count)] for batch in batches for count in tokens])


class VerifySweep(Sweep):
    """verify() with T tokens a row, in modes."""

    phase = "verify"
    call_rows = CHECKED_ROWS

    def prepare(self, point: Point) -> None:
        self.reserve(point)

    def reserve(self, point: Point) -> None:
        for pool in self.pools.values():
            pool.reserve_drafts(point.batch, point.tokens)

    def inputs(self, point: Point) -> ops.DecodeInputs:
        options = {"tokens": point.tokens, "device": self.device, "dtype": self.io_dtype}
        return ops.make_inputs(self.shape, point.batch, seed=self.seed + point.batch, **options)

    def hard_calls(self, point: Point):
        options = {"tokens": point.tokens, "device": self.device, "dtype": self.io_dtype, "seed": self.seed}
        calls = split_kinds(point.batch)
        if self.device.type == "cpu":  # one call, other kinds for another T: eager PyTorch is slow
            calls = [calls[point.tokens % len(calls)]]
        return [in_one_call(self.shape, kinds, point.batch, **options) for kinds in calls]

    def calls_of(self, case, inputs: ops.DecodeInputs, index_sets, out) -> list:
        pool = self.pools[case.layout]
        if case.mode == COMMIT:
            accepted = torch.full((len(out),), out.shape[1], device=self.device)
            return [partial(pool.commit, indices, accepted) for indices in index_sets]
        options = inputs.gates() | {"pool": pool, "backend": case.name, "out": out}
        options["update_state"] = case.mode == "update"
        options["intermediate_states"] = pool.intermediate_states if case.mode == "intermediate" else None
        return [partial(ops.verify, *inputs.arguments(), indices=indices, **options) for indices in index_sets]

    def reference(self, inputs: ops.DecodeInputs, state, rows=None) -> list[Part]:
        """Compute o and the states after each token of `rows`, by default CHECKED_ROWS rows spread over the call."""
        if rows is None:
            rows = torch.linspace(0, len(state) - 1, min(len(state), CHECKED_ROWS)).long().tolist()
        o, states = reference.verify(*(x[rows] for x in inputs.arguments()), **inputs.gates(), state=state[rows])
        return [Part(rows, o.to(self.device), states.to(self.device))]

    def before_check(self, case, parts: list[Part]) -> None:
        """Fill the intermediate states with NaN, or for commit() with those that it is to take."""
        stored = self._intermediate_states(case)
        stored.fill_(torch.nan)
        if case.mode == COMMIT:
            stored.fill_(0.0)
            for part in parts:
                stored[part.rows] = part.states.to(stored.dtype)

    def before_timing(self, point: Point) -> None:
        for pool in self.pools.values():
            pool.intermediate_states.normal_(0, STATE_STD)  # commit() takes them, whether or not a case stores them

    def compare(self, case, part: Part, out, indices, start) -> Check:
        pool, rows = self.pools[case.layout], part.rows
        last = part.states[:, -1] if case.mode in ("update", COMMIT) else start[rows].to(self.device).double()
        right, error_state = distance(pool.read(indices[rows]), last, pool.dtype)
        error_o = 0.0
        if case.mode != COMMIT:
            right_o, error_o = distance(out[rows], part.o, out.dtype)
            right = right and right_o
        if case.mode == "intermediate":
            right_states, error_states = distance(self._intermediate_states(case)[rows], part.states, pool.dtype)
            right, error_state = right and right_states, worse(error_state, error_states)
        return Check(right, error_o, error_state)

    def _intermediate_states(self, case):
        """Return the case's buffer of states after each token as [B, T, HV, V, K]."""
        pool = self.pools[case.layout]
        return pool.intermediate_states.transpose(-1, -2) if pool.layout == "KV" else pool.intermediate_states

    def where(self, point: Point) -> str:
        return f"B = {point.batch}, T = {point.tokens}"

    def bytes(self, point: Point, case=None) -> int:
        if case is not None and case.mode == COMMIT:
            return commit_bytes(self.shape, point.batch, self.dtype)
        mode = case.mode if case else "output"
        return verify_bytes(self.shape, point.batch, point.tokens, mode, self.dtype, self.io_dtype)

    def bytes_formula(self, case) -> str:
        return COMMIT_BYTES_FORMULA if case.mode == COMMIT else VERIFY_BYTES_FORMULA[case.mode]

    def case_fields(self, case, point: Point, check: Check) -> dict:
        return {
            "backend": case.backend,
            "variant": case.variant,
            "indexing": case.indexing,
            "layout": case.layout,
            "batch": point.batch,
            "slots": self.slots,
            "max_abs_error": check.max_abs_error,
            "max_abs_error_state": check.max_abs_error_state,
            "tokens": point.tokens,
            "mode": case.mode,
        }
