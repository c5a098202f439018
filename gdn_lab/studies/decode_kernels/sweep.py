"""Sweep of decode(): every variant that can serve, checked against the float64 reference, timed against the others.

A case is a variant ("triton/vk") and an indexing: "in_place", or "gather_scatter" (gather the slots into a batch, run
on it, scatter back).
"""

from functools import partial

import torch

from ... import ops, reference
from ...backends.registry import variant
from ...bench.cases import Point, SweepOptions, cases_of, checked_batches, checked_names
from ...bench.pools import pool_slots
from ...bench.sweep import Part, Sweep
from ...costs import DECODE_BYTES_FORMULA, REPLAY_BYTES_FORMULA, decode_bytes, replay_bytes
from ...hard_inputs import in_one_call, split_kinds
from ...models import GDNShape
from ...pool import StatePool
from ...rounding import FP8
from ...tolerances import ARITHMETIC, CORRECTIONS, Check, distance, fp8_step_allowed, merged

INDEXINGS = ("in_place", "gather_scatter")
ROWS_AT_ONCE = 32  # of the reference and the comparison, which work in float64


def decode_sweep(shape: GDNShape, batches, *, indexings=INDEXINGS, slots: int | None = None, **options) -> list[dict]:
    """Time decode() at each batch size; return the rows, each of which is appended to `run` as it is made.

    batches: numbers of rows B. indexings: of INDEXINGS. slots: of each pool, by default a pool of several L2 caches.
    options: fields of bench.cases.SweepOptions.

    Each timer goes through all batches before the next one starts. Every call of a variant works on slots of its own,
    drawn at random and disjoint from those of the call before, until the pool is used up. All variants of a batch size
    get the same inputs.

    Rows: status "refused" (once for each variant that cannot serve, with the reason), "wrong" (not timed; wrong_on says
    on which inputs), "error" (timed, but faster than the memory allows) or "ok". They have the fields of
    results.ROW_FIELDS and indexing, io_dtype, head_k_dim, head_v_dim, model, tp, slots, seed, l2 ("cold", "warm", or
    "not controlled" on a CPU), calls_per_sample, max_abs_error_state, roof_method, datasheet_gb_per_s, checked (on what
    it was right: kinds of inputs, and what bench/call_checks.py checks). median_us and bytes are of one call; the bytes
    of a gather and scatter are those that a decode step must move. Another library's variant that is right on the timed
    inputs, but not on some hard ones, is timed; its rows add wrong_on, wrong_errors and allowed_error (bench/sweep.py).

    Raises ValueError for arguments out of range, TimerUnavailable for a timer asked for by name, RuntimeError if one of
    this workbook's variants fails or a state does not stay finite. An interrupt is recorded in the run and passed on.
    """
    options = SweepOptions(**options)
    batches = checked_batches(batches)
    cases, refused = cases_of("decode", checked_names("indexings", indexings, INDEXINGS), shape, options)
    slots = pool_slots(slots, shape, options.dtype, max(batches), cases, options.device)
    sweep = DecodeSweep(shape, cases, refused, options, slots)
    sweep.max_batch = max(batches)
    return sweep.run([[Point(batch) for batch in batches]])


