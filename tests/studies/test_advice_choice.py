"""Which recorded times advice takes for an answer: made-up series, from further to nearer."""

from itertools import pairwise

import pytest

from gdn_lab.config import Machine
from gdn_lab.models import GDNShape
from gdn_lab.studies.advice import analysis
from gdn_lab.studies.advice.analysis import best_comparison, compared, recorded_machine, wider_comparison
from gdn_lab.studies.advice.recorded_calls import KERNEL, KERNEL_TIMER, NEAREST, PART, Recording, Series, Times
from gdn_lab.studies.advice.study import Parameters

HEADS, OTHERS, FURTHER = GDNShape(4, 8), GDNShape(4, 16), GDNShape(4, 32)
VARIANTS = ("cutedsl/vk", "flashinfer/vk", "triton/kv8")


def times_of(us, spread=0.01):
    return Times(us, us * (1 - spread), us * (1 + spread))


def series(names=VARIANTS, batches=(64,), **fields):
    """A run's times of some variants, each at the same batches."""
    return series_of({name: dict.fromkeys(batches, 10.0 + i) for i, name in enumerate(names)}, **fields)


def series_of(
    times, *, shape=HEADS, source=KERNEL, date="2026-11-22", notebook="02_decode_kernels", flashinfer="0.7.2"
):
    recording = Recording("h100", notebook, "NVIDIA H100", date, "0123456789", (9, 0), flashinfer)
    times = {name: {batch: times_of(us) for batch, us in by_batch.items()} for name, by_batch in times.items()}
    return Series(recording, source, KERNEL_TIMER, "a model", 1, shape, "bfloat16", 3000.0, times)


BY_IMPORTANCE = {  # each differs in one thing, and the further down, the less that counts
    "one variant alone": series(VARIANTS[:1]),
    "other heads": series(shape=OTHERS, batches=(32,)),
    "the nearest batch": series(batches=(16,)),
    "between two batches": series(batches=(32, 128)),
    "its part of a step": series(source=PART),
    "fewer variants": series(VARIANTS[:2]),
    "older": series(date="2026-11-20"),
    "a later notebook": series(notebook="05_verify"),
    "what was asked": series(),
}


@pytest.mark.parametrize(("further", "nearer"), list(pairwise(BY_IMPORTANCE)))
def test_the_nearest_comparison_is_by_variants_heads_batch_source_and_date(further, nearer):
    pair = [BY_IMPORTANCE[further], BY_IMPORTANCE[nearer]]
    assert best_comparison(pair, HEADS, 64).series is best_comparison(pair[::-1], HEADS, 64).series is pair[1]


def test_variants_that_were_timed_with_other_heads_alone_are_shown_elsewhere():
    own = compared(series(VARIANTS[:2]), HEADS, 64)
    wider, widest = series(shape=OTHERS, batches=(32,)), series((*VARIANTS, "triton/vk"), shape=FURTHER, batches=(16,))
    assert wider_comparison([own.series, wider], HEADS, 64, own).series is wider
    assert wider_comparison([own.series, wider, widest], HEADS, 64, own).series is widest, "most variants first"
    assert wider_comparison([own.series, wider], HEADS, 64, None) is None, "nothing is compared at all"


@pytest.mark.parametrize(
    "other",
    [
        series(VARIANTS[:2], shape=OTHERS, batches=(32,)),
        series(VARIANTS),
        series(shape=OTHERS, batches=(16,)),
        series(shape=OTHERS, batches=(32,), source=PART),
    ],
    ids=["no other variant", "the same heads", "another batch", "a part of a step"],
)
def test_nothing_else_is_shown_elsewhere(other):
    own = compared(series(VARIANTS[:2]), HEADS, 64)
    assert wider_comparison([own.series, other], HEADS, 64, own) is None


@pytest.mark.parametrize(("second", "tie"), [(10.05, True), (10.15, True), (10.3, False)])
def test_two_variants_tie_where_their_ranges_overlap(second, tie):
    """Of 10.0 the 80th percentile is 10.1; of 10.15 the 20th is 10.05."""
    one = compared(series_of({"cutedsl/vk": {64: 10.0}, "triton/vk": {64: second}}), HEADS, 64)
    assert one.tie is tie


def test_one_variant_ties_with_none():
    assert not compared(series(VARIANTS[:1]), HEADS, 64).tie


# Two variants each on one side of the batch, and a third on both.
BESIDE = series_of(
    {
        "triton/kv8": dict.fromkeys((16, 64, 256, 1024), 20.0),
        "cutedsl/vk": dict.fromkeys((16, 64), 10.0),
        "triton/replay": dict.fromkeys((256, 1024), 11.0),
    }
)


@pytest.mark.parametrize(("batch", "nearest", "across"), [(100, 64, 256), (200, 256, 64)])
def test_the_other_side_of_a_batch_is_the_nearest_one_there(batch, nearest, across):
    one = compared(BESIDE, HEADS, batch)
    assert (one.how, one.batches, one.across.batches) == (NEAREST, [nearest], [across])
    assert one.state_us == pytest.approx(2 * nearest * HEADS.state_elements * 2 / 3000.0 / 1e3), "of what is shown"


def test_one_variant_alone_is_no_other_side():
    one = compared(series_of({"cutedsl/vk": {64: 10.0}, "triton/kv8": {256: 20.0}}), HEADS, 100)
    assert one.how == NEAREST and one.across is None


@pytest.mark.parametrize("batch", [16, 64])
def test_a_batch_that_is_recorded_has_no_other_side(batch):
    assert compared(BESIDE, HEADS, batch).across is None


def test_the_engine_s_rules_are_applied_to_the_machine_of_the_newest_run():
    older, newer = series(date="2026-11-20", flashinfer="0.6.3"), series(date="2026-11-22", flashinfer="0.7.2")
    assert recorded_machine([older, newer]) == recorded_machine([newer, older]) == Machine((9, 0), "0.7.2")
    assert recorded_machine([]) == Machine(None, None)


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", "a share"), ("float32", None)])
def test_a_share_of_the_step_is_given_for_the_dtype_that_steps_were_recorded_with(dtype, share, monkeypatch):
    monkeypatch.setattr(analysis, "step_share", lambda *_: "a share")
    asked = Parameters.parse({"model": "qwen3-next-80b-a3b", "tp": 4, "batch": 96, "dtype": dtype})
    assert analysis.advise(asked).step == share
