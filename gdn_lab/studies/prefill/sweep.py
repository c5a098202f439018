"""Sweep of prefill(): every variant that can serve, checked against the float64 reference, timed against the others.

A case is a variant ("triton/vk") and an indexing: "in_place" on a pool of the kernel's layout, or "detour": a KV kernel
on a VK pool, which gathers the states, transposes them, runs, transposes back and scatters.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from ... import ops, reference
from ...bench.cases import Case, Point, SweepOptions, cases_of, checked_names
from ...bench.pools import l2_state, random_pools
from ...bench.sweep import Part, Sweep
from ...costs import PREFILL_BYTES_FORMULA, PREFILL_FLOPS_FORMULA, prefill_bytes, prefill_flops
from ...hard_inputs import KINDS, HardCall, hard_inputs
from ...models import GDNShape
from ...pool import StatePool
from ...tolerances import PREFILL, Check, distance

INDEXINGS = ("in_place", "detour")
CALLS = {"cuda": 4, "cpu": 1}  # of one replay, each on slots of its own
HARD_TOKENS = 160  # of a sequence of hard inputs, at most: two chunks of 64 and a part of one


def prefill_sweep(shape: GDNShape, workloads, *, indexings=INDEXINGS, samples: int = 20, **options) -> list[dict]:
    """Time prefill() for each workload; return the rows, each of which is appended to `run` as it is made.

    workloads: (sequences, tokens of each). indexings: of INDEXINGS. samples, options: fields of
    bench.cases.SweepOptions. Inputs are contiguous, so that no library pays for copies that ours does not need.

    Rows: as decode_sweep()'s, with batch (sequences), length (of each), tokens (of all), tokens_per_s, flops,
    flops_formula and tflops; indexing is of INDEXINGS, layout the kernel's. max_abs_error is over the value heads of
    the last key head, which the reference computes. l2: "cold" where a call moves several L2 caches, else "warm",
    because every call has the same inputs.

    Raises as decode_sweep() does. A variant that synchronises with the host is checked on a GPU but not timed.
    """
    options = SweepOptions(samples=samples, **options)
    workloads = list(workloads)
    if not workloads or any(n < 1 or length < 1 for n, length in workloads):
        raise ValueError(f"workloads: expected (sequences, tokens of each), both at least 1, got {workloads}")
    cases, refused = cases_of("prefill", checked_names("indexings", indexings, INDEXINGS), shape, options)
    cases = [case for case in cases if case.indexing == "in_place" or case.layout == "KV"]
    sweep = PrefillSweep(shape, cases, refused, options, slots=0)
    return sweep.run([[Point(n, length)] for n, length in workloads])


class PrefillInputs(NamedTuple):
    """Packed sequences and their bounds: cu_seqlens [n + 1] int64."""

    tensors: ops.DecodeInputs
    bounds: torch.Tensor

    @property
    def v(self) -> torch.Tensor:
        return self.tensors.v


class PrefillSweep(Sweep):
    """prefill() of equally long sequences. Pools and slots are made for each workload."""

    phase = "prefill"
    rows_after = 1
    call_rows = 3
    arithmetic = PREFILL

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.warmup = 3 if self.device.type == "cuda" else 1

    def make_pools(self) -> None:
        """Leave the pools to prepare(): their slots depend on the workload."""

    def prepare(self, point: Point) -> None:
        n, layouts = point.batch, {self.pool_layout(case) for case in self.cases + self.untimed}
        self.pools.clear()
        self.slots = CALLS[self.device.type] * n + 1
        options = {"dtype": self.dtype, "device": self.device}
        self.pools = random_pools(self.shape, self.slots, layouts, seed=self.seed, **options)
        self.scratch = StatePool(self.shape, n + 1, layout="KV", **options)
        x = ops.make_inputs(self.shape, n * point.tokens, device=self.device, dtype=self.io_dtype, seed=self.seed)
        self.packed = self._packed(x, n, point.tokens)

    def _packed(self, x: ops.DecodeInputs, sequences: int, length: int) -> PrefillInputs:
        bounds = torch.arange(0, sequences * length + 1, length, device=self.device)
        return PrefillInputs(replace(x, **{name: getattr(x, name).contiguous() for name in "qkvab"}), bounds)

    def pool_layout(self, case: Case) -> str:
        return "VK" if case.indexing == "detour" else case.layout

    def inputs(self, point: Point) -> PrefillInputs:
        return self.packed

    def strided_inputs(self, point: Point) -> PrefillInputs:
        length = min(point.tokens, HARD_TOKENS)
        options = {"device": self.device, "dtype": self.io_dtype, "seed": self.seed}
        x = ops.make_inputs(self.shape, point.batch * length, **options)
        return PrefillInputs(x, torch.arange(0, point.batch * length + 1, length, device=self.device))

    def tokens_of(self, inputs: PrefillInputs, row: int) -> slice:
        return slice(int(inputs.bounds[row]), int(inputs.bounds[row + 1]))

    def hard_calls(self, point: Point):
        """Make calls of at most as many sequences as the point has, each of one kind, of at most HARD_TOKENS tokens."""
        length, names = min(point.tokens, HARD_TOKENS), list(KINDS)
        options = {"device": self.device, "dtype": self.io_dtype, "seed": self.seed}
        by_kind = hard_inputs(self.shape, length, **options)
        calls = []
        for start in range(0, len(names), point.batch):
            kinds = names[start : start + point.batch]
            sequences = [by_kind[kind].inputs for kind in kinds]
            joined = {name: torch.cat([getattr(x, name) for x in sequences]) for name in "qkvab"}
            inputs = self._packed(replace(sequences[0], **joined), len(kinds), length)
            calls.append(HardCall(kinds, inputs, [by_kind[kind].state_std for kind in kinds]))
        return calls

    def batch_of(self, inputs: PrefillInputs) -> int:
        return len(inputs.bounds) - 1

    def calls(self, point: Point) -> int:
        return CALLS[self.device.type]

    def calls_of(self, case: Case, inputs: PrefillInputs, index_sets, out) -> list:
        x, bounds = inputs
        options = x.gates() | {"pool": self.pools[self.pool_layout(case)], "backend": case.name, "out": out}
        if case.indexing == "in_place":
            call = partial(ops.prefill, *x.arguments(), cu_seqlens=bounds, **options)
        else:
            rows = torch.arange(1, len(bounds), dtype=torch.int32, device=self.device)
            options |= {"scratch": self.scratch, "rows": rows}
            call = partial(ops.prefill_detour, *x.arguments(), cu_seqlens=bounds, **options)
        return [partial(call, indices=indices) for indices in index_sets]

    def reference(self, inputs: PrefillInputs, state, rows=None) -> list[Part]:
        """Compute the value heads of the last key head, of all sequences or of consecutive ones, on the CPU."""
        x, group = inputs.tensors, self.shape.group
        rows = list(range(len(state))) if rows is None else rows
        bounds = inputs.bounds[rows[0] : rows[-1] + 2]
        tokens = slice(int(bounds[0]), int(bounds[-1]))
        o, states = reference.prefill_chunked(
            x.q[tokens, -1:],
            x.k[tokens, -1:],
            x.v[tokens, -group:],
            x.a[tokens, -group:],
            x.b[tokens, -group:],
            A_log=x.A_log[-group:],
            dt_bias=x.dt_bias[-group:],
            state=state[rows, -group:],
            cu_seqlens=bounds - bounds[0],
        )
        return [Part(rows, o, states, tokens)]

    def compare(self, case: Case, part: Part, out, indices, start) -> Check:
        pool, group = self.pools[self.pool_layout(case)], self.shape.group
        right_o, error_o = distance(out[part.tokens, -group:].cpu(), part.o, out.dtype, self.arithmetic)
        state = pool.read(indices[part.rows])[:, -group:].cpu()
        right_state, error_state = distance(state, part.states, pool.dtype, self.arithmetic)
        finite = bool(torch.isfinite(out).all()) and bool(torch.isfinite(pool.state).all())
        return Check(right_o and right_state and finite, error_o, error_state)

    def where(self, point: Point) -> str:
        return f"{point.batch} x {point.tokens}"

    def weight(self, point: Point) -> float:
        return point.batch * point.tokens

    def l2(self, point: Point) -> str:
        return l2_state(self.bytes(point), self.device)

    def bytes(self, point: Point, case=None) -> int:
        return prefill_bytes(self.shape, point.batch * point.tokens, point.batch, self.dtype, self.io_dtype)

    def bytes_formula(self, case: Case) -> str:
        return PREFILL_BYTES_FORMULA

    def case_fields(self, case: Case, point: Point, check: Check) -> dict:
        return {
            "backend": case.backend,
            "variant": case.variant,
            "indexing": case.indexing,
            "layout": case.layout,
            "batch": point.batch,
            "length": point.tokens,
            "tokens": point.batch * point.tokens,
            "slots": self.slots,
            "max_abs_error": check.max_abs_error,
            "max_abs_error_state": check.max_abs_error_state,
        }

    def timing_fields(self, case: Case, point: Point, timing) -> dict:
        tokens, flops = point.batch * point.tokens, prefill_flops(self.shape, point.batch * point.tokens)
        return super().timing_fields(case, point, timing) | {
            "tokens_per_s": tokens / timing.median_us * 1e6,
            "flops": flops,
            "flops_formula": PREFILL_FLOPS_FORMULA,
            "tflops": flops / timing.median_us / 1e6,
        }
