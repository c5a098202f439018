"""What the driver asks of the hosts, and the one host that is this process's own."""

from abc import ABC, abstractmethod

from .agent import Agent
from .job_process import Task

HERE = "this machine"


class Hosts(ABC):
    """Hosts with GPUs, however they are reached. Events are dictionaries with "host" and "kind":

    "joined" (gpu: type, ids, machine), "lost" (reason), "refused" (reason: the host cannot take part), and those of
    an Agent.
    """

    @abstractmethod
    def events(self, wait_s: float) -> list[dict]:
        """What happened since the last call, waiting up to `wait_s` for the first event."""

    @abstractmethod
    def launch(self, host: str, tasks: list[Task]) -> None:
        """Begin jobs on a host; what becomes of them comes as events."""

    def may_join(self) -> bool:
        """Whether a host may still join, or join again."""
        return True

    @abstractmethod
    def stop(self) -> None:
        """Stop all jobs and let go of all hosts; no events come after it."""


class ThisHost(Hosts):
    """This machine, without Ray: the same agent in this process."""

    def __init__(self, gpu_type: str, ids: list[str], **options):
        self.agent, self.seen = Agent(**options), 0
        self._first = [{"host": HERE, "kind": "joined", "gpu": gpu_type, "ids": ids}]

    def events(self, wait_s: float) -> list[dict]:
        if self._first:
            found, self._first = self._first, []
            return found
        found = self.agent.poll(self.seen, wait_s)
        self.seen = found[-1][0] if found else self.seen
        return [{"host": HERE} | event for _, event in found]

    def launch(self, host: str, tasks: list[Task]) -> None:
        self.agent.start(tasks)

    def may_join(self) -> bool:
        """See Hosts."""
        return bool(self._first)

    def stop(self) -> None:
        self.agent.stop()
