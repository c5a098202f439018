"""A sweep of prefill: every variant that can serve, checked against the oracle, then timed against the others.

A variant is a kernel of a backend ("triton/vk") and an indexing: "in_place" on a pool of the kernel's layout, or
"detour": a KV kernel on a VK pool, by gathering, transposing, running, transposing back and scattering.
"""

from dataclasses import replace
from functools import partial

import torch

from ... import ops, reference
from ...bench.cases import Case, cases_of, checked_names, checked_timers
from ...bench.pools import L2_MULTIPLE, STATE_STD
from ...bench.progress import part_of, progress_bar
from ...bench.results import Run
from ...bench.roof import Roof, l2_bytes, measure_roof
from ...bench.rows import Rows, common_fields, recorded, timing_fields
from ...bench.timers import TimerUnavailable, time_interleaved
from ...costs import PREFILL_BYTES_FORMULA, PREFILL_FLOPS_FORMULA, prefill_bytes, prefill_flops
from ...models import GDNShape
from ...pool import StatePool
from ...tolerances import PREFILL, Check, distance, worse

INDEXINGS = ("in_place", "detour")
OURS = ("triton", "torch")  # these must not fail; a library's failure is recorded, and the others go on
CALLS = {"cuda": 4, "cpu": 1}  # on slots of their own, in one replay


