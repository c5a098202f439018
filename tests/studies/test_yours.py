"""A kernel of your own against baseline, ours and peers: known ratios, noise, words, table, title."""

import pytest
from synthetic import RUN, sweep_rows

from gdn_lab.backends.registry import VARIANTS
from gdn_lab.report.style import title_of
from gdn_lab.report.timed import Timed
from gdn_lab.studies.decode_kernels import yours

MINE, KV32 = "mine/vk", "triton/kv32"


def timed(factor=0.5, outside=(), batches=(8, 128), **changes):
    """Rows of the synthetic kernels, and of mine at `factor` of triton/vk's times; peers in `outside` are not right."""
    rows = sweep_rows(batches=batches)
    for row in list(rows):
        if row["backend"] == "triton" and row["variant"] == "vk":
            times = {name: row[name] * factor for name in ("median_us", "p20_us", "p80_us")}
            rows.append(row | times | {"backend": "mine", "share_of_roof": row["share_of_roof"] / factor} | changes)
    wrong = {"wrong_on": ["q = k"], "wrong_errors": {"q = k": {"o": 1.0}}, "allowed_error": 0.01}
    rows = [row | wrong if f"{row['backend']}/{row['variant']}" in outside else row for row in rows]
    return Timed(rows, RUN, phase="decode")


def at(found, batch):
    return {each.opponent: each for each in found if each.batch == batch}


def test_each_opponent_is_the_fastest_of_its_kind():
    found = yours.compared(timed(), MINE, KV32)
    assert [each.opponent for each in found] == [yours.BASELINE, yours.OURS, yours.PEER] * 2
    for batch in (8, 128):
        others = {opponent: each.other for opponent, each in at(found, batch).items()}
        assert others == {yours.BASELINE: "triton/kv32", yours.OURS: "triton/vk", yours.PEER: "flashinfer/vk"}
        assert at(found, batch)[yours.OURS].speed_up == pytest.approx(2.0)
        assert at(found, batch)[yours.OURS].word == yours.FASTER
    assert at(yours.compared(timed(), MINE, "triton/kv8"), 8)[yours.BASELINE].other == "triton/kv8"


def test_a_kernel_that_defers_the_write_is_no_opponent_of_one_that_does_not():
    ring = next(name for name, record in VARIANTS.items() if record.ring)
    rows = {"triton/vk": {}, ring: {}}
    assert yours.opponents(rows, KV32)[yours.OURS] == ["triton/vk"]
    assert yours.opponents(rows, KV32, VARIANTS[ring].ring)[yours.OURS] == [ring]


def test_a_peer_that_is_not_right_is_no_opponent():
    found = yours.compared(timed(outside=("flashinfer/vk",)), MINE, KV32)
    assert yours.PEER not in {each.opponent for each in found}


@pytest.mark.parametrize(
    ("factor", "word"),
    [(0.5, yours.FASTER), (0.97, yours.EQUAL), (1.0, yours.EQUAL), (1.03, yours.EQUAL), (2.0, yours.SLOWER)],
)
def test_ranges_that_overlap_are_equal(factor, word):
    """p20 is 2% below and p80 3% above the median."""
    for batch in (8, 128):
        assert at(yours.compared(timed(factor), MINE, KV32), batch)[yours.OURS].word == word


@pytest.mark.parametrize(("batch", "word"), [(8, yours.EQUAL), (128, yours.SLOWER)])
def test_noise_is_larger_at_small_batches(batch, word):
    rows = [row | {"p20_us": row["median_us"], "p80_us": row["median_us"]} for row in timed(1.02).all_rows]
    found = at(yours.compared(Timed(rows, RUN, phase="decode"), MINE, KV32), batch)[yours.OURS]
    assert found.word == word and found.low == found.high == pytest.approx(1 / 1.02)


def test_what_is_said_shown_and_drawn_agrees():
    here = timed()
    said = yours.sentences(here, MINE, KV32)
    assert yours.answers(here, KV32) == [], "not registered here"
    assert "mine/vk against the best of ours, triton/vk: faster at B = 8 and 128 (2.00×)." in said
    share = yours.share_sentence(here, MINE)
    assert share.startswith("At B = 128 mine/vk reaches ") and share.endswith("% of the measured bandwidth.")
    table = yours.table(here, MINE, KV32)
    assert list(table.index) == [8, 128]
    assert table["the best of ours, triton/vk"][128] == "2.00× (1.90 to 2.10): faster"
    assert title_of(yours.speed_up(here, MINE, KV32)) == "At B = 128 mine/vk is faster than triton/vk: 2.00× as fast"
    equal = title_of(yours.speed_up(timed(1.0), MINE, KV32))
    assert equal == "At B = 128 mine/vk and triton/vk are equal within noise: 1.00×"


def test_nothing_to_compare_with_is_said():
    alone = Timed([row for row in timed().all_rows if row["backend"] == "mine"], RUN, phase="decode")
    assert yours.compared(alone, MINE, KV32) == []
    assert title_of(yours.speed_up(alone, MINE, KV32)) == "Nothing was timed to compare mine/vk with"
    assert list(yours.table(alone, MINE, KV32).columns) == ["median", "of measured bandwidth"]
