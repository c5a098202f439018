"""The scheduler: wide and long jobs first, failures tried elsewhere, bad GPUs dropped, no job starved or lost."""

import pytest
from toy_jobs import TYPE, toy

from gdn_lab.cluster.job import Job, job_id
from gdn_lab.cluster.scheduler import BUSY, FIRST_REST_S, MOST_INTERRUPTIONS, REST_S, Scheduler


def scheduler(jobs, **hosts) -> Scheduler:
    made = Scheduler()
    for name, ids in hosts.items():
        made.join(name, TYPE, ids)
    for job in jobs:
        made.add(job)
    return made


def numbers(placed) -> list[str]:
    return [job.parameters["number"] for job, _, _ in placed]


def test_an_id_depends_on_study_parameters_commit_and_gpu_alone():
    one = Job("02", {"tp": "1", "model": "m"}, "c", "h100", seconds=1)
    assert one.id == Job("02", {"model": "m", "tp": "1"}, "c", "h100", seconds=9, command=("x",)).id
    others = {
        job_id("03", one.parameters, "c", "h100"),
        job_id("02", {"tp": "2", "model": "m"}, "c", "h100"),
        job_id("02", one.parameters, "d", "h100"),
        job_id("02", one.parameters, "c", "h200"),
    }
    assert len(others | {one.id}) == 5


def test_the_longest_begin_first():
    made = scheduler([toy(n, seconds=s) for n, s in enumerate((1, 5, 3))], a=["0", "1"])
    assert numbers(made.place(0)) == ["1", "2"]
    assert made.place(0) == [], "no GPU is given twice"


def test_a_lower_rank_begins_before_a_longer_job():
    made = scheduler([toy(1, seconds=9, rank=1), toy(2, seconds=1), toy(3, seconds=2)], a=["0", "1", "2"])
    assert numbers(made.place(0)) == ["3", "2", "1"]


def test_a_wide_job_gets_gpus_of_one_host_and_is_not_starved():
    wide = toy(9, gpus=2)
    made = scheduler([toy(1, seconds=9), toy(2, seconds=8), toy(3, seconds=7)], a=["0", "1"])
    first, second = made.place(0)
    made.add(wide)
    made.end(first[0].id, "ok", 1)
    assert made.place(1) == [], "GPU 0 is free, but it is kept for the wide job"
    made.end(second[0].id, "ok", 2)
    ((job, host, ids),) = made.place(2)
    assert (job, host, ids) == (wide, "a", ["0", "1"])


def test_a_wide_job_never_spans_hosts():
    made = scheduler([toy(1, gpus=2)], a=["0"], b=["0"])
    assert made.place(0) == []
    assert made.impossible() == [toy(1, gpus=2)]


def test_other_types_of_gpu_are_not_taken():
    made = scheduler([toy(1, gpu="h100")], a=["0"])
    assert made.place(0) == []
    made.join("b", "h100", ["3"])
    assert made.place(0) == [(toy(1, gpu="h100"), "b", ["3"])]


@pytest.mark.parametrize("status", ["ok", "wrong", "refused"])
def test_these_are_final_at_once(status):
    made = scheduler([toy(1)], a=["0"])
    made.place(0)
    assert made.end(toy(1).id, status, 1) == status and made.left == 0


@pytest.mark.parametrize("status", ["error", "timeout"])
def test_a_failed_job_is_tried_once_more_elsewhere(status):
    made = scheduler([toy(1, seconds=9), toy(2)], a=["0", "1"])
    (_, _, (first,)), (_, _, (other,)) = made.place(0)
    assert made.end(toy(1).id, status, 1) is None
    assert made.place(1) == [], "the other GPU is taken, and it waits for that"
    made.end(toy(2).id, "ok", 2)
    ((job, _, ids),) = made.place(2)
    assert job.id == toy(1).id and ids == [other] != [first]
    assert made.end(job.id, status, 3) == status and made.left == 0


def test_with_one_gpu_it_is_tried_there_again():
    made = scheduler([toy(1)], a=["0"])
    made.place(0)
    made.end(toy(1).id, "error", 1)
    assert len(made.place(1)) == 1


