"""The judge finds every planted bug, and finds nothing in the kernel without one."""

import pytest
import torch
from planted_kernels import PLANTED, RIGHT, Planted

from gdn_lab.backends import author_files
from gdn_lab.judge.judging import CHECKS, FAIL, PASS, judge, verdict


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are small
    yield
    torch.set_num_threads(before)


@pytest.fixture
def unpatched(monkeypatch):
    """What a planted file replaces is put back."""
    import time

    monkeypatch.setattr(time, "perf_counter_ns", time.perf_counter_ns)
    monkeypatch.setattr(torch, "equal", torch.equal)


def test_there_are_enough():
    assert len(PLANTED) >= 25
    assert {check for fault in PLANTED.values() for check in fault.checks} <= set(CHECKS)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name, kernel_file, unpatched):
    fault = PLANTED[name]
    (variant,) = author_files.load(kernel_file(fault.source()))
    found = judge(variant, seconds=0.2, only=fault.checks)
    assert [finding.status for finding in found] == [FAIL] * len(fault.checks), found


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("changes a gate after a right call", "the argument dt_bias changed"),
        ("shifts the convolution windows after a right call", "the convolution windows changed"),
    ],
)
def test_what_a_right_call_changed_besides_is_named(name, seen, kernel_file):
    """Output and states are right, so that only one check can find the fault."""
    (variant,) = author_files.load(kernel_file(PLANTED[name].source()))
    (found,) = judge(variant, seconds=0.2, only=PLANTED[name].checks)
    assert (found.status, found.sentence.partition(" (")[0]) == (FAIL, seen)


@pytest.mark.parametrize("dtypes", ['("bfloat16",)', '("float32", "float16")'])
def test_nothing_is_found_in_the_kernel_without_one(kernel_file, dtypes):
    (variant,) = author_files.load(kernel_file(Planted((), {"state_dtypes": dtypes}).source()))
    found = judge(variant, seconds=0.3)
    assert verdict(found) == "correct" and sum(finding.status == PASS for finding in found) >= 18, found
    assert RIGHT["eps"] == "1e-6"
