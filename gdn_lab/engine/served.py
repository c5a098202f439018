"""What a serving run left: rows, tokens, duration, energy; on one rank or on several."""

from typing import NamedTuple

from .metrics import FINISHED, summary


class Served(NamedTuple):
    """What serve() did: rows as in engine/metrics.py, {id: tokens made}, duration, and energy if the GPU counts it."""

    requests: list[dict]
    steps: list[dict]
    tokens: dict[int, list[int]]
    wall_s: float
    joules: float | None

    def summary(self, gpus: int = 1) -> dict:
        """The metrics of the run, engine/metrics.py."""
        return summary(self.requests, self.steps, self.wall_s, gpus=gpus, joules=self.joules)


class ServingInterrupted(KeyboardInterrupt):
    """Ctrl-C while serving; `served` is what there was until then."""

    def __init__(self, served: Served):
        done = sum(row["outcome"] == FINISHED for row in served.requests)
        super().__init__(f"interrupted after {done} requests were answered")
        self.served = served


def across_ranks(served: Served, communicator) -> Served:
    """The run as all ranks saw it: each step's gpu_us is the slowest rank's, energy is the sum. Every rank calls it.

    RuntimeError if the ranks made other steps or other tokens, which would be a bug of the model or of the loop.
    """
    own = [step["gpu_us"] for step in served.steps], served.joules, served.tokens
    ranks = [communicator.broadcast_object(own, source=rank) for rank in range(communicator.size)]
    times, joules, tokens = zip(*ranks, strict=True)
    if len({len(each) for each in times}) > 1 or any(each != tokens[0] for each in tokens):
        raise RuntimeError("the ranks disagree on steps or tokens; their all-reduces must give the same bits on each")
    steps = [step | {"gpu_us": max(each)} for step, *each in zip(served.steps, *times, strict=True)]
    return served._replace(steps=steps, joules=None if None in joules else sum(joules))
