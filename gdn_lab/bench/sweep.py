"""Sweep: variants checked against the float64 reference, timed against each other, and checked again.

A wrong variant is not timed. Another library's that is right on the timed inputs, but not on some hard ones, is timed,
and its rows say on which (_checked_fields).

A sweep goes over points: a batch size, and where it matters a number of tokens. What is done at a point is the same for
every operation; a subclass says what its inputs, calls, reference and bytes are.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch

from ..e4m3 import as_stored
from ..hard_inputs import HardCall
from ..pool import StatePool, checks
from ..tolerances import ARITHMETIC, LAST_PLACE, Check, merged, relative
from ..trace import nvtx_range
from . import pools
from .call_checks import CALL_KINDS, check_calls
from .cases import Case, Point, SweepOptions
from .cupti import TimerUnavailable
from .guards import REPLAYED, ReplayGuard, broken_seal
from .progress import part_of, progress_bar
from .roof import measure_roof
from .rows import Rows, common_fields, recorded, timing_fields, too_fast
from .timers import Timing, time_interleaved

RANDOM, AFTER = "random inputs", "after timing"  # in a row's `checked` and `wrong_on`, with the kinds of hard inputs
HOST_SYNC = "synchronises with the host, so it cannot be captured in a CUDA graph; checked, not timed"


class Part(NamedTuple):
    """What the reference gives for some rows of a call, float64.

    rows: their numbers, ascending. o, states: theirs, as the subclass's reference() makes and its compare() takes them.
    tokens: of prefill, where these sequences lie in the packed ones. old: of decode, the states that they start from.
    """

    rows: list[int]
    o: torch.Tensor
    states: torch.Tensor
    tokens: slice | None = None
    old: torch.Tensor | None = None


class Sweep(ABC):
    """Checks and times the cases of one operation, and makes the rows.

    shape: GDNShape. cases: what is measured. refused: rows of what cannot run. slots: of each pool.
    """

    phase: str
    warmup = 3  # untimed turns
    rows_after = 2  # rows of a call that are compared with the reference after timing
    call_rows = 32  # at most, of the calls that check_calls() makes
    arithmetic = ARITHMETIC  # tolerance of compare(), relative to the largest element

    def __init__(self, shape, cases: list[Case], refused: list[dict], options: SweepOptions, slots: int):
        self.shape, self.refused, self.options, self.slots = shape, refused, options, slots
        self.dtype, self.io_dtype = options.dtype, options.io_dtype
        self.device, self.seed = options.device, options.seed
        self.untimed = [case for case in cases if case.synchronises(self.phase, self.device)]
        self.cases = [case for case in cases if case not in self.untimed]
        self.failed: dict[Case, str] = {}  # other libraries' cases that raised at the current point, and what
        self.hard_kinds: dict[Point, list[str]] = {}  # of hard inputs that were checked
        self.outside: dict[tuple[Point, Case], dict[str, Check]] = {}  # other libraries' on hard inputs
        self.pools: dict[str, StatePool] = {}

    # --- what a subclass says

    @abstractmethod
    def inputs(self, point: Point):
        """Return the arguments that every case gets."""

    @abstractmethod
    def hard_calls(self, point: Point) -> list[HardCall]:
        """Make calls like those of the point whose first rows are of hard kinds, all or some between them."""

    @abstractmethod
    def calls_of(self, case: Case, inputs, index_sets, out) -> list:
        """Return a case's calls, functions without arguments: one for each set of slots."""

    @abstractmethod
    def reference(self, inputs, state, rows=None) -> list[Part]:
        """Compute the float64 reference of `rows`, by default of those that the check before timing compares.

        state: [n, HV, V, K], as stored, of the call's first n rows. rows: numbers below n.
        """

    @abstractmethod
    def compare(self, case: Case, part: Part, out, indices, start) -> Check:
        """Compare what a case left in `out` and in its pool with a part of the reference."""

    @abstractmethod
    def bytes(self, point: Point, case: Case | None = None) -> int:
        """Bytes that a call must move; without a case, those of the case that moves least."""

    @abstractmethod
    def bytes_formula(self, case: Case) -> str:
        """Say what these bytes are."""

    def prepare(self, point: Point) -> None:  # noqa: B027  not every operation needs it
        """Make what a point needs; called whenever the sweep turns to another point."""

    def reserve(self, point: Point) -> None:  # noqa: B027  likewise
        """Reserve what the pools need, besides states, for calls of this point."""

    def strided_inputs(self, point: Point):
        """Return such arguments with q, k, v, a and b as views of packed tensors."""
        return self.inputs(point)

    def tokens_of(self, inputs, row: int) -> int | slice:
        """Say where the output of a row lies in `out`."""
        return row

    def before_check(self, case: Case, parts: list[Part]) -> None:  # noqa: B027  likewise
        """Set up what a case reads or overwrites besides the pool and `out`."""

    def before_timing(self, point: Point) -> None:  # noqa: B027  likewise
        """Fill what the timed calls read besides inputs and pools."""

    def redraw(self, inputs, rng: torch.Generator, strong_decay: bool) -> None:  # noqa: B027  likewise
        """Put new random values into the inputs of the timed calls, in place."""

    def can_replay(self, case: Case) -> bool:
        """Tell whether what was timed of a case can be judged by its last call (guards.py)."""
        return False

    def pool_layout(self, case: Case) -> str:
        """Name of the pool that a case works on: its layout, or more where it needs one of its own."""
        return case.pool

    def batch_of(self, inputs) -> int:
        """Return the rows or sequences of a call with these inputs."""
        return len(inputs.q)

    def where(self, point: Point) -> str:
        """Name a point in messages and in the progress bar."""
        return f"B = {point.batch}"

    def weight(self, point: Point) -> float:
        """Return the share of a point in the progress bar: time grows with B from a floor."""
        return point.batch + 16

    @abstractmethod
    def case_fields(self, case: Case, point: Point, check: Check) -> dict:
        """Return the fields of a row that say what was measured, and what its check found."""

    def timing_fields(self, case: Case, point: Point, timing: Timing) -> dict:
        """Return the fields of a row that say what came out."""
        nbytes, formula = self.bytes(point, case), self.bytes_formula(case)
        return timing_fields(timing, nbytes, formula, self.roof, self.device, self.l2(point))

    # --- a sweep

    def run(self, groups: list[list[Point]]) -> list[dict]:
        """Check and time every point; return the rows, each of which is appended to the run as it is made.

        groups: of points. Each group is checked whole, then each timer goes through it whole: once CUPTI is started it
        stays in the process, so its turn comes last.

        Raises RuntimeError if one of this workbook's variants fails or a state does not stay finite. An interrupt is
        recorded in the run and passed on.
        """
        options = self.options
        shared = {"model": options.model, "tp": options.tp, "seed": options.seed}
        rows = Rows(options.run, common_fields(self.phase, self.shape, self.dtype, self.io_dtype, **shared))
        with recorded(options.run), checks(False):
            for row in self.refused:
                rows.add(row)
            if self.cases or self.untimed:
                self.roof = options.roof or measure_roof(self.device)
                self.make_pools()
                total = (1 + len(options.timers)) * sum(self.weight(point) for group in groups for point in group)
                with progress_bar(what=self.phase, total=total, show=options.progress) as self.bar:
                    self._check_untimed(groups[0][0], rows)
                    for group in groups:
                        self._run_group(group, rows)
        return rows

    def _run_group(self, group: list[Point], rows: Rows) -> None:
        bar, right = self.bar, {}
        for point in group:
            self.prepare(point)
            right[point] = self._check_point(point, rows)
            bar.update(self.weight(point))
        for timer in self.options.timers:
            for point in group:
                bar.set_postfix_str(f"{self.where(point)}, {timer}", refresh=False)
                if len(group) > 1:
                    self.prepare(point)
                for row in self._time(point, timer, right[point], part_of(bar, self.weight(point))):
                    rows.add(row)

    def make_pools(self) -> None:
        """Make the pools that serve every point."""
        names = sorted({self.pool_layout(case) for case in self.cases + self.untimed})
        options = {"dtype": self.dtype, "io_dtype": self.io_dtype, "device": self.device, "seed": self.seed}
        self.pools = pools.random_pools(self.shape, self.slots, names, **options)

    def calls(self, point: Point) -> int:
        """Calls in one replay."""
        call_us = self.bytes(point) / self.roof.gb_per_s / 1e3
        return pools.calls_in_a_replay(
            self.shape, self.dtype, self.slots, point.batch, device=self.device, call_us=call_us
        )

    def index_sets(self, point: Point) -> list[torch.Tensor]:
        """Slots of each call of a replay, int32 [B] each."""
        return pools.slot_sets(self.slots, point.batch, self.calls(point), device=self.device, seed=self.seed)

    def l2(self, point: Point) -> str:
        """Say whether state comes from memory: a row's field `l2`."""
        touched = pools.state_touched(self.shape, self.dtype, self.slots, point.batch, self.calls(point))
        return pools.l2_state(touched, self.device)

    # --- checks

    def _check_point(self, point: Point, rows: Rows) -> dict[Case, Check]:
        """Check all cases; add rows for those that are wrong or failed, and return the checks of the others."""
        self.failed = {}
        found = self.check(point)
        wrong = {case: {RANDOM: check} for case, check in found.items() if not check.right}
        wrong |= check_calls(self, point, [case for case in found if case.is_kernel and case not in wrong])
        for case, checks_of in self.check_hard(point, [case for case in found if case not in wrong]).items():
            if case.is_peer:
                self.outside[point, case] = checks_of
            else:
                wrong[case] = checks_of
        self._add_wrong(point, wrong, rows)
        for case, reason in self.failed.items():
            fields = self.case_fields(case, point, Check(False, None, None))
            rows.add(fields | {"status": "refused", "reason": reason})
        return {case: check for case, check in found.items() if case not in wrong and case not in self.failed}

    def _add_wrong(self, point: Point, wrong: dict[Case, dict[str, Check]], rows: Rows) -> None:
        for case, checks_of in wrong.items():
            fields = self.case_fields(case, point, next(iter(checks_of.values())))
            rows.add(fields | {"status": "wrong", "wrong_on": list(checks_of)})

    def check(self, point: Point) -> dict[Case, Check]:
        """Run each case once from the same state on the slots of the first call, and compare it with the reference."""
        inputs, indices = self.inputs(point), self.index_sets(point)[0]
        start = self._stored(indices)
        parts = self.reference(inputs, start)
        found = {case: self._check_case(case, point, inputs, indices, start, parts) for case in self.cases}
        for pool in self.pools.values():  # whatever a wrong case has left
            pool.write(indices, start)
        return {case: merged(part_checks) for case, part_checks in found.items() if part_checks}

    def check_hard(self, point: Point, cases: list[Case]) -> dict[Case, dict[str, Check]]:
        """Run the cases that work in place on hard inputs; return {case: {kind: Check}} of what is wrong.

        Gathering and scattering the same state adds nothing that could be wrong on these inputs alone.
        """
        wrong: dict[Case, dict[str, Check]] = {}
        cases = [case for case in cases if case.is_kernel]
        rng = torch.Generator().manual_seed(self.seed)
        calls = self.hard_calls(point) if cases else []
        self.hard_kinds[point] = [kind for call in calls for kind in call.kinds]
        for call in calls:
            indices = self.index_sets(point)[0][: self.batch_of(call.inputs)]
            inner = (self.shape.num_v_heads, self.shape.head_v_dim, self.shape.head_k_dim)
            start = torch.randn(len(call.kinds), *inner, generator=rng)
            std = torch.tensor(call.state_std)[:, None, None, None]
            start = as_stored((start * std).to(self.device), self.dtype)
            parts = [self.reference(call.inputs, start, [row])[0] for row in range(len(call.kinds))]
            for case in cases:
                part_checks = self._check_case(case, point, call.inputs, indices, start, parts)
                for kind, part, check in zip(call.kinds, parts, part_checks, strict=False):
                    if not check.right:
                        wrong.setdefault(case, {})[kind] = relative(check, part.o, part.states)
            for pool in self.pools.values():
                pool.write(indices[: len(start)], start.cpu() / std * pools.STATE_STD)  # as random_pools() fills it
        return wrong

    def check_after(self, point: Point, cases: list[Case]) -> dict[Case, Check]:
        """Check a few rows of each case once more, from the state that the timed calls have left."""
        inputs, indices = self.inputs(point), self.index_sets(point)[0]
        few = min(point.batch, self.rows_after)
        start = self._stored(indices[:few])
        parts = self.reference(inputs, start, list(range(few)))
        return {case: merged(self._check_case(case, point, inputs, indices, start, parts)) for case in cases}

    def _check_case(self, case: Case, point: Point, inputs, indices, start, parts: list[Part]) -> list[Check]:
        """Run a case once from `start` and compare it with each part; [] if it is another library's and raised."""
        out = self.run_case(case, point, inputs, indices, start, parts)
        return [] if out is None else [self.compare(case, part, out, indices, start) for part in parts]

    def run_case(self, case: Case, point: Point, inputs, indices, start, parts: list[Part]) -> torch.Tensor | None:
        """Run a case once from `start` and return its output; None if it may fail and raised."""
        self.bar.set_postfix_str(f"{self.where(point)}, check {case.name}", refresh=False)
        pool = self.pools[self.pool_layout(case)]
        out = torch.empty_like(inputs.v, memory_format=torch.contiguous_format)
        pool.write(indices[: len(start)], start)
        out.fill_(torch.nan)
        self.before_check(case, parts)
        try:
            self.calls_of(case, inputs, [indices], out)[0]()
        except Exception as error:
            if not case.may_fail:
                where = self.where(point)
                raise RuntimeError(f"{case.key} failed at {where}: {type(error).__name__}: {error}") from error
            self.failed[case] = f"failed with {type(error).__name__}: {error}"[:300]
            return None
        return out

    # --- times

    def _time(self, point: Point, timer: str, checked: dict[Case, Check], progress) -> list[dict]:
        """Time the cases against each other and check them again; return their rows.

        All are refused with the reason if the timer loses its records; another library's case is refused if it cannot
        be captured in a CUDA graph, and the others are timed.
        """
        if not checked:
            progress(1.0)
            return []
        self.before_timing(point)
        inputs, index_sets = self.inputs(point), self.index_sets(point)
        out = torch.empty_like(inputs.v, memory_format=torch.contiguous_format)
        calls = {case.key: self.calls_of(case, inputs, index_sets, out) for case in checked}
        guard = ReplayGuard(self, point, inputs, index_sets, out)
        options = {"samples": self.options.samples, "warmup": self.warmup, "progress": progress}
        options |= {"refresh": guard.refresh, "after": guard.judge}
        try:
            with nvtx_range(f"{self.where(point)}, {timer}"):  # a range to find it by in Nsight Systems
                timings = time_interleaved(calls, timer=timer, device=self.device, **options)
        except TimerUnavailable as error:
            return self._refusals(point, timer, checked, str(error))
        except RuntimeError as error:  # begins with the key of the case that raised
            named = [case for case in checked if str(error).startswith(f"{case.key} ")]
            failed = {case: checked[case] for case in named if case.may_fail}
            if not failed:
                raise
            others = {case: check for case, check in checked.items() if case not in failed}
            rows = self._refusals(point, timer, failed, str(error)[:300])
            return rows + self._time(point, timer, others, progress)
        pools.require_finite(self.pools, self.where(point))
        rows = []
        for case, after in self.check_after(point, list(checked)).items():
            replayed = guard.found.get(case.key, after)
            if not replayed.right:
                wrong = {"status": "wrong", "timer": timer, "wrong_on": [REPLAYED]}
                row = self.case_fields(case, point, replayed) | wrong
            elif after.right:
                row = self.case_fields(case, point, checked[case])
                row |= self.timing_fields(case, point, timings[case.key]) | self._checked_fields(case, point)
                row["checked"] += [REPLAYED] if case.key in guard.found else []
                row |= too_fast(row) | broken_seal(case)
            else:
                wrong = {"status": "wrong", "timer": timer, "wrong_on": [AFTER]}
                row = self.case_fields(case, point, after) | wrong
            rows.append(row)
        return rows

    def _checked_fields(self, case: Case, point: Point) -> dict:
        """Return a timed row's `checked`, the inputs on which it was right, and what says on which it was not, if any.

        wrong_on: kinds of hard inputs. wrong_errors: {kind: {"o", "state": largest error, relative to the largest
        element; None if not finite}}. allowed_error: the most that any element may be off, likewise relative.
        """
        memory, hard_kinds = (CALL_KINDS, self.hard_kinds[point]) if case.is_kernel else ((), ())
        outside = self.outside.get((point, case), {})
        fields = {"checked": [RANDOM, *memory, *(kind for kind in hard_kinds if kind not in outside), AFTER]}
        if outside:
            fields["wrong_on"] = list(outside)
            fields["wrong_errors"] = {
                kind: {"o": check.relative_error, "state": check.relative_error_state}
                for kind, check in outside.items()
            }
            fields["allowed_error"] = self.arithmetic + LAST_PLACE[self.io_dtype]
        return fields

    def _refusals(self, point: Point, timer: str, checked: dict[Case, Check], reason: str) -> list[dict]:
        refused = {"status": "refused", "timer": timer, "reason": reason}
        return [self.case_fields(case, point, check) | refused for case, check in checked.items()]

    def _stored(self, indices) -> torch.Tensor:
        """The state of these slots as every pool holds it exactly: rounded to the dtype, with no update pending."""
        first, *_ = self.pools.values()
        first.write(indices, first.read(indices))
        return first.read(indices)

    def _check_untimed(self, point: Point, rows: Rows) -> None:
        """Check the cases that no timer of this device can time, on hard inputs and padding, and add their rows."""
        if not self.untimed:
            return
        self.prepare(point)
        wrong = check_calls(self, point, [case for case in self.untimed if case.is_kernel])
        wrong |= self.check_hard(point, [case for case in self.untimed if case not in wrong])
        self._add_wrong(point, wrong, rows)
        variants = {case.name: case for case in self.untimed if case not in wrong}
        for case in variants.values():
            fields = {"backend": case.backend, "variant": case.variant, "layout": case.layout}
            rows.add(fields | {"status": "refused", "reason": self.failed.get(case, HOST_SYNC)})
