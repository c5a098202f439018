"""What a training run is: its length, learning rate and curriculum. Imports no torch."""

import math
from dataclasses import asdict, dataclass

WARM_UP = 0.02  # of the run


@dataclass(frozen=True)
class Stage:
    """From this share of the run on: documents of so many statements about at most so many names, and so many tokens
    in a batch."""

    begins: float
    statements: int
    most_names: int
    tokens: int


CURRICULUM = (
    Stage(0.0, 64, 12, 16384),
    Stage(0.04, 64, 24, 16384),
    Stage(0.1, 128, 48, 16384),
    Stage(0.25, 256, 96, 16384),
    Stage(0.75, 512, 80, 16384),
)


@dataclass(frozen=True)
class Plan:
    """What a training run is.

    seconds: its length; steps, if given, replaces it. rate: of learning, at most. at_once: documents that are made
    together, about. every: seconds between lines of the loss curve. tested: questions of each kind in a line, about
    documents as `asked` has them; tested_last: in the last one. graph: whether a step on a GPU is a CUDA graph.
    """

    seconds: float = 250.0
    steps: int | None = None
    rate: float = 2e-3
    decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    at_once: int = 8192
    every: float = 15.0
    tested: int = 128
    tested_last: int = 512
    asked: Stage = Stage(0.0, 256, 64, 16384)
    graph: bool = True
    curriculum: tuple[Stage, ...] = CURRICULUM

    def stage(self, share: float) -> Stage:
        """The stage that a share of the run is in."""
        return [each for each in self.curriculum if each.begins <= share][-1]

    def as_dict(self) -> dict:
        return asdict(self)


def rate_at(plan: Plan, share: float) -> float:
    """The learning rate: linear warm-up, then a cosine down to a hundredth."""
    if share < WARM_UP:
        return plan.rate * max(share, 1e-3) / WARM_UP
    along = min(1.0, (share - WARM_UP) / (1 - WARM_UP))
    return plan.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * along)))
