"""The i-th kernel of a replay is the i-th of the eager run, or the disagreement is one sentence."""

import pytest

from gdn_lab.trace.positions import parts_of_replays

EAGER = [("norm", "input norm"), ("mm", "in_proj"), ("norm", "post norm")]


def replay(*names, start=100):
    return [(name, start + 10 * i, start + 10 * i + 7) for i, name in enumerate(names)]


def test_parts_by_position():
    found = parts_of_replays(EAGER, [replay("norm", "mm", "norm"), replay("norm", "mm", "norm", start=500)])
    assert found[0] == [("input norm", 100, 107), ("in_proj", 110, 117), ("post norm", 120, 127)]
    assert found[1][2] == ("post norm", 520, 527)


def test_a_replay_of_several_steps():
    (found,) = parts_of_replays(EAGER, [replay(*["norm", "mm", "norm"] * 3)])
    assert [part for part, _, _ in found] == [part for _, part in EAGER] * 3
    assert found[-1] == ("post norm", 180, 187)


@pytest.mark.parametrize(
    ("eager", "names", "says"),
    [
        (EAGER, ["norm", "mm"], "replay 1 has 2 kernels, expected a multiple of the 3 of the eager run"),
        (EAGER, ["norm", "mm", "norm", "norm"], "replay 1 has 4 kernels"),
        (EAGER, [], "replay 1 has 0 kernels"),
        ([], ["norm"], "expected a multiple of the 0"),
        (EAGER, ["norm", "norm", "mm"], "kernel 2 of replay 1 is norm, but the eager run has mm there"),
        (EAGER, ["norm", "mm", "norm", "mm", "mm", "norm"], "kernel 4 of replay 1 is mm, but the eager run has norm"),
    ],
)
def test_disagreement_is_one_sentence(eager, names, says):
    with pytest.raises(ValueError, match=says) as caught:
        parts_of_replays(eager, [replay(*names)])
    assert "\n" not in str(caught.value)
