"""The check of memory before timing: each fault that it is for is planted in eager PyTorch, and named in the row."""

from dataclasses import replace

import pytest
import torch

from gdn_lab import GDNShape, StatePool, ops
from gdn_lab.bench import sweep
from gdn_lab.bench.call_checks import CALL_KINDS, PADDING, STRIDED, UNTOUCHED, changed_slots, guarded
from gdn_lab.bench.results import Run, load
from gdn_lab.bench.roof import Roof
from gdn_lab.bench.rows import MOST_SHARE, too_fast
from gdn_lab.report.timed import Timed
from gdn_lab.studies.decode_kernels.sweep import decode_sweep
from gdn_lab.studies.prefill.sweep import prefill_sweep
from gdn_lab.studies.verify.sweep import verify_sweep

SHAPE = GDNShape(1, 2, 16, 16)
ROOF = Roof(10.0, 9.0, 11.0, 20, 1 << 20, "a bandwidth for tests")
QUICK = dict(device="cpu", samples=1, roof=ROOF, progress=False, variants=["torch"])
IN_PLACE = {"indexings": ["in_place"]}
SWEEPS = {
    "decode": lambda **options: decode_sweep(SHAPE, [1, 5], **IN_PLACE, **QUICK | options),
    "verify": lambda **options: verify_sweep(SHAPE, [3], [2], **QUICK | options),
    "prefill": lambda **options: prefill_sweep(SHAPE, [(1, 5), (4, 3)], **IN_PLACE, **QUICK | options),
}
each_phase = pytest.mark.parametrize("phase", SWEEPS)


def planted(monkeypatch, fault):
    """Have every launch of a kernel go through fault(launch, q, k, v, a, b, **options)."""
    right = ops.launch_for

    def launch_for(name, call):
        launch = right(name, call)
        return lambda *arguments, **options: fault(launch, *arguments, **options)

    monkeypatch.setattr(ops, "launch_for", launch_for)


def wrong_on(rows):
    rows = [row for row in rows if row.get("mode") != "commit"]
    assert rows and {row["status"] for row in rows} == {"wrong"}, [row["status"] for row in rows]
    assert not any("median_us" in row for row in rows)
    return {tuple(row["wrong_on"]) for row in rows}


@each_phase
def test_what_is_right_is_said_to_be_checked(phase):
    rows = [row for row in SWEEPS[phase]() if row.get("mode") != "commit"]
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["checked"][1:4] == list(CALL_KINDS) for row in rows)


def test_a_row_with_copies_around_its_kernel_does_not_claim_it():
    rows = decode_sweep(SHAPE, [2], **QUICK)
    assert {row["indexing"]: PADDING in row["checked"] for row in rows} == {"in_place": True, "gather_scatter": False}


def ignores_padding(launch, *arguments, indices, state, **options):
    """Take index -1 for a slot: the last one, as PyTorch counts."""
    last = torch.full_like(indices, len(state.data) - 1)
    launch(*arguments, indices=torch.where(indices < 0, last, indices), state=state, **options)


@each_phase
def test_a_kernel_that_ignores_padding_is_wrong(phase, monkeypatch):
    planted(monkeypatch, ignores_padding)
    if phase == "verify":  # where the state is not updated, such a kernel only reads it
        rows = SWEEPS[phase](modes=["update"])
    else:
        rows = SWEEPS[phase]()
    assert wrong_on(rows) == {(PADDING,)}


def test_notebook_02_says_it(monkeypatch, tmp_path):
    planted(monkeypatch, ignores_padding)
    with Run.create("02_decode_kernels", {}, root=tmp_path) as run:
        rows = decode_sweep(SHAPE, [3], run=run, **IN_PLACE, **QUICK | {"variants": ["torch/vk"]})
    assert load(run.folder)[1] == rows
    (sentence,) = Timed(rows).not_timed()
    assert sentence.startswith("torch/vk wrong at B = 3, padding row (largest error 0")


def test_a_kernel_that_writes_before_the_pool_is_wrong(monkeypatch):
    """Index -1 as a kernel that computes addresses takes it: the memory before slot 0."""

    def computes_addresses(launch, *arguments, indices, state, **options):
        launch(*arguments, indices=indices, state=state, **options)
        if bool((indices < 0).any()):
            data = state.data
            slot = data[0].numel()
            data.as_strided(data[0].shape, data[0].stride(), data.storage_offset() - slot).add_(1)

    planted(monkeypatch, computes_addresses)
    assert wrong_on(SWEEPS["decode"]()) == {(PADDING,)}


