"""Records of CUPTI: told apart by markers, lost records refused, GPU work recognised."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gdn_lab.bench import cupti, timers
from gdn_lab.bench.cupti import TimerUnavailable


def records(*replays, lead_in=3):
    """[(name, start, end)]: markers, then each replay's kernel durations, a marker after each; gaps of 1 ns."""
    found, now = [], 0
    for name, duration in [("spin_kernel", 2)] * lead_in + [
        item for replay in replays for item in [("k", d) for d in replay] + [("at::cuda::spin_kernel(long)", 2)]
    ]:
        found.append((name, now, now + duration))
        now += duration + 1
    return found


@given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=5), max_size=6), st.integers(1, 5))
def test_replays_are_told_apart_by_markers(replays, lead_in):
    found = cupti._split_at_markers(records(*replays, lead_in=lead_in))
    assert [[end - start for _name, start, end in kernels] for kernels in found] == replays


def test_a_lost_lead_in_is_an_error():
    for lost in ([], records([4, 5], lead_in=0)):
        with pytest.raises(TimerUnavailable, match="CUPTI lost the first kernels"):
            cupti._split_at_markers(lost)


def test_overlapping_kernels_count_shared_time_once():
    assert cupti.busy_us([(0, 1000), (2000, 5000)]) == [1, 3]
    assert cupti.busy_us([(0, 3000), (2000, 5000), (2500, 4000), (6000, 7000)]) == [3, 2, 0, 1]
    assert cupti.busy_us([(0, 5000), (1000, 2000), (3000, 6000)]) == [5, 0, 1]  # the first is still there at the third


class Graph:
    def replay(self):
        pass


def test_traces_are_in_turns_and_keep_the_names(monkeypatch):
    recorded = records([1, 2], [7], [3, 4], [9])
    monkeypatch.setattr(cupti, "_profile", lambda replays: recorded)
    monkeypatch.setattr(timers, "unavailable", lambda timer, device: None)
    monkeypatch.setattr(cupti, "start_cupti", lambda: None)
    monkeypatch.setattr(timers, "_captured", lambda calls: nullcontext({key: Graph() for key in calls}))
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    calls = {"a": [print, print], "b": [print]}
    traced = timers.trace_interleaved(calls, device="cuda", replays=2)
    durations = {key: [[end - start for _, start, end in one] for one in replays] for key, replays in traced.items()}
    assert durations == {"a": [[1, 2], [3, 4]], "b": [[7], [9]]} and traced["b"][0][0][0] == "k"
    with pytest.raises(TimerUnavailable, match="kernels of 4 replays, expected 6"):
        timers.trace_interleaved(calls, device="cuda", replays=3)


def time_records(monkeypatch, recorded, sizes, samples=1):
    monkeypatch.setattr(cupti, "_profile", lambda replays: recorded)
    return timers._cupti_kernel({key: Graph() for key in sizes}, sizes, samples, 1, lambda fraction: None)


def test_cupti_adds_up_each_call(monkeypatch):
    # a: two calls of two kernels, b: one call of one; replayed in turns
    recorded = records([1000, 2000, 3000, 4000], [7000], [1000, 2000, 3000, 4000], [9000])
    timings = time_records(monkeypatch, recorded, {"a": 2, "b": 1})
    assert (timings["a"].median_us, timings["a"].count, timings["a"].calls_per_sample) == (5, 4, 1)
    assert (timings["b"].median_us, timings["b"].count) == (8, 2)
    assert (timings["a"].kernels, timings["b"].kernels) == (2, 1)


@pytest.mark.parametrize(
    "recorded, message",
    [
        (records([1, 1], [1], [1, 1]), "kernels of 3 replays, expected 4"),
        (records([1, 1, 1], [1], [1, 1], [1]), "a: CUPTI recorded 3 kernels in one replay of 2 calls"),
        (records([1, 1], [1], [1, 1, 1, 1], [1]), "a: CUPTI recorded 2 and 4 kernels in one replay of 2 calls"),
    ],
)
def test_lost_records_are_an_error(monkeypatch, recorded, message):
    with pytest.raises(TimerUnavailable, match=message):
        time_records(monkeypatch, recorded, {"a": 2, "b": 1})


class Event:
    def __init__(self, device, activity=None):
        self.device_type = lambda: getattr(torch.autograd.DeviceType, device)
        if activity:  # torch 2.12 and newer
            self.activity_type = lambda: activity


@pytest.mark.parametrize(
    "event, counts",
    [
        (Event("CUDA"), True),
        (Event("CUDA", "kernel"), True),
        (Event("CUDA", "gpu_memcpy"), True),
        (Event("CUDA", "gpu_user_annotation"), False),
        (Event("CUDA", "cuda_sync"), False),
        (Event("CPU", "cuda_runtime"), False),
        (Event("CPU"), False),
    ],
)
def test_what_counts_as_gpu_work(event, counts):
    assert cupti._is_gpu_work(event) is counts
