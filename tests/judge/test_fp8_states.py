"""States in FP8 with a scale for each row: what the judge allows them, and what it does not."""

import pytest
import torch

from gdn_lab import reference
from gdn_lab.judge.attempt import Wrong, attempt
from gdn_lab.judge.candidate import Candidate
from gdn_lab.judge.making import filled_pool
from gdn_lab.judge.trials import Trial
from gdn_lab.models import GDNShape
from gdn_lab.rounding import FP8

SHAPE = GDNShape(1, 2, 32, 32)
SLOT_1 = 32  # a seed that gives the row slot 1 of two


@pytest.fixture
def candidate(monkeypatch):
    """The variant with an FP8 state, whose calls the reference computes: every step rounds the state to nearest."""
    monkeypatch.setattr(Candidate, "refusal", lambda *_: None)  # Triton needs a GPU, or its interpreter
    monkeypatch.setattr(Candidate, "_call", call_of_the_reference)
    return Candidate("triton/replay-fp8", torch.device("cpu"))


def call_of_the_reference(self, made, rows):
    live = made.live
    options = {"scale": made.trial.scale, "use_qk_l2norm": made.trial.l2norm}
    arguments = (x[live] for x in made.arguments)
    o, states = reference.decode(*arguments, **made.inputs.gates(), state=made.old, **options)
    made.pool.write(made.indices[live], states)
    made.out.zero_()[live] = o.to(made.out)
    return made.out


def trial_of(seed: int, **fields) -> Trial:
    """Of slot 1 alone, unless there are spare ones."""
    return Trial(SHAPE, 1, FP8, torch.bfloat16, torch.int32, **{"spare": 0, "seed": seed} | fields)


def test_a_fold_may_round_the_state(candidate):
    assert 0 < attempt(candidate, trial_of(0)) < 1
    assert 0 < attempt(candidate, trial_of(16, scale=-0.5, state_std=0.1)) < 1


def test_no_other_step_may(candidate):
    with pytest.raises(Wrong, match="the state is wrong"):
        attempt(candidate, trial_of(1))


def test_scales_of_slots_that_no_row_names(candidate, monkeypatch):
    def call(self, made, rows):
        made.pool.scales[2, 0, 3] *= 1.001
        return call_of_the_reference(self, made, rows)

    monkeypatch.setattr(Candidate, "_call", call)
    with pytest.raises(Wrong, match="slot 2 changed, which no row names"):
        attempt(candidate, trial_of(SLOT_1, spare=1))


def test_a_filled_pool_uses_all_of_e4m3():
    pool = filled_pool(SHAPE, 3, layout="VK", dtype=FP8)
    assert (pool.state.float().abs().amax(-1) == 448).all()
    assert 0.8 < pool.read(torch.arange(3)).std() < 1.2
