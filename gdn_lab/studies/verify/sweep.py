"""A sweep of verify(): each variant in each mode that it can serve, checked against the oracle, then timed in turns.

StatePool.commit(), without which the mode "intermediate" is half a step, is timed beside them as `pool/commit`.
"""

from functools import partial

import torch

from ... import ops, reference
from ...bench.cases import Case, cases_of, checked_batches, checked_names, checked_timers
from ...bench.pools import Sweep, pool_slots
from ...bench.progress import part_of, progress_bar
from ...bench.results import Run
from ...bench.roof import Roof, measure_roof
from ...bench.rows import Rows, common_fields, recorded
from ...costs import COMMIT_BYTES_FORMULA, VERIFY_BYTES_FORMULA, commit_bytes, verify_bytes
from ...models import GDNShape
from ...tolerances import Check, distance, worse

MODES = tuple(VERIFY_BYTES_FORMULA)
COMMIT = "commit"
CHECKED_ROWS = 8  # of a call, spread over it: the oracle needs a state for each row and token


def verify_sweep(
    shape: GDNShape, batches, tokens, *, variants="all", modes=MODES, dtype=torch.bfloat16, io_dtype=torch.bfloat16,
    device=None, run: Run | None = None, timers=None, slots: int | None = None, samples: int = 50, seed: int = 0,
    roof: Roof | None = None, model: str | None = None, tp: int | None = None, progress: bool = True,
) -> list[dict]:  # fmt: skip
    """Times verify() for each batch size and each number of draft tokens T; arguments, rows and errors as decode_sweep.

    tokens: numbers of draft tokens, 2 to 16. modes: of MODES. Rows have `tokens` and `mode` beside decode's fields; the
    mode of pool/commit is "commit", in which every row accepts all T tokens. An output is right or wrong by
    CHECKED_ROWS rows of it, and with it the states after each token or the new state.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    batches, timers = checked_batches(batches), checked_timers(timers, device)
    tokens, (fewest, most) = list(tokens), ops.DRAFT_TOKENS
    if not tokens or any(type(t) is not int or not fewest <= t <= most for t in tokens):
        raise ValueError(f"tokens: expected numbers from {fewest} to {most}, got {tokens}")
    modes = checked_names("modes", modes, MODES)
    cases, refused = cases_of("verify", variants, modes, shape, dtype, io_dtype, device)
    if any(case.mode == "intermediate" for case in cases):
        cases.append(Case("pool", "commit", cases[0].layout, mode=COMMIT))
    slots = pool_slots(slots, shape, dtype, max(batches), cases, device)
    rows = Rows(run, common_fields("verify", shape, dtype, io_dtype, model=model, tp=tp, seed=seed))
    with recorded(run), ops.checks(False):
        for row in refused:
            rows.add(row)
        if not cases:
            return rows
        sweep = VerifySweep(shape, cases, dtype, io_dtype, device, slots, seed, roof or measure_roof(device))
        total = sum(batch + 16 for batch in batches) * len(tokens) * (1 + len(timers))
        with progress_bar(what="verify", total=total, show=progress) as bar:
            for batch in batches:
                for count in tokens:
                    for row in sweep.rows(batch, count, timers, samples, bar):
                        rows.add(row)
    return rows


class VerifySweep(Sweep):
    """verify() with T tokens a row, in modes."""

    tokens = 0

    def rows(self, batch: int, tokens: int, timers, samples: int, bar):
        """The rows of one batch size and T, as they are made."""
        self.tokens = tokens
        for pool in self.pools.values():
            pool.reserve_drafts(batch, tokens)
        bar.set_postfix_str(f"B = {batch}, T = {tokens}", refresh=False)
        checks = self.check(batch)
        for case, check in checks.items():
            if not check.right:
                yield self.case_fields(case, batch, check) | {"status": "wrong"}
        bar.update(batch + 16)
        right = [case for case, check in checks.items() if check.right]
        for timer in timers:
            yield from self.time(batch, timer, samples, right, checks, part_of(bar, batch + 16))

    def inputs(self, batch: int) -> ops.DecodeInputs:
        return ops.make_inputs(
            self.shape, batch, tokens=self.tokens, device=self.device, dtype=self.io_dtype, seed=self.seed + batch
        )

    def calls_of(self, case, inputs, index_sets, out) -> list:
        pool = self.pools[case.layout]
        if case.mode == COMMIT:
            accepted = torch.full((len(out),), self.tokens, device=self.device)
            return [partial(pool.commit, indices, accepted) for indices in index_sets]
        options = inputs.gates() | {"pool": pool, "backend": case.name, "out": out}
        options["update_state"] = case.mode == "update"
        options["intermediate_states"] = pool.intermediate_states if case.mode == "intermediate" else None
        return [partial(ops.verify, *inputs.arguments(), indices=indices, **options) for indices in index_sets]

    def check(self, batch: int) -> dict:
        """Each case once from the same state on the first call's slots; a few rows of it against the oracle."""
        inputs, indices = self.inputs(batch), self.index_sets(batch)[0]
        rows = torch.linspace(0, batch - 1, min(batch, CHECKED_ROWS)).long().to(self.device)
        out = torch.empty_like(inputs.v, memory_format=torch.contiguous_format)
        start = next(iter(self.pools.values())).read(indices)  # as stored, so every pool holds it exactly
        o, states = reference.verify(*(x[rows] for x in inputs.arguments()), **inputs.gates(), state=start[rows])
        expected = o.to(self.device), states.to(self.device)
        return {case: self.check_case(case, inputs, indices, rows, out, start, *expected) for case in self.cases}

    def check_case(self, case, inputs, indices, rows, out, start, o, states) -> Check:
        pool = self.pools[case.layout]
        pool.write(indices, start)
        out.fill_(torch.nan)
        stored = pool.intermediate_states.transpose(-1, -2) if pool.layout == "KV" else pool.intermediate_states
        stored.fill_(torch.nan)
        if case.mode == COMMIT:
            stored.fill_(0.0)
            stored[rows] = states.to(pool.dtype)
        try:
            self.calls_of(case, inputs, [indices], out)[0]()
        except Exception as error:
            where = f"B = {len(indices)}, T = {self.tokens}"
            raise RuntimeError(f"{case.key} failed at {where}: {type(error).__name__}: {error}") from error
        last = states[:, -1] if case.mode in ("update", COMMIT) else start[rows].double()
        right, error_state = distance(pool.read(indices[rows]), last, pool.dtype)
        error_o = 0.0
        if case.mode != COMMIT:
            right_o, error_o = distance(out[rows], o, out.dtype)
            right = right and right_o
        if case.mode == "intermediate":
            right_states, error_states = distance(stored[rows], states, pool.dtype)
            right, error_state = right and right_states, worse(error_state, error_states)
        return Check(right, error_o, error_state)

    def case_fields(self, case, batch: int, check: Check) -> dict:
        return super().case_fields(case, batch, check) | {"tokens": self.tokens, "mode": case.mode}

    def bytes(self, batch: int, case=None) -> int:
        if case is not None and case.mode == COMMIT:
            return commit_bytes(self.shape, batch, self.dtype)
        mode = case.mode if case else "output"
        return verify_bytes(self.shape, batch, self.tokens, mode, self.dtype, self.io_dtype)

    def bytes_formula(self, case) -> str:
        return COMMIT_BYTES_FORMULA if case.mode == COMMIT else VERIFY_BYTES_FORMULA[case.mode]
