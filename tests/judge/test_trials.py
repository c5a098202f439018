"""Trials of several calls that share their tensors."""

import dataclasses

import pytest
import torch

from gdn_lab.judge.attempt import Wrong, attempt
from gdn_lab.judge.candidate import Candidate
from gdn_lab.judge.trials import drawn, random_of


def several(candidate, number, together=6):
    return drawn(random_of(0, number), candidate.calls, together=together)


def test_several_calls_are_made_one_after_the_other(monkeypatch):
    candidate, rows = Candidate("torch/vk", torch.device("cpu")), []
    made = Candidate._call
    monkeypatch.setattr(Candidate, "_call", lambda self, *args: rows.append(args[1]) or made(self, *args))
    for number in range(8):
        trial = several(candidate, number)
        rows.clear()
        assert 0 <= attempt(candidate, trial) <= 1
        assert [row.stop - row.start for row in rows] == list(trial.calls) and rows[-1].stop == trial.batch
        assert f"calls {list(trial.calls)}" in str(trial)


@pytest.mark.parametrize("wrong", range(4))
def test_the_call_that_is_wrong_is_named(wrong, monkeypatch):
    candidate = Candidate("torch/vk", torch.device("cpu"))
    trial = dataclasses.replace(several(candidate, 1, 4), padding=(), out="nan")
    made, calls = Candidate._call, iter(range(4))

    def call(self, *args):
        out = made(self, *args)
        return out.add_(next(calls) == wrong)

    monkeypatch.setattr(Candidate, "_call", call)
    with pytest.raises(Wrong, match="the output is wrong in") as raised:
        attempt(candidate, trial)
    assert trial.call_of(raised.value.row) == wrong


def test_call_of_counts_without_padding():
    candidate = Candidate("torch/vk", torch.device("cpu"))
    trial = dataclasses.replace(candidate.usual(batch=7), calls=(2, 1, 4), padding=(0, 2))
    assert [trial.call_of(row) for row in range(5)] == [0, 2, 2, 2, 2] and trial.call_of(None) is None
