"""The pieces of a whole record of one GPU type: recorded runs, notebooks, tests on a GPU, random calls, sanitizer."""

from dataclasses import replace

from ..cluster.job import FOLDER, PYTHON, Job
from ..report.history import last_seconds
from ..report.random_calls import FOLDER as CALLS
from ..studies import Study, studies
from ..studies.parameters import ParameterError
from .run import ROOT
from .sweep_jobs import UNKNOWN_S, record_words, recorded_seconds, run_words

# The tests on a GPU in four parts, since all of them are too long for one piece of nine minutes:
# what make is given for each.
TESTS = {
    "tests_kernels": 'test-gpu-together ARGS="tests --ignore=tests/layer --ignore=tests/engine"',
    "tests_layer": "test-gpu-together ARGS=tests/layer",
    "tests_engine": "test-gpu-together ARGS=tests/engine",
    "tests_alone": "test-gpu-alone",
}
SANITIZE = "sanitize"
TRACE = "04_nsight_systems"  # with the trace that it shows: of one configuration, few replays, and no heatmap
TRACED = ("configurations=after", "samples=20", "heat_models=", "heat_tps=", "heat_batches=")
TRACE_S = 120.0
# What launches a step kernel by kernel waits for the host, so no other piece may run on it meanwhile.
ALONE = ("03_decode_step", TRACE, "tests_alone")
GUESSED_S = 240.0  # of a piece of SHELL, until the first record has measured it
PAGE_S = 40.0  # of a notebook that times nothing
TIMED_PAGE_S = 120.0  # of one that times, but whose rows are not kept
SET_UP_S = 20.0  # of a notebook beyond its own run: packages and kernels
# make's own recipes, on the Python that runs this; READY= leaves the set-up of .venv out. make fails with 2, which is a
# usage error of gdn-lab's, so 1 takes its place.
MAKE = f'make READY= IN_VENV={PYTHON} GDN_LAB="{PYTHON} -m gdn_lab"'
SHELL = {
    **{name: f"{MAKE} {target} || exit 1" for name, target in TESTS.items()},
    CALLS: f"{PYTHON} -m gdn_lab check ours --calls 100000 --runs {FOLDER}",
    SANITIZE: f"{MAKE} -k -j 8 sanitize; status=$?; cp runs/sanitize/*.log {FOLDER}/; [ $status -eq 0 ]",
}


def pieces(gpu: str, commit: str) -> tuple[list[Job], list[str]]:
    """(jobs, sentences on what cannot be recorded on this machine). A job's `study` is the folder that it fills."""
    jobs, refused = [], []
    for study in studies():
        for folder, given in (study.records or {study.notebook: {}}).items():
            try:
                gpus = study.gpus_of(study.parameters.parse(given, folder))
            except ParameterError as error:
                refused.append(f"{folder} is left out: {error}")
                continue
            if gpus:
                jobs.append(_of_study(study, folder, given, gpus=gpus, gpu=gpu, commit=commit))
            else:
                refused.append(f"{folder} is left out: it compares numbers of GPUs, and there is one here")
    for name, line in SHELL.items():
        seconds = last_seconds(ROOT / "data", gpu).get(name, GUESSED_S)
        command = ("sh", "-c", line)
        jobs.append(Job(name, {}, commit, gpu, command=command, seconds=seconds, limit_s=3 * seconds + 120))
    return jobs, refused


def of_whole_host(jobs: list[Job], gpus: int) -> list[Job]:
    """The same jobs, those of ALONE with all `gpus` of this host: nothing is placed beside them."""
    return [replace(job, gpus=max(gpus, job.gpus)) if job.study in ALONE else job for job in jobs]


def trace_words() -> tuple[str, ...]:
    """The command that records a step under a profiler and opens it in notebook 04; the run keeps what it recorded."""
    given = " ".join(f"-p {pair}" for pair in TRACED)
    step = f"{FOLDER}/both/*-03_decode_step"
    return (
        "sh",
        "-c",
        f"{PYTHON} -m gdn_lab profile --runs {FOLDER}/both {given} && mv {FOLDER}/both/*-{TRACE} {FOLDER}/run"
        f" && cp $(ls -d {step}/*.csv {step}/capture.sqlite {step}/capture.json.gz 2> /dev/null) {FOLDER}/run",
    )


def _of_study(study: Study, folder: str, given: dict[str, str], *, gpus: int, gpu: str, commit: str) -> Job:
    """A run of the notebook where the folder has its name, so that its page is kept; otherwise of rows alone."""
    seconds = last_seconds(ROOT / "data", gpu).get(folder) or _guessed(study, folder, given, gpu)
    with_page = folder == study.notebook or not study.record
    command = run_words(study.notebook, given) if with_page else record_words(study, given)
    return Job(
        study=folder,
        parameters={name: str(value) for name, value in given.items()},
        commit=commit,
        gpu=gpu,
        gpus=gpus,
        command=trace_words() if folder == TRACE else command,
        seconds=seconds,
        limit_s=3 * seconds + 120,
    )


def _guessed(study: Study, folder: str, given: dict[str, str], gpu: str) -> float:
    """How long a notebook may take that was never a piece: its own limit, or as long as its recorded run."""
    if not study.records:
        timed = "samples" in study.parameters.model_fields
        return TRACE_S if study.notebook == TRACE else TIMED_PAGE_S if timed else PAGE_S
    if limit := study.parameters.model_fields.get("minutes"):
        return SET_UP_S + 60 * float(given.get("minutes", limit.default))
    found = recorded_seconds(folder, gpu)
    return SET_UP_S + (found[0] if found else UNKNOWN_S)
