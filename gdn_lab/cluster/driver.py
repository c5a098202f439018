"""The driver of a sweep: hands jobs to hosts, gathers rows, writes the journal. Killed at any moment, it goes on."""

import time
from collections.abc import Callable
from pathlib import Path

from .gather import Gathered
from .hosts import Hosts
from .job import ERROR, INTERRUPTED, Job
from .job_process import Task
from .journal import Journal
from .scheduler import BUSY, Scheduler

WAIT_S = 0.5  # for events
STUCK_S = 60.0  # without anything running or resting, until the driver gives up


class Driver:
    """One sweep.

    jobs_of(gpu type) -> its jobs, asked once for each type that joins. say(sentence): prints what a person must know.
    progress(driver): called after each round. environment: of every job's process. journal: of the folder, open to
    be written; by default the driver opens it. No other driver can have the folder until run() has ended.
    """

    def __init__(
        self,
        folder: Path,
        hosts: Hosts,
        jobs_of: Callable[[str], list[Job]],
        *,
        say: Callable[[str], None] = print,
        progress: Callable[["Driver"], None] = lambda driver: None,
        environment: dict[str, str] | None = None,
        stuck_s: float = STUCK_S,
        may_begin: Callable[[Job], bool] = lambda job: True,
        journal: Journal | None = None,
    ):
        self.folder, self.hosts, self.jobs_of, self.say, self.progress = Path(folder), hosts, jobs_of, say, progress
        self.environment, self.stuck_s, self.may_begin = environment or {}, stuck_s, may_begin
        self.journal = journal or Journal(folder, write=True)
        self.gathered, self.scheduler = Gathered(folder), Scheduler()
        self.jobs: dict[str, Job] = {}  # every job, final ones included
        self.done: dict[str, str] = {}  # {job: final status}
        self.attempts: dict[str, int] = {}  # of the jobs that run
        self.finished_s, self.busy_s, self.said = 0.0, 0.0, set()  # expected, measured

    def run(self) -> None:
        """Run until no job is left, or none of those left can begin. KeyboardInterrupt passes through."""
        idle_since = time.monotonic()
        try:
            while True:
                for event in self.hosts.events(WAIT_S):
                    self._handle(event)
                tasks = self._place()
                self.journal.sync()
                for host, some in tasks.items():
                    self.hosts.launch(host, some)
                self.progress(self)
                now = time.monotonic()
                if self.scheduler.running or self.scheduler.waiting_for_a_rest(now):
                    idle_since = now
                if self._over() or now - idle_since > self.stuck_s:
                    return
        finally:
            try:
                self.hosts.stop()
            finally:
                self.journal.close()

    def unfinished(self) -> list[Job]:
        """Jobs that are not final."""
        return [state.job for state in self.scheduler.states.values()]

    def _over(self) -> bool:
        """Whether nothing runs and nothing may begin any more."""
        if not self.jobs or self.scheduler.running:
            return False
        waiting = {state.job.id for state in self.scheduler.states.values() if self.may_begin(state.job)}
        if waiting and not self.hosts.may_join():
            waiting -= {job.id for job in self.scheduler.impossible()}
        return not waiting

    # ---- what happens ---------------------------------------------------------------------------------------------

    def _handle(self, event: dict) -> None:
        kind, host = event["kind"], event["host"]
        if kind == "joined":
            self._joined(event)
        elif kind == "refused":
            self._once(f"{host} takes no part: {event['reason']}.")
        elif kind == "lost":
            self.say(f"{host} was lost ({event['reason']}); its jobs are queued again.")
            for job in self.scheduler.lose(host):
                self._end(job, {"status": INTERRUPTED, "reason": "its host was lost", "seconds": 0.0, "files": {}})
        elif self.attempts.get(event["job"]) != event["attempt"]:
            return  # of an attempt that was given up: another one is or was made
        elif kind == "rows":
            self.gathered.rows(event["job"], event["attempt"], event["data"])
        else:
            self._ended(event)

    def _joined(self, event: dict) -> None:
        self.scheduler.join(event["host"], event["gpu"], event["ids"])
        for job in self.jobs_of(event["gpu"]):
            if job.id in self.jobs:
                continue
            self.jobs[job.id] = job
            if job.id in self.journal.final:
                self.done[job.id] = self.journal.final[job.id]["status"]
            else:
                failed = self.journal.failures.get(job.id, [])
                self.scheduler.add(job, [{f"{line['host']}:{gpu}" for gpu in line["gpus"]} for line in failed])

    def _ended(self, event: dict) -> None:
        here = self.gathered.count(event["job"], event["attempt"])
        if here != event["rows"]:
            reason = f"{event['rows']} rows were measured and {here} arrived"
            event = event | {"status": ERROR, "reason": reason}
        self._end(event["job"], event)

    def _end(self, job_id: str, how: dict) -> None:
        attempt, job = self.attempts.pop(job_id), self.jobs[job_id]
        state = self.scheduler.states[job_id]
        on = {"host": state.on[0].host, "gpus": [gpu.id for gpu in state.on]}
        gpus, status = list(state.on), how["status"]
        final = self.scheduler.end(job_id, status, time.monotonic())
        if status == BUSY:
            self._once(f"{on['host']}: {how['reason']}; the GPU is asked again later.")
            return
        self.gathered.end(job_id, attempt, how["files"], final=final is not None)
        more = {"reason": how["reason"], "seconds": round(how["seconds"], 3)} | on
        self.journal.ended(job_id, attempt=attempt, status=final or status, final=final is not None, **more)
        if final:
            self.done[job_id] = final
            self.finished_s += job.seconds
            self.busy_s += how["seconds"]
        if how["reason"] and status != INTERRUPTED:
            again = "" if final else "; it is tried once more"
            self.say(f"{job}: {status} on {on['host']}, GPU {', '.join(on['gpus'])}: {how['reason']}{again}.")
        for gpu in gpus:
            if gpu.dropped:
                self._once(f"GPU {gpu.id} of {gpu.host} is dropped: {len(gpu.failed)} jobs in a row failed on it.")

    def _place(self) -> dict[str, list[Task]]:
        """{host: what is to begin there}."""
        by_host: dict[str, list[Task]] = {}
        for job, host, ids in self.scheduler.place(time.monotonic(), self.may_begin):
            attempt = self.journal.attempts[job.id] + 1
            self.attempts[job.id] = attempt
            self.gathered.begin(job, attempt)
            self.journal.began(job.id, attempt=attempt, host=host, gpus=ids)
            task = Task(job.id, attempt, job.command, tuple(ids), job.limit_s, self.environment)
            by_host.setdefault(host, []).append(task)
        return by_host

    def _once(self, sentence: str) -> None:
        if sentence not in self.said:
            self.said.add(sentence)
            self.say(sentence)
