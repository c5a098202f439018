"""A sweep on GPUs that are not there: the real scheduler on a clock of its own, jobs that take the time expected."""

import heapq
import random
from collections.abc import Iterable
from typing import NamedTuple

from .job import OK, Job
from .scheduler import Scheduler

GPUS_PER_HOST = 8
OVERHEAD_S = 0.5  # of each job beyond its own time: the most that docs/scale.md allows
SPREAD = 0.2  # a job takes up to this share less or more than expected


class Simulated(NamedTuple):
    """What became of the jobs. seconds: from the first job's start to the last one's end. utilisation: share of all
    GPUs' time in which they were in jobs, overhead left out. most_at_once: starts in one round of the driver."""

    jobs: int
    seconds: float
    utilisation: float
    most_at_once: int


def simulate(
    jobs: Iterable[Job],
    gpus: int,
    *,
    per_host: int = GPUS_PER_HOST,
    overhead_s: float = OVERHEAD_S,
    spread: float = SPREAD,
    seed: int = 0,
) -> Simulated:
    """Run jobs on `gpus` made-up GPUs of the jobs' type. Jobs that no host can hold are left out."""
    jobs, rng, scheduler = list(jobs), random.Random(seed), Scheduler()
    for first in range(0, gpus, per_host):
        ids = [str(n) for n in range(min(per_host, gpus - first))]
        scheduler.join(f"host {first // per_host}", jobs[0].gpu, ids)
    for job in jobs:
        scheduler.add(job)
    now, busy, ends, done, most = 0.0, 0.0, [], 0, 0
    while True:
        placed = scheduler.place(now)
        most = max(most, len(placed))
        for job, _, _ in placed:
            seconds = job.seconds * rng.uniform(1 - spread, 1 + spread)
            busy += job.gpus * seconds
            heapq.heappush(ends, (now + overhead_s + seconds, job.id))
        if not ends:
            return Simulated(done, now, busy / (gpus * now) if now else 0.0, most)
        now, job_id = heapq.heappop(ends)
        scheduler.end(job_id, OK, now)
        done += 1