@each_phase
def test_a_kernel_that_touches_other_slots_is_wrong(phase, monkeypatch):
    """A single bit in a slot that the call does not name. The pool of the timed calls is too large to compare."""

    def careless(launch, *arguments, indices, state, **options):
        launch(*arguments, indices=indices, state=state, **options)
        free = [slot for slot in range(1, len(state.data)) if slot not in indices.tolist()]
        state.data.view(torch.int16)[free[:1], -1, -1, -1] ^= 1

    planted(monkeypatch, careless)
    assert wrong_on(SWEEPS[phase]()) == {(UNTOUCHED, PADDING)}


def test_a_kernel_that_takes_views_for_contiguous_is_wrong(monkeypatch):
    """Prefill, whose timed inputs are contiguous."""

    def reads_as_if_contiguous(launch, q, *arguments, **options):
        launch(q.as_strided(q.shape, torch.empty(q.shape).stride()), *arguments, **options)

    planted(monkeypatch, reads_as_if_contiguous)
    found = wrong_on(SWEEPS["prefill"]())
    assert found == {(STRIDED, PADDING)}


def test_what_padding_may_do():
    """Any output of its own row, and anything in the null slot."""
    with pytest.MonkeyPatch.context() as patch:

        def overwrites_the_null_slot(launch, *arguments, indices, state, out, **options):
            launch(*arguments, indices=indices, state=state, out=out, **options)
            state.data[0] = 7.0
            if out.dim() == 3 and len(out) == len(indices):
                out[indices < 0] = torch.nan

        planted(patch, overwrites_the_null_slot)
        assert {row["status"] for row in SWEEPS["decode"]()} == {"ok"}


def test_the_pools_of_the_sweep_are_given_back(monkeypatch):
    """Also where the call raises."""
    pools = []
    check_hard = sweep.Sweep.check_hard
    monkeypatch.setattr(sweep.Sweep, "check_hard", lambda self, *a: pools.append(self.pools) or check_hard(self, *a))
    SWEEPS["decode"]()
    assert all(pool.slots >= 11 for each in pools for pool in each.values())

    def refuses_padding(launch, *arguments, indices, **options):
        if bool((indices < 0).any()):
            raise ValueError("no padding")
        launch(*arguments, indices=indices, **options)

    planted(monkeypatch, refuses_padding)
    with pytest.raises(RuntimeError, match="torch/vk in_place failed at B = 2: "):
        decode_sweep(SHAPE, [1], **IN_PLACE, **QUICK | {"variants": ["torch/vk"]})


def test_the_memory_before_a_pool_is_guarded():
    pool = StatePool(SHAPE, 4, dtype=torch.float32)
    memory = guarded(pool)
    before, slots = memory.clone(), torch.tensor([2, -1], dtype=torch.int32)
    assert len(memory) == 6 and pool.launch_state.data.data_ptr() == pool.state.data_ptr() == memory[1].data_ptr()
    pool.state[0] = pool.state[2] = 1.0
    assert changed_slots(before, memory, slots) == []
    memory[0, 0, 0, 0] = -0.0  # equal as a number, not as bits
    pool.state[3] = torch.nan
    memory[-1, 0, 0, 0] += 1
    assert changed_slots(before, memory, slots) == [-1, 3, 4]


# ---- faster than the memory allows


def test_faster_than_the_memory_allows_is_an_error(monkeypatch, tmp_path):
    """A timer that gives a tenth of what the bytes take: rows with a cold L2 are errors, and are shown nowhere."""
    timed = sweep.time_interleaved

    def too_short(calls, **options):
        times = {"median_us": 0.01, "p20_us": 0.01, "p80_us": 0.01}
        return {key: replace(timing, **times) for key, timing in timed(calls, **options).items()}

    monkeypatch.setattr(sweep, "time_interleaved", too_short)
    monkeypatch.setattr(sweep.Sweep, "l2", lambda self, point: "cold")
    with Run.create("02_decode_kernels", {}, root=tmp_path) as run:
        rows = decode_sweep(SHAPE, [3], run=run, **IN_PLACE, **QUICK | {"variants": ["torch/vk"]})
    assert load(run.folder)[1] == rows and [row["status"] for row in rows] == ["error"]
    assert "times the measured bandwidth with a cold L2" in rows[0]["reason"]
    shown = Timed(rows)
    assert not shown and "torch/vk at B = 3 (host_clock) left out: 0.01 µs is" in shown.not_timed()[0]


@pytest.mark.parametrize(("l2", "share", "error"), [("cold", 1.06, True), ("cold", 1.05, False), ("warm", 3.0, False)])
def test_only_a_cold_l2_bounds_the_time(l2, share, error):
    row = {"l2": l2, "share_of_roof": share, "median_us": 1.0}
    assert bool(too_fast(row)) == error and MOST_SHARE == 1.05
