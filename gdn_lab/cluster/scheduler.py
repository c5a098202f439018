"""Which job goes to which GPUs: wide ones first, then by rank, then the longest; failed ones once more elsewhere."""

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count

from .job import DONE, ERROR, FAILED, INTERRUPTED, Job

TRIES = 2  # of a job that fails
DROPPED_AFTER = 3  # jobs in a row that failed on a GPU
MOST_INTERRUPTIONS = 10  # of one job; then it is taken to bring its hosts down
FIRST_REST_S, REST_S = 1.0, 30.0  # of a GPU whose probe refused it; each rest in a row is twice as long
BUSY = "busy"  # how an attempt ends that the probe refused


@dataclass
class Gpu:
    """One GPU of a host.

    failed: the jobs in a row that failed on it, of those that others could run too. rests_until: when it is probed
    again. refused: how often in a row its probe refused it.
    """

    host: str
    id: str
    job: str | None = None
    failed: list[str] = field(default_factory=list)
    rests_until: float = 0.0
    refused: int = 0

    @property
    def name(self) -> str:
        return f"{self.host}:{self.id}"

    @property
    def dropped(self) -> bool:
        return len(self.failed) >= DROPPED_AFTER


@dataclass
class _State:
    """What is known of a job that is not final."""

    job: Job
    failed_on: list[set[str]] = field(default_factory=list)  # names of GPUs, for each failure
    interruptions: int = 0
    on: list[Gpu] = field(default_factory=list)


