"""A sweep: every variant that can serve, checked against the oracle, then timed against the others, row by row.

A variant is a kernel of a backend ("triton/vk") and an indexing: "in_place", or "gather_scatter" (gather the slots into
a batch, run on it, scatter back).
"""

from contextlib import contextmanager, nullcontext
from functools import partial
from math import ceil
from typing import NamedTuple

import torch

from .. import ops, reference
from ..backends.base import dtype_name
from ..backends.registry import backends, refusal
from ..measure.progress import progress as progress_bar
from ..measure.results import Run
from ..measure.roofline import DECODE_BYTES_FORMULA, Roof, datasheet_gb_per_s, decode_bytes, l2_bytes, measure_roof
from ..measure.timing import TIMERS, TimerUnavailable, Timing, time_interleaved, unavailable
from ..pool import StatePool
from ..profiling import span
from ..shapes import GDNShape
from ..tolerances import Check, distance, worse

INDEXINGS = ("in_place", "gather_scatter")

STATE_STD = 0.1  # of the random state at the start: about what updates of unit v and k leave in a running one
L2_MULTIPLE = 4  # state touched before a slot comes up again, in L2 caches
MIN_REPLAY_US = 400  # a replay should last this long even at the roof, so that its start does not matter
POOLS_SHARE = 0.4  # of free GPU memory that pools may take
ROWS_AT_ONCE = 32  # of the oracle and the comparison, which work in float64


class Case(NamedTuple):
    """One variant with one indexing."""

    backend: str
    variant: str
    layout: str
    indexing: str

    @property
    def name(self) -> str:
        return f"{self.backend}/{self.variant}"

    @property
    def key(self) -> str:
        return f"{self.name} {self.indexing}"


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
    unknown = [indexing for indexing in indexings if indexing not in INDEXINGS]
    if unknown or not indexings:
        raise ValueError(f"indexings: expected some of {', '.join(INDEXINGS)}, got {', '.join(unknown) or 'none'}")
    cases, refused = cases_of("decode", variants, indexings, Case, shape, dtype, io_dtype, device)
    slots = pool_slots(slots, shape, dtype, max(batches), cases, device)
    rows = Rows(run, common_fields("decode", shape, dtype, io_dtype, model=model, tp=tp, seed=seed, tokens=1))
    with recorded(run), ops.checks(False):
        for row in refused:
            rows.add(row)
        if not cases:
            return rows
        sweep = Sweep(shape, cases, dtype, io_dtype, device, slots, seed, roof or measure_roof(device), max(batches))
        total = sum(map(weight, batches)) * (1 + len(timers))
        with progress_bar(what="decode", total=total) if progress else nullcontext(NoBar()) as bar:
            checks = {}
            for batch in batches:
                bar.set_postfix_str(f"B = {batch}, against the oracle", refresh=False)
                checks[batch] = sweep.check(batch)
                for case, check in checks[batch].items():
                    if not check.right:
                        rows.add(sweep.case_fields(case, batch, check) | {"status": "wrong"})
                bar.update(weight(batch))
            for timer in timers:
                for batch in batches:
                    bar.set_postfix_str(f"B = {batch}, {timer}", refresh=False)
                    right = [case for case, check in checks[batch].items() if check.right]
                    for row in sweep.time(batch, timer, samples, right, checks[batch], Share(bar, weight(batch))):
                        rows.add(row)
    return rows


