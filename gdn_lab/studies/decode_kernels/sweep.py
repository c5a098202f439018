"""A sweep of decode: every variant that can serve, checked against the oracle, then timed against the others.

A variant is a kernel of a backend ("triton/vk") and an indexing: "in_place", or "gather_scatter" (gather the slots into
a batch, run on it, scatter back).
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
from ...costs import DECODE_BYTES_FORMULA, decode_bytes
from ...models import GDNShape
from ...pool import StatePool
from ...tolerances import Check, distance, worse

INDEXINGS = ("in_place", "gather_scatter")
ROWS_AT_ONCE = 32  # of the oracle and the comparison, which work in float64


def decode_sweep(
    shape: GDNShape, batches, *, variants="all", indexings=INDEXINGS, dtype=torch.bfloat16, io_dtype=torch.bfloat16,
    device=None, run: Run | None = None, timers=None, slots: int | None = None, samples: int = 50, seed: int = 0,
    roof: Roof | None = None, model: str | None = None, tp: int | None = None, progress: bool = True,
) -> list[dict]:  # fmt: skip
    """Times decode() for each batch size; returns the rows, each of which is appended to `run` as it is made.

    batches: numbers of rows B. variants: "all", or backends and variants as decode() names them ("triton", "torch/vk").
    indexings: of INDEXINGS. dtype: of the state; io_dtype: of q, k, v, a, b, o. device: default a GPU if there is one.
    timers: of TIMERS, default all that can run on the device. slots: of each pool, default a pool of several L2 caches.
    samples: for each variant and timer. roof: default, it is measured first. model, tp: recorded in the rows.

    Each timer goes through all batches before the next. Every call of a variant works on slots of its own, drawn at
    random and disjoint from those of the call before, until the pool is used up; inputs are one set for each batch.

    Rows: status "refused" (once for each variant that cannot serve, with the reason), "wrong" (not timed) or "ok"; the
    fields of results.ROW_FIELDS and indexing, io_dtype, head_k_dim, head_v_dim, model, tp, slots, seed, l2 ("cold",
    "warm", or "not controlled" on a CPU), calls_per_sample, max_abs_error_state, roof_method, datasheet_gb_per_s.
    median_us and bytes are of one call; a gather and scatter is given no more bytes than a step must move.

    Raises ValueError for arguments that cannot be, TimerUnavailable for a timer asked for by name, RuntimeError if a
    variant fails or its state does not stay finite. An interrupt is recorded in the run and passed on.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    batches, timers = checked_batches(batches), checked_timers(timers, device)
    indexings = checked_names("indexings", indexings, INDEXINGS)
    cases, refused = cases_of("decode", variants, indexings, shape, dtype, io_dtype, device)
    slots = pool_slots(slots, shape, dtype, max(batches), cases, device)
    rows = Rows(run, common_fields("decode", shape, dtype, io_dtype, model=model, tp=tp, seed=seed, tokens=1))
    with recorded(run), ops.checks(False):
        for row in refused:
            rows.add(row)
        if not cases:
            return rows
        roof = roof or measure_roof(device)
        sweep = DecodeSweep(shape, cases, dtype, io_dtype, device, slots, seed, roof, max(batches))
        total = sum(batch + 16 for batch in batches) * (1 + len(timers))
        with progress_bar(what="decode", total=total, show=progress) as bar:
            checks = {}
            for batch in batches:
                bar.set_postfix_str(f"B = {batch}, against the oracle", refresh=False)
                checks[batch] = sweep.check(batch)
                for case, check in checks[batch].items():
                    if not check.right:
                        rows.add(sweep.case_fields(case, batch, check) | {"status": "wrong"})
                bar.update(batch + 16)
            for timer in timers:
                for batch in batches:
                    bar.set_postfix_str(f"B = {batch}, {timer}", refresh=False)
                    right = [case for case, check in checks[batch].items() if check.right]
                    for row in sweep.time(batch, timer, samples, right, checks[batch], part_of(bar, batch + 16)):
                        rows.add(row)
    return rows