class Scheduler:
    """The queue and the GPUs. Times are of any clock in seconds, given with each call.

    add() and join() fill it, place() chooses, end() and lose() say what became of a job.
    """

    def __init__(self):
        self.hosts: dict[str, dict[str, Gpu]] = {}
        self.types: dict[str, str] = {}
        self._idle: dict[str, int] = {}  # {host: GPUs without a job}
        self.states: dict[str, _State] = {}
        self.running: set[str] = set()
        self._order = count()
        self._queues: dict[tuple[int, str], list] = defaultdict(
            list
        )  # (gpus, type): heap of (rank, -seconds, order, id)

    # ---- what comes and goes --------------------------------------------------------------------------------------

    def add(self, job: Job, failed_on: list[set[str]] = ()) -> None:
        """Queue a job. failed_on: the GPUs of each attempt that failed in an earlier process."""
        if job.id not in self.states:
            self.states[job.id] = _State(job, [set(names) for names in failed_on])
            self._queue(job)

    def join(self, host: str, gpu_type: str, ids: list[str]) -> None:
        """A host offers its GPUs."""
        self.types[host] = gpu_type
        self.hosts[host] = {each: Gpu(host, each) for each in ids}
        self._idle[host] = len(ids)

    def lose(self, host: str) -> list[str]:
        """A host has gone. Returns the jobs that ran there, which the caller ends as interrupted."""
        gpus = self.hosts.pop(host, {})
        return list(dict.fromkeys(gpu.job for gpu in gpus.values() if gpu.job))

    def place(self, now: float, may_begin=lambda job: True) -> list[tuple[Job, str, list[str]]]:
        """(job, host, ids of its GPUs) of every job that can begin now; they count as begun.

        may_begin(job) -> whether it may: there may not be time for it.
        """
        placed, reserved = [], set()
        for (wide, gpu_type), queue in sorted(self._queues.items(), key=lambda item: -item[0][0]):
            aside = []
            while queue:
                job = self.states[queue[0][-1]].job
                if not may_begin(job):
                    aside.append(heapq.heappop(queue))
                    continue
                gpus = self._fit(job, now, reserved)
                if gpus:
                    heapq.heappop(queue)
                    self._begin(job, gpus)
                    placed.append((job, gpus[0].host, [gpu.id for gpu in gpus]))
                elif self.states[job.id].failed_on and self._free(gpu_type, now, reserved, wide):
                    aside.append(heapq.heappop(queue))  # it waits for another GPU; those behind it need not
                else:
                    break
            for entry in aside:
                heapq.heappush(queue, entry)
            if queue and wide > 1:
                reserved |= self._reserve(wide, gpu_type, reserved)
        return placed

    def end(self, job_id: str, status: str, now: float) -> str | None:
        """What an attempt's end means: the job's final status, or None if it is queued again."""
        state = self.states[job_id]
        gpus, state.on = state.on, []
        self.running.discard(job_id)
        for gpu in gpus:
            gpu.job, gpu.refused = None, gpu.refused + 1 if status == BUSY else 0
            if gpu.refused:
                gpu.rests_until = now + min(REST_S, FIRST_REST_S * 2 ** (gpu.refused - 1))
        if gpus and self.hosts.get(gpus[0].host, {}).get(gpus[0].id) is gpus[0]:  # its host was not lost
            self._idle[gpus[0].host] += len(gpus)
        if status in DONE:
            for gpu in gpus:
                gpu.failed.clear()
            del self.states[job_id]
            return status
        if status in FAILED:
            return self._failed(state, gpus, status)
        state.interruptions += status == INTERRUPTED
        if state.interruptions >= MOST_INTERRUPTIONS:
            del self.states[job_id]
            return ERROR
        self._queue(state.job)
        return None

    # ---- what is left ---------------------------------------------------------------------------------------------

    @property
    def left(self) -> int:
        """Jobs that are not final."""
        return len(self.states)

    def gpus(self) -> list[Gpu]:
        return [gpu for gpus in self.hosts.values() for gpu in gpus.values()]

    def waiting_for_a_rest(self, now: float) -> bool:
        """Whether a GPU is only set aside, so that a job may yet begin."""
        return any(gpu.rests_until > now and not gpu.dropped for gpu in self.gpus())

    def impossible(self, *, dropped: bool = False) -> list[Job]:
        """Queued jobs that no host can hold, however long they wait. dropped: even with the GPUs that were dropped."""
        most = defaultdict(int)
        for host, gpus in self.hosts.items():
            usable = sum(dropped or not gpu.dropped for gpu in gpus.values())
            most[self.types[host]] = max(most[self.types[host]], usable)
        return [s.job for s in self.states.values() if not s.on and s.job.gpus > most[s.job.gpu]]

    # ---- choosing -------------------------------------------------------------------------------------------------

    def _queue(self, job: Job) -> None:
        entry = (job.rank, -job.seconds, next(self._order), job.id)
        heapq.heappush(self._queues[job.gpus, job.gpu], entry)

    def _begin(self, job: Job, gpus: list[Gpu]) -> None:
        self.states[job.id].on = gpus
        self.running.add(job.id)
        self._idle[gpus[0].host] -= len(gpus)
        for gpu in gpus:
            gpu.job = job.id

    def _of_type(self, gpu_type: str):
        return ((host, gpus) for host, gpus in self.hosts.items() if self.types[host] == gpu_type)

    def _free(self, gpu_type: str, now: float, reserved: set[str], wide: int, avoid: set[str] = frozenset()):
        """`wide` free GPUs of the fullest host that has them; [] if none has."""
        best = []
        for host, gpus in self._of_type(gpu_type):
            if host in reserved or self._idle[host] < wide:
                continue
            free = [
                gpu
                for gpu in gpus.values()
                if gpu.job is None and not gpu.dropped and gpu.rests_until <= now and gpu.name not in avoid
            ]
            if len(free) >= wide and (not best or len(free) < len(best)):
                best = free
                if len(free) == wide:
                    break
        return best[:wide]

    def _fit(self, job: Job, now: float, reserved: set[str]) -> list[Gpu]:
        """GPUs for a job: not those that it failed on, as long as others could ever take it."""
        avoid = set().union(*self.states[job.id].failed_on)
        if avoid and not self._elsewhere(job, avoid):
            avoid = set()
        return self._free(job.gpu, now, reserved, job.gpus, avoid)

    def _elsewhere(self, job: Job, avoid: set[str]) -> bool:
        return any(
            sum(not gpu.dropped and gpu.name not in avoid for gpu in gpus.values()) >= job.gpus
            for _, gpus in self._of_type(job.gpu)
        )

    def _reserve(self, wide: int, gpu_type: str, reserved: set[str]) -> set[str]:
        """The host that a wide job waits for: narrower jobs stay off it, or it would wait for ever."""
        able = {
            host: sum(gpu.job is None for gpu in gpus.values())
            for host, gpus in self._of_type(gpu_type)
            if host not in reserved and sum(not gpu.dropped for gpu in gpus.values()) >= wide
        }
        return {max(able, key=able.get)} if able else set()

    # ---- failures -------------------------------------------------------------------------------------------------

    def _failed(self, state: _State, gpus: list[Gpu], status: str) -> str | None:
        job = state.job
        state.failed_on.append({gpu.name for gpu in gpus})
        others = self._elsewhere(job, state.failed_on[-1])  # a GPU that no other can stand in for is not dropped
        for gpu in gpus if others else ():
            if job.id not in gpu.failed:
                gpu.failed.append(job.id)
        if len(state.failed_on) < TRIES:
            self._queue(job)
            return None
        if not set.intersection(*state.failed_on):  # it fails wherever it runs: no GPU's fault
            for gpu in self.gpus():
                if job.id in gpu.failed:
                    gpu.failed.remove(job.id)
        del self.states[job.id]
        return status
