"""Seals: a function that measures or judges and is replaced by a stranger's is named; libraries may replace theirs."""

import time

import torch

from gdn_lab import reference, seals
from gdn_lab.models import GDNShape


def test_nothing_is_broken_at_first():
    assert seals.broken() is None


def test_a_replaced_clock_comparison_reference_and_method(monkeypatch):
    stranger = eval(compile("lambda *a: 0", "/x/mine.py", "eval"))
    for owner, name, where in (
        (time, "perf_counter_ns", "time.perf_counter_ns"),
        (torch, "equal", "torch.equal"),
        (torch.Tensor, "clone", "torch.Tensor.clone"),
        (torch.cuda.Event, "elapsed_time", "Event.elapsed_time"),
        (reference, "decode", "gdn_lab.reference.decode"),
        (GDNShape, "from_model", "gdn_lab.models.GDNShape.from_model"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stranger)
            found = seals.broken()
        assert found.endswith(f"{where} was replaced by a function of mine.py, line 1"), found
    assert seals.broken() is None


def test_a_builtin_in_place_of_another(monkeypatch):
    monkeypatch.setattr(time, "perf_counter_ns", time.monotonic_ns)
    assert seals.broken() == "time.perf_counter_ns was replaced"


def test_a_library_may_replace_its_own(monkeypatch):
    """As torch and NumPy do: the code of the new function is a library's."""
    monkeypatch.setattr(torch, "equal", torch.testing.assert_close)
    assert seals.broken() is None
