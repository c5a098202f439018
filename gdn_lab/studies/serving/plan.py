"""Which serving runs are made, in which order, within a time limit.

A model is built once for several runs: weights stay, state pools, KV cache and CUDA graphs are a configuration's. The
first pass over the configurations has the concurrencies that say most, where more are asked for, the second the others,
the last draft tokens.
"""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ...layer.configurations import configuration
from .serving_rows import LEFT_OUT, PART, RUN

FIRST = (256, 64, 8, 1)  # concurrencies of the first pass
WITH_DRAFTS = (1, 8, 64)  # those of FIRST at which draft tokens are verified


class Job(NamedTuple):
    """One serving run."""

    configuration: str
    concurrency: int
    draft_tokens: int = 0
    acceptance: float | None = None

    def __str__(self) -> str:
        drafts = f", T = {self.draft_tokens}, acceptance {self.acceptance:g}" if self.draft_tokens else ""
        return f"{self.configuration}, C = {self.concurrency}{drafts}"


class Build(NamedTuple):
    """One model, and what it serves, the largest concurrency first. gdn: its `backend` of decode()."""

    configuration: str
    jobs: list[Job]
    gdn: str

    @property
    def most(self) -> int:
        """The largest concurrency."""
        return max(job.concurrency for job in self.jobs)

    @property
    def draft_tokens(self) -> int:
        """The most draft tokens."""
        return max(job.draft_tokens for job in self.jobs)


def builds(p, earlier: Iterable[dict] = (), decode: Callable[[str, int], str] | None = None) -> list[Build]:
    """Everything that parameters `p` ask for and no row of `earlier` has.

    decode(configuration, concurrency): the `backend` of decode(), by default the configuration's own; a model has one.
    """
    earlier = list(earlier)
    timed = {_job_of(row) for row in earlier if row.get("type") == PART}
    done = {_job_of(row) for row in earlier if _complete(row, timed)}
    first = [c for c in p.concurrency if c in FIRST] if len(p.concurrency) > len(FIRST) else p.concurrency
    passes = [some for some in (first, [c for c in p.concurrency if c not in first]) if some]
    plan = [
        (name, [Job(name, concurrency) for concurrency in sorted(some, reverse=True)])
        for some in passes
        for name in p.configurations
    ]
    last = p.configurations[-1]
    with_drafts = [c for c in p.concurrency if c in WITH_DRAFTS] or p.concurrency[:1]
    plan.append(
        (
            last,
            [
                Job(last, concurrency, tokens, rate)
                for tokens in p.draft_tokens
                for rate in p.acceptance
                for concurrency in sorted(with_drafts, reverse=True)
            ],
        )
    )
    made = []
    for name, jobs in plan:
        by_decode: dict[str, list[Job]] = {}
        for job in jobs:
            own = decode is None or job.draft_tokens  # which verifies, and does not decode
            gdn = configuration(name).gdn if own else decode(name, job.concurrency)
            if job not in done:
                by_decode.setdefault(gdn, []).append(job)
        made += [Build(name, some, gdn) for gdn, some in by_decode.items()]
    return made


def _complete(row: dict, timed: set[Job]) -> bool:
    """Whether a row says that a job is done, or cannot be; not of a run that was interrupted, also before its parts
    were timed."""
    if row.get("status") == "refused":
        return row.get("type") != LEFT_OUT
    if row.get("type") != RUN or row.get("requests_unfinished"):
        return False
    return bool(row["draft_tokens"]) or _job_of(row) in timed


def _job_of(row: dict) -> Job:
    return Job(row["configuration"], row["concurrency"], row["draft_tokens"], row["acceptance"])


class Budget:
    """Seconds that may pass; a job is begun only if one like it took no longer than what is left."""

    def __init__(self, seconds: float, clock=time.monotonic):
        self._clock, self._end, self._took = clock, clock() + seconds, {}

    @property
    def left(self) -> float:
        return self._end - self._clock()

    def allows(self, job: Job) -> bool:
        """Whether to begin a job. One like none before is begun while any time is left."""
        return self.left > self._took.get(self._kind(job), 0.0)

    def took(self, job: Job, seconds: float) -> None:
        """Note how long a job took."""
        kind = self._kind(job)
        self._took[kind] = max(seconds, self._took.get(kind, 0.0))

    @staticmethod
    def _kind(job: Job) -> tuple:
        return job.concurrency, job.draft_tokens, job.acceptance
