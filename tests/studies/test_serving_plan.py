"""Order, time limit and resumption of serving runs."""

from synthetic_serving import refused, serving_rows

from gdn_lab.studies.serving.plan import Budget, Build, Job, builds
from gdn_lab.studies.serving.study import Parameters

GPU = {"concurrency": "1,8,32,64,128,256,512", "configurations": "before,before-32,after,best"}


def test_the_concurrencies_that_say_most_come_first_for_every_configuration():
    plan = builds(Parameters.parse(GPU))
    names = ["before", "before-32", "after", "best"]
    assert [build.configuration for build in plan] == names * 2
    assert [[job.concurrency for job in build.jobs] for build in plan] == [[256, 64, 8, 1]] * 4 + [[512, 128, 32]] * 4
    assert plan[0].most == 256 and plan[0].draft_tokens == 0


def test_draft_tokens_come_last_with_the_last_configuration():
    plan = builds(Parameters.parse(GPU | {"draft_tokens": "2,4", "acceptance": "0.6,0.9"}))
    assert plan[-1].configuration == "best" and plan[-1].draft_tokens == 4 and plan[-1].most == 64
    assert len(plan[-1].jobs) == 2 * 2 * 3 and str(plan[-1].jobs[0]) == "best, C = 64, T = 2, acceptance 0.6"


def test_what_an_earlier_run_has_is_left_out():
    earlier = [*serving_rows(("before", "best"), (8, 256)), refused("after", 512)]
    left = [job for build in builds(Parameters.parse(GPU), earlier) for job in build.jobs]
    assert len(left) == 28 - 5
    gone = {("before", 8), ("before", 256), ("best", 8), ("best", 256), ("after", 512)}
    assert not gone & {(job.configuration, job.concurrency) for job in left}
    everything = serving_rows(("best",), (8,))
    assert builds(Parameters.parse({"concurrency": 8, "configurations": "best"}), everything) == []


def test_a_run_that_was_cut_off_before_its_parts_is_served_again():
    parameters = Parameters.parse({"concurrency": 8, "configurations": "best"})
    rows = [row for row in serving_rows(("best",), (8,)) if row["type"] != "part"]
    assert [job for build in builds(parameters, rows) for job in build.jobs] == [Job("best", 8)]


def test_unusual_concurrencies_are_one_pass():
    (build,) = builds(Parameters.parse({"concurrency": "3,5", "configurations": "torch"}))
    assert build == Build("torch", [Job("torch", 5), Job("torch", 3)], "torch/vk")


def test_no_job_is_begun_that_took_longer_than_what_is_left():
    now = [0.0]
    budget = Budget(100.0, clock=lambda: now[0])
    job = Job("before", 256)
    assert budget.allows(job)
    budget.took(job, 60.0)
    now[0] = 39.0
    assert budget.allows(Job("best", 256)) and budget.left == 61.0
    now[0] = 41.0
    assert not budget.allows(Job("best", 256)) and budget.allows(Job("best", 64))
    now[0] = 100.0
    assert not budget.allows(Job("best", 64))


def test_a_model_has_one_decode():
    """Concurrencies whose recorded times choose another decode are served by a model of their own."""
    parameters = Parameters.parse({"concurrency": "1,8,64", "configurations": "best", "draft_tokens": "2"})
    made = builds(parameters, decode=lambda name, concurrency: "triton/replay" if concurrency > 8 else "cutedsl/vk")
    assert [(build.gdn, [job.concurrency for job in build.jobs]) for build in made[:2]] == [
        ("triton/replay", [64]),
        ("cutedsl/vk", [8, 1]),
    ]
    assert made[2].gdn == "cutedsl/vk" and made[2].draft_tokens == 2, "verify leaves nothing to defer"
