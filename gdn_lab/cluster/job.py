"""A job: one point of a sweep, with an id that is the same whenever and wherever it is asked for."""

import hashlib
import json
from dataclasses import dataclass, field

OK, WRONG, REFUSED, ERROR, TIMEOUT, INTERRUPTED = "ok", "wrong", "refused", "error", "timeout", "interrupted"
STATUSES = (OK, WRONG, REFUSED, ERROR, TIMEOUT, INTERRUPTED)
DONE = (OK, WRONG, REFUSED)  # final at once
FAILED = (ERROR, TIMEOUT)  # final when they come a second time
FOLDER = "{folder}"  # of a command: the empty folder that the job may write to
PYTHON = "{python}"  # of a command: the host's Python that has this workbook


@dataclass(frozen=True)
class Job:
    """One process that takes `gpus` GPUs of one host.

    study: name of a notebook. parameters: all of them, as text. commit: of the code. gpu: type of the GPUs ("h100").
    command: its words, with FOLDER and PYTHON in them. seconds: that it is expected to take;
    limit_s: after which it is stopped. rank: jobs with a lower one begin first, whatever they take.
    """

    study: str
    parameters: dict[str, str]
    commit: str
    gpu: str
    gpus: int = 1
    command: tuple[str, ...] = ()
    seconds: float = 60.0
    limit_s: float = 3600.0
    rank: int = 0
    id: str = field(init=False, default="")

    def __post_init__(self):
        object.__setattr__(self, "id", job_id(self.study, self.parameters, self.commit, self.gpu))

    def __str__(self) -> str:
        given = ", ".join(f"{name} {value}" for name, value in self.parameters.items())
        return f"{self.study} on {self.gpu}" + (f" ({given})" if given else "")


def job_id(study: str, parameters: dict, commit: str, gpu: str) -> str:
    """16 hexadecimal digits: a hash of study, parameters, commit and GPU type."""
    named = sorted((name, str(value)) for name, value in parameters.items())
    return hashlib.sha256(json.dumps([study, named, commit, gpu]).encode()).hexdigest()[:16]
