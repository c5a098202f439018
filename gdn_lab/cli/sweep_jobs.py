"""The jobs of a sweep: each point's parameters checked, its command, its GPUs and how long it may need."""

import hashlib
from datetime import datetime
from math import prod
from pathlib import Path

from ..bench.run_folder import load_info
from ..cluster.job import FOLDER, PYTHON, Job
from ..cluster.request import Request
from ..report.recorded import DATA, recorded_runs
from ..studies import Study
from ..studies.parameters import ParameterError, words_of
from .errors import UsageError
from .run import declared, find, study_of, values

UNKNOWN_S = 60.0  # expected of a study that was never recorded
PROGRAM = (PYTHON, "-m", "gdn_lab")
DIFFERENT = {"gpus": "different gpus", "limit_s": "different minutes", "command": "different commands"}
AUTO = 10  # values that "auto" stands for on a GPU, about


class Plan:
    """A request whose points have been checked. UsageError, one sentence, for the first that cannot be.

    name: of its study or notebook, in jobs and pages. request: as asked for, with values as they were read: paths are
    absolute and 01 is 1, so that it means the same wherever it is read again.
    """

    def __init__(self, request: Request):
        (self.path,) = find([request.study])
        self.study, self.request = study_of(self.path), request
        self.name = self.path.stem if self.study is not None else own_name(self.path)
        defaults = {name: default.strip("'\"") for name, (_, default, _) in declared(self.path).items()}
        read = [self._read(defaults, words) for words in request.points()]
        self.points = [self._point(defaults, words) for words in read]
        self.request = request._replace(
            study=request.study if self.study is not None else str(self.path),
            over={name: list(dict.fromkeys(words[name] for words in read)) for name in request.over},
            given={name: read[0][name] for name in request.given},
        )

    def _read(self, defaults: dict[str, str], words: dict[str, str]) -> dict[str, str]:
        """The words of a point as text of the values that they mean."""
        read = values(self.path, words)
        return {name: word if word == defaults[name] else self._text(word, read[name]) for name, word in words.items()}

    def _text(self, word: str, value) -> str:
        """The value as a word, if that means the same: a notebook of the user's own may read '1' as a number.

        A file's path is absolute: a job's current folder is another one.
        """
        if isinstance(value, str) and (path := Path(value).expanduser()).is_file():
            return str(path.absolute())
        plain = isinstance(value, (bool, int, float)) or (isinstance(value, str) and self.study is not None)
        return str(value) if plain else word

    def _point(self, defaults: dict[str, str], words: dict[str, str]) -> tuple[dict[str, str], int, tuple[str, ...]]:
        """(all parameters as text, GPUs, command) of one point."""
        given = {name: value for name, value in words.items() if defaults[name] != value}
        return defaults | words, self._gpus(words), self._command(given)

    def _gpus(self, words: dict[str, str]) -> int:
        if self.request.gpus is not None or self.study is None:
            return self.request.gpus or 1
        try:
            return self.study.gpus_of(self.study.parameters.parse(words, self.path.stem)) or 1
        except ParameterError as error:
            raise UsageError(str(error)) from None

    def _command(self, given: dict[str, str]) -> tuple[str, ...]:
        """Words that measure a point: without its notebook where the study can be recorded so, else the notebook."""
        if self.study is not None and self.study.record:
            return record_words(self.study, given)
        name = self.path.stem if self.study is not None else str(self.path)
        return run_words(name, given)

    def jobs(self, gpu: str, commit: str) -> list[Job]:
        """The jobs of all points on a type of GPU."""
        return [
            Job(
                study=self.name,
                parameters=parameters,
                commit=commit,
                gpu=gpu,
                gpus=gpus,
                command=command,
                seconds=expected_seconds(self.path.stem, parameters, gpu),
                limit_s=60 * self.request.minutes,
            )
            for parameters, gpus, command in self.points
        ]


def own_name(path: Path) -> str:
    """The name of a notebook of the user's own, with a hash of where it is and what it holds: toy-0a1b2c3d."""
    found = hashlib.sha256(f"{path}\0".encode() + path.read_bytes())
    return f"{path.stem}-{found.hexdigest()[:8]}"


def jobs_of(plans: list[Plan], gpu: str, commit: str) -> list[Job]:
    """The jobs of all plans on a type of GPU, each once. UsageError if one is asked for in two ways."""
    found: dict[str, Job] = {}
    for job in (job for plan in plans for job in plan.jobs(gpu, commit)):
        first = found.setdefault(job.id, job)
        for field, words in DIFFERENT.items():
            if getattr(first, field) != getattr(job, field):
                raise UsageError(
                    f"{job.study} is asked for twice with the same parameters and {words}; leave one of them out, or "
                    "give the two different parameters"
                )
    return list(found.values())


def expected_seconds(notebook: str, parameters: dict[str, str], gpu: str, data: Path = DATA) -> float:
    """How long a job may take: as long as the recorded run of its notebook, by the number of points asked for."""
    found = recorded_seconds(notebook, gpu, data)
    return max(1.0, found[0] * _points(parameters) / _points(found[1])) if found else UNKNOWN_S


def record_words(study: Study, given: dict[str, str]) -> tuple[str, ...]:
    """The command of a job that measures a study without its notebook. given: parameters other than the defaults."""
    return (*PROGRAM, "record", study.name, "--fresh", "--folder", f"{FOLDER}/run", *_pairs(given))


def run_words(name: str, given: dict[str, str]) -> tuple[str, ...]:
    """The command of a job that executes a notebook."""
    return (*PROGRAM, "run", name, "--runs", FOLDER, *_pairs(given))


def _pairs(given: dict[str, str]) -> list[str]:
    return [word for name, value in given.items() for word in ("-p", f"{name}={value}")]


def recorded_seconds(folder: str, gpu: str, data: Path = DATA) -> tuple[float, dict] | None:
    """(how long the run in data/measured/<gpu>/<folder> took, its parameters); of another GPU if this one has none."""
    known = [each for each in recorded_runs(data) if each[1] == folder]
    for place in sorted(known, key=lambda each: each[0] != gpu):
        info = load_info(data / "measured" / place[0] / place[1])
        if "end_utc" in info:
            took = datetime.fromisoformat(info["end_utc"]) - datetime.fromisoformat(info["start_utc"])
            return took.total_seconds(), info["parameters"]
    return None


def _points(parameters: dict) -> int:
    """The product of the lengths of all parameters that are lists."""
    return prod(AUTO if str(value) == "auto" else max(1, len(words_of(value))) for value in parameters.values())