class DecodeSweep(Sweep):
    """decode(), in place or between a gather and a scatter. max_batch: rows that the scratch pools take."""

    phase = "decode"
    max_batch = 0

    def make_pools(self) -> None:
        super().make_pools()
        gathering = {case.layout for case in self.cases if case.indexing == "gather_scatter"}
        options = {"dtype": self.dtype, "device": self.device}
        self.scratch = {
            layout: StatePool(self.shape, self.max_batch + 1, layout=layout, **options) for layout in gathering
        }

    @property
    def normalises(self) -> bool:
        """Whether the kernels normalise q and k. If one of them takes normalised ones, all get those."""
        return all(variant(case.name).normalises for case in self.cases)

    def inputs(self, point: Point) -> ops.DecodeInputs:
        seed = self.seed + point.batch
        made = ops.make_inputs(self.shape, point.batch, device=self.device, dtype=self.io_dtype, seed=seed)
        return made if self.normalises else ops.normalised(made)

    def hard_calls(self, point: Point):
        options = {"device": self.device, "dtype": self.io_dtype, "seed": self.seed}
        calls = [in_one_call(self.shape, kinds, point.batch, **options) for kinds in split_kinds(point.batch)]
        if not self.normalises:
            for call in calls:
                ops.normalised(call.inputs)
        return calls

    def calls_of(self, case, inputs: ops.DecodeInputs, index_sets, out) -> list:
        options = inputs.gates() | {"pool": self.pools[case.pool], "backend": case.name, "out": out}
        options["use_qk_l2norm"] = self.normalises
        if case.indexing == "in_place":
            return [partial(ops.decode, *inputs.arguments(), indices=indices, **options) for indices in index_sets]
        rows = torch.arange(1, len(out) + 1, dtype=torch.int32, device=self.device)
        options |= {"scratch": self.scratch[case.layout], "rows": rows, "padding": False}
        return [
            partial(ops.decode_gathered, *inputs.arguments(), indices=indices.long(), **options)
            for indices in index_sets
        ]

    def reference(self, inputs: ops.DecodeInputs, state, rows=None) -> list[Part]:
        """Compute the reference of all rows, or of `rows`, in parts of ROWS_AT_ONCE rows, on the state's device."""
        rows = list(range(len(state))) if rows is None else rows
        parts = []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            arguments = (x[some] for x in inputs.arguments())
            options = {"state": state[some], "use_qk_l2norm": self.normalises}
            o, new_state = reference.decode(*arguments, **inputs.gates(), **options)
            old = state[some] if self.dtype is FP8 else None
            parts.append(Part(some, o.to(state.device), new_state.to(state.device), old=old))
        return parts

    def redraw(self, inputs: ops.DecodeInputs, rng, strong_decay: bool) -> None:
        if not self.normalises:  # q and k would have to be normalised in the order of the stream, which takes longer
            inputs.v.normal_(generator=rng)
        else:
            inputs.mixed_qkv.normal_(generator=rng)
        mean, std = (-1.0, 4.0) if strong_decay else (-6.0, 1.0)  # as ops.make_inputs() draws them
        inputs.a.normal_(mean, std, generator=rng)
        inputs.b.normal_(generator=rng)

    def can_replay(self, case) -> bool:
        return not case.ring

    def compare(self, case, part: Part, out, indices, start, more: float = 0.0) -> Check:
        """more: added to the allowed error, relative to the largest element."""
        pool = self.pools[case.pool]
        states, dtype, arithmetic = pool.read(indices[part.rows]), pool.dtype, ARITHMETIC + more
        of_output = of_state = 0.0
        if dtype is FP8:  # states are read back as float32; any row may have been rounded
            folds = torch.ones(len(part.rows), dtype=torch.bool)
            of_read, of_state = fp8_step_allowed(part.old, part.states, folds)
            of_output, dtype = 2 * self.shape.scale * of_read, torch.float32
        elif case.ring:
            of_state = CORRECTIONS[dtype] * part.states.abs().max()
        right_o, error_o = distance(out[part.rows], part.o, out.dtype, arithmetic, of_output)
        right_state, error_state = distance(states, part.states, dtype, arithmetic, of_state)
        return Check(right_o and right_state, error_o, error_state)

    def bytes(self, point: Point, case=None) -> int:
        if case and case.ring:
            return round(replay_bytes(self.shape, point.batch, case.ring, self.dtype, self.io_dtype))
        return decode_bytes(self.shape, point.batch, self.dtype, self.io_dtype)

    def bytes_formula(self, case) -> str:
        return REPLAY_BYTES_FORMULA if case.ring else DECODE_BYTES_FORMULA

    def check_after(self, point: Point, cases) -> dict:
        """Check a few rows once more; those with a ring from the updates that the timed calls have left pending."""
        found = super().check_after(point, [case for case in cases if not case.ring])
        inputs, indices = self.inputs(point), self.index_sets(point)[0]
        for case in (case for case in cases if case.ring):
            start = self.pools[case.pool].read(indices[: min(point.batch, self.rows_after)])
            parts = self.reference(inputs, start)
            found[case] = merged(self._check_case(case, point, inputs, indices, start[:0], parts))
        return found

    def case_fields(self, case, point: Point, check: Check) -> dict:
        return {
            "backend": case.backend,
            "variant": case.variant,
            "indexing": case.indexing,
            "layout": case.layout,
            "batch": point.batch,
            "tokens": 1,
            "use_qk_l2norm": self.normalises,
            "slots": self.slots,
            "max_abs_error": check.max_abs_error,
            "max_abs_error_state": check.max_abs_error_state,
            **({"ring_updates": case.ring} if case.ring else {}),
        }
