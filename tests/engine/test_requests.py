"""Drawn requests and those of a trace."""

import pytest

from gdn_lab.engine.requests import drawn, from_trace


def test_lengths_are_exact_without_spread_and_the_same_seed_draws_the_same():
    one, two, other = (drawn(20, 8, 5, vocab=50, seed=seed) for seed in (1, 1, 2))
    assert {(len(request.prompt), request.output_length, request.length) for request in one} == {(8, 5, 13)}
    assert [request.id for request in one] == list(range(20))
    assert all((a.prompt == b.prompt).all() for a, b in zip(one, two, strict=True))
    assert any((a.prompt != b.prompt).any() for a, b in zip(one, other, strict=True))
    assert 0 <= min(r.prompt.min() for r in one) and max(r.prompt.max() for r in one) < 50


def test_spread_is_a_share_of_the_length_on_both_sides():
    requests = drawn(500, 100, 50, vocab=10, spread=0.2)
    assert (min(len(r.prompt) for r in requests), max(len(r.prompt) for r in requests)) == (80, 120)
    assert (min(r.output_length for r in requests), max(r.output_length for r in requests)) == (40, 60)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"count": 0}, "count: expected a positive int, got 0"),
        ({"spread": 1.0}, "spread: expected a share"),
        ({"vocab": 2.5}, "vocab: expected a positive int, got 2.5"),
    ],
)
def test_values_out_of_range_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        drawn(**{"count": 1, "input_length": 1, "output_length": 1, "vocab": 9} | change)


def test_a_trace_gives_the_lengths(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"input_length": 7, "output_length": 3}\n\n{"input_length": 1, "output_length": 2, "x": 1}\n')
    requests = from_trace(path, vocab=9)
    assert [(r.id, len(r.prompt), r.output_length) for r in requests] == [(0, 7, 3), (1, 1, 2)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "got an empty file"),
        ('{"input_length": 7}', "line 1: expected positive ints input_length and output_length, got"),
        ('{"input_length": 7, "output_length": 1}\n[1]', "line 2: expected positive ints"),
        ("{", "line 1 is not JSON"),
    ],
)
def test_a_damaged_trace_is_refused_with_its_line(tmp_path, text, sentence):
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        from_trace(path, vocab=9)
