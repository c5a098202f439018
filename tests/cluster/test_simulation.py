"""The scheduler on made-up GPUs: how long, and how much of the GPUs' time is used."""

import pytest
from toy_jobs import toy

from gdn_lab.cluster.simulation import simulate


def test_one_gpu_takes_the_sum_of_all_jobs():
    found = simulate([toy(n, seconds=10) for n in range(6)], 1, overhead_s=1, spread=0)
    assert (found.jobs, found.seconds) == (6, 66) and found.utilisation == pytest.approx(60 / 66)


def test_a_thousand_gpus_are_in_use_nine_tenths_of_the_time():
    jobs = [toy(n, seconds=30 + n % 7 * 10) for n in range(10_000)]
    found = simulate(jobs, 1000)
    assert found.jobs == len(jobs) and found.utilisation > 0.9


def test_wide_jobs_are_not_starved_and_waste_little():
    jobs = [toy(n, seconds=30, gpus=(1, 1, 1, 2, 4, 8)[n % 6]) for n in range(600)]
    found = simulate(jobs, 32)
    assert found.jobs == len(jobs) and found.utilisation > 0.9


def test_jobs_that_no_host_holds_are_left_out():
    assert simulate([toy(1, seconds=1, gpus=8), toy(2, seconds=1)], 4, per_host=4).jobs == 1