def test_a_gpu_is_dropped_after_three_jobs_in_a_row_failed_on_it():
    made = scheduler([toy(n) for n in range(20)], a=["bad", "good"])
    for now in range(40):
        for job, _, ids in made.place(now):
            made.end(job.id, "error" if ids == ["bad"] else "ok", now)
    assert made.left == 0
    assert [gpu.id for gpu in made.gpus() if gpu.dropped] == ["bad"]


def test_a_job_that_fails_everywhere_is_no_gpus_fault():
    made = scheduler([toy(n) for n in range(20)], a=["0", "1"])
    finals = []
    for now in range(80):
        for job, _, _ in made.place(now):
            finals.append(made.end(job.id, "error" if int(job.parameters["number"]) % 2 else "ok", now))
    assert finals.count("error") == 10 and finals.count("ok") == 10 and not any(gpu.dropped for gpu in made.gpus())


def test_a_busy_gpu_rests_and_the_job_is_not_counted_as_failed():
    made = scheduler([toy(1)], a=["0"])
    now, rests = 0.0, []
    for _ in range(8):
        assert len(made.place(now)) == 1
        assert made.end(toy(1).id, BUSY, now) is None
        (gpu,) = made.gpus()
        rests.append(gpu.rests_until - now)
        assert made.place(now + 0.9 * rests[-1]) == [] and made.waiting_for_a_rest(now + 0.9 * rests[-1])
        now = gpu.rests_until
    assert rests == [FIRST_REST_S * 2**n for n in range(5)] + [REST_S] * 3, "after a job it rests briefly"
    made.place(now)
    made.end(toy(1).id, "interrupted", now)
    assert gpu.refused == 0


def test_a_job_that_is_always_interrupted_ends_as_an_error():
    made = scheduler([toy(1)], a=["0"])
    ends = []
    for now in range(MOST_INTERRUPTIONS):
        made.place(now)
        ends.append(made.end(toy(1).id, "interrupted", now))
    assert ends == [None] * (MOST_INTERRUPTIONS - 1) + ["error"]


def test_a_lost_host_names_the_jobs_that_ran_there():
    made = scheduler([toy(1, gpus=2, seconds=2), toy(2)], a=["0", "1"], b=["0"])
    made.place(0)
    (lost,) = [host for host, gpus in made.hosts.items() if len(gpus) == 2]
    assert made.lose(lost) == [toy(1, gpus=2).id]
    assert made.end(toy(1, gpus=2).id, "interrupted", 1) is None and list(made.hosts) == ["b"]


def test_jobs_for_which_there_is_no_time_do_not_begin():
    made = scheduler([toy(1, seconds=9), toy(2, seconds=1)], a=["0", "1"])
    assert numbers(made.place(0, lambda job: job.seconds < 5)) == ["2"]
    assert numbers(made.place(0)) == ["1"], "it was not lost"


@pytest.mark.parametrize("hosts, gpus", [({"a": ["0"]}, 1), ({"a": ["0", "1"], "b": ["0"]}, 2)])
def test_gpus_that_no_other_can_stand_in_for_are_not_dropped(hosts, gpus):
    made = scheduler([toy(n, gpus=gpus, seconds=100 - n) for n in range(10)], **hosts)
    ends = []
    for now in range(40):
        for job, _, _ in made.place(now):
            ends.append(made.end(job.id, "error" if int(job.parameters["number"]) < 8 else "ok", now))
    assert made.left == 0 and ends.count("ok") == 2 and ends.count("error") == 8
    assert not any(gpu.dropped for gpu in made.gpus())


def test_the_last_gpu_is_not_dropped():
    made = scheduler([toy(n) for n in range(20)], a=["0", "1"])
    for now in range(80):
        for job, _, _ in made.place(now):
            made.end(job.id, "error", now)
        assert not all(gpu.dropped for gpu in made.gpus())
    assert made.left == 0


def test_jobs_for_which_gpus_were_dropped_are_possible_with_them():
    made = scheduler([toy(1, gpus=2), toy(2, gpus=3)], a=["0", "1"])
    made.gpus()[0].failed = ["a", "b", "c"]
    assert made.impossible() == [toy(1, gpus=2), toy(2, gpus=3)]
    assert made.impossible(dropped=True) == [toy(2, gpus=3)]