class DecodeSweep(Sweep):
    """decode(), in place or between a gather and a scatter."""

    def __init__(self, shape, cases, dtype, io_dtype, device, slots, seed, roof, max_batch):
        super().__init__(shape, cases, dtype, io_dtype, device, slots, seed, roof)
        gathering = {case.layout for case in cases if case.indexing == "gather_scatter"}
        self.scratch = {
            layout: StatePool(shape, max_batch + 1, layout=layout, dtype=dtype, device=device) for layout in gathering
        }

    def bytes(self, batch: int, case=None) -> int:
        """That a call must move; without a case, those of the case that moves least."""
        return decode_bytes(self.shape, batch, self.dtype, self.io_dtype)

    def bytes_formula(self, case) -> str:
        return DECODE_BYTES_FORMULA

    def inputs(self, batch: int) -> ops.DecodeInputs:
        return ops.make_inputs(self.shape, batch, device=self.device, dtype=self.io_dtype, seed=self.seed + batch)

    def calls_of(self, case: Case, inputs: ops.DecodeInputs, index_sets, out) -> list:
        """A case's calls, without arguments: one for each set of indices."""
        options = inputs.gates() | {"pool": self.pools[case.layout], "backend": case.name, "out": out}
        if case.indexing == "in_place":
            return [partial(ops.decode, *inputs.arguments(), indices=indices, **options) for indices in index_sets]
        rows = torch.arange(1, len(out) + 1, dtype=torch.int32, device=self.device)
        options |= {"scratch": self.scratch[case.layout], "rows": rows, "padding": False}
        return [
            partial(ops.decode_gathered, *inputs.arguments(), indices=indices.long(), **options)
            for indices in index_sets
        ]

    def check(self, batch: int) -> dict[Case, Check]:
        """Each case once from the same state on the first call's slots, against the oracle."""
        inputs, indices = self.inputs(batch), self.index_sets(batch)[0]
        out = torch.empty_like(inputs.v, memory_format=torch.contiguous_format)
        start = next(iter(self.pools.values())).read(indices)  # as stored, so every pool holds it exactly
        expected = _oracle(inputs, start)
        checks = {}
        for case in self.cases:
            pool = self.pools[case.layout]
            pool.write(indices, start)
            out.fill_(torch.nan)
            try:
                self.calls_of(case, inputs, [indices], out)[0]()
            except Exception as error:
                raise RuntimeError(f"{case.key} failed at B = {batch}: {type(error).__name__}: {error}") from error
            checks[case] = _compare(out, pool, indices, expected)
        return checks


# --- against the oracle


def _oracle(inputs: ops.DecodeInputs, state: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(o, new state) of each ROWS_AT_ONCE rows: float64, computed on the CPU, kept on the state's device."""
    parts = []
    for start in range(0, len(state), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        arguments = (x[rows] for x in inputs.arguments())
        o, new_state = reference.decode(*arguments, **inputs.gates(), state=state[rows])
        parts.append((o.to(state.device), new_state.to(state.device)))
    return parts


def _compare(out, pool: StatePool, indices, expected) -> Check:
    """out [B, HV, V] and the pool's state in the slots `indices` against the oracle's parts."""
    right, worst_o, worst_state = True, 0.0, 0.0
    for number, (o, state) in enumerate(expected):
        rows = slice(number * ROWS_AT_ONCE, (number + 1) * ROWS_AT_ONCE)
        right_o, error_o = distance(out[rows], o, out.dtype)
        right_state, error_state = distance(pool.read(indices[rows]), state, pool.dtype)
        right = right and right_o and right_state
        worst_o, worst_state = worse(worst_o, error_o), worse(worst_state, error_state)
    return Check(right, worst_o, worst_state)