def prefill_sweep(
    shape: GDNShape, workloads, *, variants="all", indexings=INDEXINGS, dtype=torch.bfloat16, io_dtype=torch.bfloat16,
    device=None, run: Run | None = None, timers=None, samples: int = 20, seed: int = 0, roof: Roof | None = None,
    model: str | None = None, tp: int | None = None, progress: bool = True,
) -> list[dict]:  # fmt: skip
    """Times prefill() for each workload; returns the rows, each of which is appended to `run` as it is made.

    workloads: (sequences, tokens of each). variants, indexings, dtype, io_dtype, device, run, timers, samples, seed,
    roof, model, tp: as in decode_sweep(). Inputs are contiguous, so that no library pays for copies that ours does not
    need.

    Rows: as decode_sweep()'s, with batch (sequences), length (of each), tokens (of all), tokens_per_s, flops,
    flops_formula and tflops; indexing is of INDEXINGS, layout the kernel's. max_abs_error is over the value heads of
    the last key head, which the oracle computes. l2: "cold" where a call moves several L2 caches; "warm" where it does
    not, because every call has the same inputs.

    Raises as decode_sweep() does; a library that fails is recorded as refused. On a GPU `torch` is refused: it reads
    cu_seqlens on the host.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    timers = checked_timers(timers, device)
    workloads = list(workloads)
    if not workloads or any(n < 1 or length < 1 for n, length in workloads):
        raise ValueError(f"workloads: expected (sequences, tokens of each), both at least 1, got {workloads}")
    cases, refused = _cases(variants, indexings, shape, dtype, io_dtype, device)
    rows = Rows(run, common_fields("prefill", shape, dtype, io_dtype, model=model, tp=tp, seed=seed))
    with recorded(run), ops.checks(False):
        for row in refused:
            rows.add(row)
        if not cases:
            return rows
        roof = roof or measure_roof(device)
        total = sum(n * length for n, length in workloads) * (1 + len(timers))
        with progress_bar(what="prefill", total=total, show=progress) as bar:
            for n, length in workloads:
                work = _Workload(shape, cases, dtype, io_dtype, device, n, length, seed, roof)
                bar.set_postfix_str(f"{n} x {length}, against the oracle", refresh=False)
                checks = work.check()
                bar.update(n * length)
                for case, check in checks.items():
                    if not check.right:
                        rows.add(work.case_fields(case, check) | {"status": "wrong"})
                for case, reason in work.failed.items():
                    rows.add(work.case_fields(case, Check(False, None, None)) | {"status": "refused", "reason": reason})
                right = [case for case, check in checks.items() if check.right]
                for timer in timers:
                    bar.set_postfix_str(f"{n} x {length}, {timer}", refresh=False)
                    for row in work.time(timer, samples, right, checks, part_of(bar, n * length)):
                        rows.add(row)
    return rows


class _Workload:
    """Inputs, pools and slots of one number of sequences and one length, and what is done with them."""

    def __init__(self, shape, cases, dtype, io_dtype, device, sequences, length, seed, roof):
        self.shape, self.cases, self.dtype, self.io_dtype, self.device = shape, cases, dtype, io_dtype, device
        self.sequences, self.length, self.tokens, self.roof = sequences, length, sequences * length, roof
        x = ops.make_inputs(shape, self.tokens, device=device, dtype=io_dtype, seed=seed)
        self.inputs = replace(x, **{name: getattr(x, name).contiguous() for name in "qkvab"})
        self.bounds = torch.arange(0, self.tokens + 1, length, device=device)
        self.out = torch.empty_like(self.inputs.v)
        self.slots = CALLS[device.type] * sequences + 1
        make = partial(StatePool, shape, dtype=dtype, device=device)
        layouts = {_pool_layout(case) for case in cases}
        self.pools = {layout: make(self.slots, layout=layout) for layout in layouts}
        rng = torch.Generator(device).manual_seed(seed)
        for pool in self.pools.values():
            pool.state.normal_(0, STATE_STD, generator=rng)
        self.scratch = make(sequences + 1, layout="KV")
        self.failed: dict[Case, str] = {}  # of libraries, why
        self.rows = torch.arange(1, sequences + 1, dtype=torch.int32, device=device)
        order = torch.randperm(self.slots - 1, generator=torch.Generator().manual_seed(seed)) + 1
        # copies, because FlashInfer needs indices to begin at a multiple of 32 bytes
        self.index_sets = [part.clone() for part in order.to(device, torch.int32).split(sequences)]

    @property
    def bytes(self) -> int:
        return prefill_bytes(self.shape, self.tokens, self.sequences, self.dtype, self.io_dtype)

    def call(self, case: Case, indices):
        """One call of a case, without arguments."""
        options = self.inputs.gates() | {"pool": self.pools[_pool_layout(case)], "backend": case.name, "out": self.out}
        options |= {"indices": indices, "cu_seqlens": self.bounds}
        if case.indexing == "in_place":
            return partial(ops.prefill, *self.inputs.arguments(), **options)
        return partial(ops.prefill_detour, *self.inputs.arguments(), scratch=self.scratch, rows=self.rows, **options)

    def check(self) -> dict[Case, Check]:
        """Each case once from the same state, the value heads of the last key head against the oracle."""
        indices, group = self.index_sets[0], self.shape.group
        start = next(iter(self.pools.values())).read(indices)  # as stored, so every pool holds it exactly
        x = self.inputs
        o, state = reference.prefill_chunked(
            x.q[:, -1:], x.k[:, -1:], x.v[:, -group:], x.a[:, -group:], x.b[:, -group:], A_log=x.A_log[-group:],
            dt_bias=x.dt_bias[-group:], state=start[:, -group:], cu_seqlens=self.bounds,
        )  # fmt: skip
        checks = {}
        for case in self.cases:
            pool = self.pools[_pool_layout(case)]
            pool.write(indices, start)
            self.out.fill_(torch.nan)
            try:
                self.call(case, indices)()
            except Exception as error:
                if case.backend in OURS:
                    where = f"{self.sequences} x {self.length}"
                    raise RuntimeError(f"{case.key} failed at {where}: {type(error).__name__}: {error}") from error
                self.failed[case] = f"failed with {type(error).__name__}: {error}"[:300]
                continue
            right_o, error_o = distance(self.out[:, -group:].cpu(), o, self.out.dtype, PREFILL)
            right_state, error_state = distance(pool.read(indices)[:, -group:].cpu(), state, pool.dtype, PREFILL)
            finite = bool(torch.isfinite(self.out).all()) and bool(torch.isfinite(pool.state).all())
            checks[case] = Check(right_o and right_state and finite, error_o, worse(error_state, 0.0))
        return checks

    def time(self, timer, samples, cases, checks, share) -> list[dict]:
        """Rows of the cases that are right, timed in turns; refusals with the reason if the timer cannot do it."""
        if not cases:
            share(1.0)
            return []
        calls = {case.key: [self.call(case, indices) for indices in self.index_sets] for case in cases}
        warmup = 3 if self.device.type == "cuda" else 1
        try:
            timings = time_interleaved(
                calls, timer=timer, device=self.device, samples=samples, warmup=warmup, progress=share
            )
        except TimerUnavailable as error:
            refused = {"status": "refused", "timer": timer, "reason": str(error)}
            return [self.case_fields(case, checks[case]) | refused for case in cases]
        except RuntimeError as error:  # names the variant that cannot be captured
            failed = [case for case in cases if case.backend not in OURS and str(error).startswith(case.key)]
            if not failed:
                raise
            rest = [case for case in cases if case not in failed]
            refused = {"status": "refused", "timer": timer, "reason": str(error)[:300]}
            rows = [self.case_fields(case, checks[case]) | refused for case in failed]
            return rows + self.time(timer, samples, rest, checks, share)
        return [self.case_fields(case, checks[case]) | self.timing_fields(timings[case.key]) for case in cases]

    def case_fields(self, case: Case, check: Check) -> dict:
        return {
            "backend": case.backend, "variant": case.variant, "indexing": case.indexing, "layout": case.layout,
            "batch": self.sequences, "length": self.length, "tokens": self.tokens, "slots": self.slots,
            "max_abs_error": check.max_abs_error, "max_abs_error_state": check.max_abs_error_state,
        }  # fmt: skip

    def timing_fields(self, timing) -> dict:
        l2, flops = "not controlled", prefill_flops(self.shape, self.tokens)
        if self.device.type == "cuda":
            l2 = "cold" if self.bytes >= L2_MULTIPLE * l2_bytes(self.device) else "warm"
        return timing_fields(timing, self.bytes, PREFILL_BYTES_FORMULA, self.roof, self.device, l2) | {
            "tokens_per_s": self.tokens / timing.median_us * 1e6, "flops": flops,
            "flops_formula": PREFILL_FLOPS_FORMULA, "tflops": flops / timing.median_us / 1e6,
        }  # fmt: skip


def _pool_layout(case: Case) -> str:
    return "VK" if case.indexing == "detour" else case.layout


def _cases(variants, indexings, shape, dtype, io_dtype, device) -> tuple[list[Case], list[dict]]:
    """The cases that can run, and a row for each variant that cannot; KV kernels also by the detour."""
    indexings = checked_names("indexings", indexings, INDEXINGS)
    cases, refused = cases_of("prefill", variants, indexings, shape, dtype, io_dtype, device)
    cases = [case for case in cases if case.indexing == "in_place" or case.layout == "KV"]
    if device.type == "cuda":
        reason = "reads cu_seqlens on the host, which the timers of a GPU cannot have; correct, and not timed"
        names = {(case.backend, case.variant, case.layout) for case in cases if case.backend == "torch"}
        cases = [case for case in cases if case.backend != "torch"]
        for backend, variant, layout in sorted(names):
            row = {"status": "refused", "backend": backend, "variant": variant, "layout": layout, "reason": reason}
            refused.append(row)
    return cases, refused