class Sweep:
    """Pools, and what is done with them for one batch size at a time."""

    def __init__(self, shape, cases, dtype, io_dtype, device, slots, seed, roof, max_batch):
        self.shape, self.cases, self.dtype, self.io_dtype, self.device = shape, cases, dtype, io_dtype, device
        self.slots, self.seed, self.roof = slots, seed, roof
        self.datasheet = datasheet_gb_per_s(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        layouts = {case.layout for case in cases}
        gathering = {case.layout for case in cases if case.indexing == "gather_scatter"}
        self.pools = {layout: StatePool(shape, slots, layout=layout, dtype=dtype, device=device) for layout in layouts}
        self.scratch = {
            layout: StatePool(shape, max_batch + 1, layout=layout, dtype=dtype, device=device) for layout in gathering
        }
        rng = torch.Generator(device).manual_seed(seed)
        for pool in self.pools.values():
            for part in pool.state.split(64):
                part.normal_(0, STATE_STD, generator=rng)

    def index_sets(self, batch: int) -> list[torch.Tensor]:
        """Slots of each call, int32 [B] each: a random order of all slots cut into calls, and over again."""
        order = torch.randperm(self.slots - 1, generator=torch.Generator().manual_seed(self.seed)) + 1
        sets = order.to(self.device, torch.int32).split(batch)[: (self.slots - 1) // batch]
        # copies, because FlashInfer needs indices to begin at a multiple of 32 bytes
        return [sets[call % len(sets)].clone() for call in range(self.calls(batch))]

    def calls(self, batch: int) -> int:
        """Calls in one replay: enough to go round several L2 caches, and to last."""
        if self.device.type == "cpu":
            return min(4, (self.slots - 1) // batch)
        at_roof_us = self.bytes(batch) / self.roof.gb_per_s / 1e3
        cold = ceil(L2_MULTIPLE * l2_bytes(self.device) / self.touched(batch, 1))
        long = min(1024, ceil(MIN_REPLAY_US / at_roof_us))
        return min(4096, max(cold, long, 16 if at_roof_us < 100 else 8))

    def touched(self, batch: int, calls: int) -> int:
        """Bytes of state that `calls` calls read, each slot once."""
        distinct = min(calls, (self.slots - 1) // batch)
        return distinct * batch * self.shape.state_elements * self.dtype.itemsize

    def l2(self, batch: int) -> str:
        if self.device.type == "cpu":
            return "not controlled"
        return "cold" if self.touched(batch, self.calls(batch)) >= L2_MULTIPLE * l2_bytes(self.device) else "warm"

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

    def time(self, batch, timer, samples, cases, checks, share) -> list[dict]:
        """Rows of the cases that are right, timed in turns; refusals with the reason if the timer cannot do it."""
        if not cases:
            share.update(1)
            return []
        inputs, index_sets = self.inputs(batch), self.index_sets(batch)
        out = torch.empty_like(inputs.v, memory_format=torch.contiguous_format)
        calls = {case.key: self.calls_of(case, inputs, index_sets, out) for case in cases}
        try:
            with span(f"B = {batch}, {timer}"):  # a range to find it by in Nsight Systems
                timings = time_interleaved(calls, timer=timer, device=self.device, samples=samples, progress=share)
        except TimerUnavailable as error:
            refused = {"status": "refused", "timer": timer, "reason": str(error)}
            return [self.case_fields(case, batch, checks[case]) | refused for case in cases]
        self.check_finite(batch)
        return [
            self.case_fields(case, batch, checks[case]) | self.timing_fields(case, batch, timings[case.key])
            for case in cases
        ]

    def check_finite(self, batch: int) -> None:
        """RuntimeError if some variant has driven its state to NaN or infinity over the replays."""
        for layout, pool in self.pools.items():
            if not all(bool(torch.isfinite(part).all()) for part in pool.state.split(64)):
                raise RuntimeError(
                    f"the state of the {layout} pool is no longer finite after the calls at B = {batch}; times on it "
                    "mean nothing: run the variants one by one to find which it is"
                )

    def case_fields(self, case: Case, batch: int, check: Check) -> dict:
        return {
            "backend": case.backend, "variant": case.variant, "indexing": case.indexing, "layout": case.layout,
            "batch": batch, "slots": self.slots, "max_abs_error": check.max_abs_error,
            "max_abs_error_state": check.max_abs_error_state,
        }  # fmt: skip

    def timing_fields(self, case, batch: int, timing: Timing) -> dict:
        gb_per_s = self.bytes(batch, case) / timing.median_us / 1e3
        return {
            "status": "ok", "timer": timing.timer, "median_us": timing.median_us, "p20_us": timing.p20_us,
            "p80_us": timing.p80_us, "count": timing.count, "calls_per_sample": timing.calls_per_sample,
            "l2": self.l2(batch), "bytes": self.bytes(batch, case), "bytes_formula": self.bytes_formula(case),
            "gb_per_s": gb_per_s, "roof_gb_per_s": self.roof.gb_per_s, "share_of_roof": gb_per_s / self.roof.gb_per_s,
            "roof_method": self.roof.method, "datasheet_gb_per_s": self.datasheet,
        }  # fmt: skip


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


# --- arguments


def checked_batches(batches) -> list[int]:
    batches = list(batches)
    if not batches or any(type(batch) is not int or batch < 1 for batch in batches) or len(set(batches)) < len(batches):
        raise ValueError(f"batches: expected different positive ints, got {batches}")
    return batches


def checked_timers(timers, device) -> list[str]:
    if timers is None:
        return [timer for timer in TIMERS if unavailable(timer, device) is None]
    for timer in timers:
        if reason := unavailable(timer, device):
            raise TimerUnavailable(reason)
    return list(timers)


def cases_of(phase, variants, kinds, make, shape, dtype, io_dtype, device) -> tuple[list, list[dict]]:
    """The cases that can run, make(backend, variant, layout, kind) for each of `kinds`, and a row for each variant and
    reason why it cannot. A kind of verify is its mode."""
    reports = backends(device)
    names = {f"{report.name}/{variant.name}" for report in reports for variant in report.variants}
    wanted = [report.name for report in reports] if variants == "all" else list(variants)
    unknown = [name for name in wanted if name not in names | {report.name for report in reports}]
    if unknown or not wanted:
        raise ValueError(f"variants: expected some of {', '.join(sorted(names))}, got {', '.join(unknown) or 'none'}")
    cases, refused = [], []
    for report in reports:
        if report.name in wanted and not report.variants:
            refused.append({"backend": report.name, "variant": "any", "reason": report.reason})
        for variant in report.variants:
            name, reasons = f"{report.name}/{variant.name}", {}
            if name not in wanted and (report.name not in wanted or phase not in variant.phases):
                continue
            for kind in kinds:
                reason = refusal(
                    name, shape, layout=variant.layout, dtype=dtype, device=device, io_dtype=io_dtype, phase=phase,
                    mode=kind if phase == "verify" else None,
                )  # fmt: skip
                if reason is None:
                    cases.append(make(report.name, variant.name, variant.layout, kind))
                else:
                    reasons[reason] = {"backend": report.name, "variant": variant.name, "layout": variant.layout}
            refused += [case | {"reason": reason} for reason, case in reasons.items()]
    return cases, [{"status": "refused"} | row for row in refused]


def pool_slots(slots, shape, dtype, max_batch, cases, device) -> int:
    """Slots of each pool: 2 · B + 1 at least, so that consecutive calls share none."""
    least = 2 * max_batch + 1
    if slots is not None:
        if type(slots) is not int or slots < least:
            raise ValueError(
                f"slots: expected an int of at least {least} (2 · B + 1 for B = {max_batch}), got {slots!r}"
            )
        return slots
    if device.type == "cpu" or not cases:
        return max(least, 16)
    per_slot = StatePool.slot_nbytes(shape, dtype)
    wanted = max(2048, least, ceil(2 * L2_MULTIPLE * l2_bytes(device) / per_slot["state"]) + 1)
    torch.cuda.empty_cache()
    layouts = len({case.layout for case in cases})
    budget = int(POOLS_SHARE * torch.cuda.mem_get_info(device)[0])
    affordable = budget // (layouts * sum(per_slot.values())) - (max_batch + 1)  # the rest is scratch for gathering
    if affordable < least:
        size = sum(per_slot.values()) / 1e6
        raise ValueError(
            f"batches: B = {max_batch} needs {layouts} pools of {least} slots of {size:.1f} MB, more than "
            f"{POOLS_SHARE:.0%} of the GPU's free memory ({budget / 1e9:.1f} GB); choose smaller batches"
        )
    return min(wanted, affordable)


# --- progress and the run's record


class Rows(list):
    """The rows of a sweep so far. add() completes one with what all share and writes it to the run, if any, at once."""

    def __init__(self, run: Run | None, common: dict | None = None):
        self.run, self.common = run, common or {}

    def add(self, row: dict) -> None:
        row = self.common | row
        if self.run is not None:
            self.run.append(row)
        self.append(row)


def common_fields(phase: str, shape: GDNShape, dtype, io_dtype, **fields) -> dict:
    """What all rows of a sweep over one shape share, with any further fields."""
    common = {"phase": phase, "state_dtype": dtype_name(dtype), "io_dtype": dtype_name(io_dtype)} | fields
    names = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")
    return common | {name: getattr(shape, name) for name in names}


@contextmanager
def recorded(run: Run | None):
    """Records in run.json that the sweep was interrupted or failed, and passes it on."""
    try:
        yield
    except BaseException as error:
        if run is not None:
            run.finish("failed" if isinstance(error, Exception) else "interrupted")
        raise


def weight(batch: int) -> int:
    """Share of a batch in the bar: time grows with B from a floor."""
    return batch + 16


class Share:
    """A part of the bar that fills as its own fractions add up to 1."""

    def __init__(self, bar, weight: float):
        self.bar, self.weight = bar, weight

    def update(self, fraction: float) -> None:
        self.bar.update(fraction * self.weight)


class NoBar:
    def update(self, amount: float) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        pass
