"""What every notebook needs: begin() checks its parameters and opens its run; the rest shows things.

run = notebook.begin(study.STUDY, globals())
p = run.p
"""

import ast
import base64
import os
import shlex

import pandas
import torch
from IPython import get_ipython
from IPython.display import Markdown, display

from ..backends.base import dtype_name
from ..backends.registry import BACKENDS
from ..bench.results import Run
from ..models import GDNShape
from ..pool import STATE_DTYPES
from ..report.recorded import DATA, measured
from ..report.text import device_name, provenance
from ..studies import Study, studies
from ..studies.parameters import ParameterError, nearest
from .installed import frame
from .report import title

GPU_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CPU_BATCHES = (1, 4, 8)
GPU_WORKLOADS = ((1, 512), (32, 256), (1, 2048), (8, 1024), (2, 4096), (1, 8192))  # sequences, tokens of each
CPU_WORKLOADS = ((1, 64), (2, 40))
GPU_SAMPLES, CPU_SAMPLES = 50, 5
RUN_FOLDER = "GDN_LAB_RUN_FOLDER"  # set by the batch command: the folder that it made for this run
INJECTED = "# Parameters"  # how the cell begins that papermill puts after the one tagged `parameters`
ROOT = DATA.parent
NotebookError = ParameterError


# ---- the first cells ------------------------------------------------------------------------------------------------


def begin(which: Study | str, names: dict, *, measures: bool = True) -> Run:
    """Check the parameters, open the run and print what the times below are times of.

    which: the notebook's study. names: the notebook's globals(). measures: False if the notebook times nothing and
    shows what was recorded before.
    Returns the Run with `run.p`, the parsed parameters. Its folder is new under runs/, or the one that the batch
    command made; run.json keeps the parameters as given. A cell that raises marks the run failed or interrupted.
    ParameterError, one sentence: a parameter that is not declared, or a value that cannot be.
    """
    history = [source for source in names.get("In", []) if source.strip()]
    given = given_parameters(history)
    if isinstance(which, str):
        which = next((each for each in studies() if each.notebook == which), which)
    if isinstance(which, Study):
        name, fields = which.notebook, which.parameters.model_fields
        set_here = dict.fromkeys([*fields, *declared_parameters(history), *given])
        values = {field: names[field] for field in set_here if field in names}
        parsed = which.parameters.parse(values, name)
    else:
        name, values, parsed = which, _checked(which, history, names), None
    folder = os.environ.get(RUN_FOLDER)
    words = "".join(f" -p {parameter} {shlex.quote(str(values[parameter]))}" for parameter in given)
    run = Run.create(
        name,
        values,
        root=ROOT / "runs",
        folder=folder or None,
        seed=values.get("seed"),
        command=f"gdn-lab run {name}{words}" if folder else None,
    )
    run.p = parsed
    _watch_cells(run)
    print(header(run, measures))
    return run


def _checked(name: str, history: list[str], names: dict) -> dict:
    """The declared parameters' values of a notebook that is no study."""
    declared = declared_parameters(history)
    for parameter in given_parameters(history):
        if parameter not in declared:
            raise NotebookError(
                f"{name} has no parameter {parameter!r}{nearest(parameter, declared)}; it has: {', '.join(declared)}"
            )
    values = {parameter: names[parameter] for parameter in declared}
    check_values(values, declared)
    return values


def declared_parameters(history: list[str]) -> dict[str, str]:
    """{name: type} of the latest cell of nothing but annotated assignments: the one tagged `parameters`."""
    for source in reversed(history):
        body = _parsed(source)
        if body and all(isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) for line in body):
            return {line.target.id: ast.unparse(line.annotation) for line in body}
    return {}


def given_parameters(history: list[str]) -> list[str]:
    """The names that papermill's injected cell sets; none when the notebook is run by hand."""
    injected = next((source for source in reversed(history) if source.startswith(INJECTED)), "")
    targets = [target for line in _parsed(injected) if isinstance(line, ast.Assign) for target in line.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _parsed(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # a magic, say
        return []


def check_values(values: dict, declared: dict[str, str]) -> None:
    """NotebookError if a parameter has not its declared type, or a value that the workbook does not know."""
    types = {"int": int, "float": (int, float), "str": str, "bool": bool}
    for name, value in values.items():
        expected = types.get(declared[name])
        if expected and (not isinstance(value, expected) or isinstance(value, bool) and expected is not bool):
            way_out = f"; with papermill give it as text: -r {name} {value}" if expected is str else ""
            raise NotebookError(f"{name}: expected {declared[name]}, got {value!r} ({type(value).__name__}){way_out}")
    try:
        if "model" in values:
            GDNShape.from_model(values["model"], values.get("tp", 1))
    except ValueError as error:
        raise NotebookError(str(error)) from None
    for name, check in (
        ("dtype", parse_dtype),
        ("batches", parse_batches),
        ("backends", parse_backends),
        ("workloads", parse_workloads),
    ):
        if name in values:
            check(values[name])
    for name, least in (("samples", 0), ("seed", 0), ("gigabytes", 0.001)):
        if name in values and not values[name] >= least:
            raise NotebookError(f"{name}: expected at least {least}, got {values[name]}")


def header(run: Run, measures: bool = True) -> str:
    """Two lines: what the times below are times of, and where the results go."""
    facts, folder = run.info["environment"], run.folder.absolute()
    where = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder.name
    if not measures:
        said = "Nothing is timed here: what follows was recorded before, on the GPU that each figure names"
    elif facts["gpu_name"]:
        said = f"GPU times: {facts['gpu_name']}, compute capability {facts['compute_capability']}"
    else:
        said = (
            f"CPU times: torch finds no GPU here, so what follows is timed on the CPU ({facts['cpu']}).\n"
            "They show that everything works and rank no GPU kernel; recorded GPU results stand beside them where "
            "there are any"
        )
    return f"{said}.\nResults of this run: {where}"


def _watch_cells(run: Run) -> None:
    """Has IPython record in the run how a cell ended that raised."""
    shell = get_ipython()
    if shell is None:
        return

    def after(result):
        error = result.error_before_exec or result.error_in_exec
        if error:
            run.finish("failed" if isinstance(error, Exception) else "interrupted")

    before = getattr(shell, "_gdn_lab_watch", None)
    if before:
        shell.events.unregister("post_run_cell", before)
    shell.events.register("post_run_cell", after)
    shell._gdn_lab_watch = after


# ---- reading parameters ---------------------------------------------------------------------------------------------


def device() -> torch.device:
    """The GPU if torch has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def parse_batches(text: str, *, cpu=CPU_BATCHES) -> list[int]:
    """ "1,2,4" -> [1, 2, 4]; "auto" -> 1…512 on a GPU and `cpu` on a CPU. NotebookError for anything else."""
    if text.strip() == "auto":
        return list(GPU_BATCHES if device().type == "cuda" else cpu)
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise NotebookError(f"batches: expected auto or positive whole numbers such as 1,2,4, got {text!r}")
    return sorted({int(word) for word in words})


def parse_workloads(text: str) -> list[tuple[int, int]]:
    """ "8x1024,1x8192" -> [(8, 1024), (1, 8192)], sequences and tokens of each; "auto" -> GPU_WORKLOADS on a GPU, else
    CPU_WORKLOADS. NotebookError for anything else."""
    if text.strip() == "auto":
        return list(GPU_WORKLOADS if device().type == "cuda" else CPU_WORKLOADS)
    words = [word.strip().split("x") for word in text.split(",")]
    if not all(len(word) == 2 and all(part.isdecimal() and int(part) > 0 for part in word) for word in words):
        raise NotebookError(f"workloads: expected auto or sequences x tokens such as 8x1024,1x8192, got {text!r}")
    return [(int(sequences), int(length)) for sequences, length in words]


def parse_degrees(model: str, *degrees: int) -> list[int]:
    """Each different number of tensor-parallel GPUs above 0. NotebookError if they cannot share the model's heads."""
    for tp in degrees:
        try:
            if tp:
                GDNShape.from_model(model, tp)
        except ValueError as error:
            raise NotebookError(str(error)) from None
    return [tp for tp in dict.fromkeys(degrees) if tp]


def parse_backends(text: str) -> str | list[str]:
    """ "all" -> "all"; "triton/vk, torch" -> ["triton/vk", "torch/vk", "torch/kv"]. NotebookError for unknown names."""
    if text.strip() == "all":
        return "all"
    known = {f"{backend.name}/{variant.name}" for backend in BACKENDS.values() for variant in backend.variants}
    chosen = []
    for word in (word.strip() for word in text.split(",")):
        if word in BACKENDS:
            chosen += [f"{word}/{variant.name}" for variant in BACKENDS[word].variants]
        elif word in known:
            chosen.append(word)
        else:
            choices = [*BACKENDS, *sorted(known)]
            raise NotebookError(
                f"backends: {word!r} is unknown{nearest(word, choices)}; choose all or from {', '.join(choices)}"
            )
    return list(dict.fromkeys(chosen))


def parse_dtype(text: str) -> torch.dtype:
    """ "bfloat16" -> torch.bfloat16, of the dtypes a pool stores. NotebookError for anything else."""
    known = {dtype_name(dtype): dtype for dtype in STATE_DTYPES}
    if text not in known:
        raise NotebookError(f"dtype: {text!r} is unknown{nearest(text, known)}; choose one of {', '.join(known)}")
    return known[text]


def parse_samples(samples: int) -> int:
    """0 -> 50 on a GPU and 5 on a CPU; anything else is taken as it is."""
    return samples or (GPU_SAMPLES if device().type == "cuda" else CPU_SAMPLES)


def first_timer() -> list[str]:
    """The timer that figures are drawn from: replay on a GPU, the host's clock on a CPU."""
    return ["cuda_graph_replay" if device().type == "cuda" else "host_clock"]


# ---- showing --------------------------------------------------------------------------------------------------------


def installed() -> pandas.DataFrame:
    """Every variant: what it is, and "yes" or why it cannot run on this machine."""
    return frame()


def recorded(gpu: str, notebook: str) -> tuple[dict, list[dict]]:
    """(run, rows) of data/measured/<gpu>/<notebook>; ({}, []) and a printed line where none is recorded."""
    try:
        return measured(gpu, notebook)
    except FileNotFoundError as error:
        print(f"Beside this: {error}.")
        return {}, []


def answering(run: Run, rows: list[dict], beside: tuple[dict, list[dict]]) -> tuple[dict, list[dict]]:
    """(run, rows) that the closing answer rests on: this run's on a GPU, else the recorded ones if there are any."""
    if device().type == "cuda" or not beside[1]:
        print(f"The answer rests on this run: {device_name(run.info)}.")
        return run.info, rows
    print(f"The answer rests on recorded rows, not on this machine: {provenance(beside[0])}.")
    return beside


def show(run: Run, figure, name: str) -> None:
    """Save a figure into the run's folder and show it, as SVG where that can be, with its title as alternative text."""
    png = run.save_figure(figure, name)
    about = {"alt": title(figure), "width": int(figure.get_figwidth() * 88)}
    data = {
        "image/svg+xml": png.with_suffix(".svg").read_text(encoding="utf-8"),
        "image/png": base64.b64encode(png.read_bytes()).decode(),
        "text/plain": title(figure),
    }
    display(data, metadata={"image/svg+xml": about, "image/png": about}, raw=True)


def say(sentences: list[str]) -> None:
    """Sentences as a list of points."""
    display(Markdown("\n".join(f"- {sentence}" for sentence in sentences)))


def table(frame: pandas.DataFrame, caption: str = "", *, digits: int = 1):
    """A DataFrame for display: numbers with thousands separators and `digits` decimals, empty where nothing is.

    Words stand to the left, numbers to the right, and errors, which span decades, as powers of ten.
    """
    errors = [column for column in frame.columns if "error" in str(column)]
    words = [column for column in frame.columns if frame[column].dtype.kind not in "iuf"]
    whole = [column for column in frame.columns if pandas.api.types.is_integer_dtype(frame[column])]
    rest = [column for column in frame.columns if pandas.api.types.is_float_dtype(frame[column])]
    style = frame.style.format("{:,d}", subset=whole).format(precision=digits, thousands=",", na_rep="", subset=rest)
    style = style.format("{:.1e}", na_rep="", subset=[column for column in errors if column in rest])
    style = style.set_properties(subset=words, **{"text-align": "left"})
    left = [{"selector": "th.col_heading", "props": "text-align: left"}]
    style = style.set_table_styles({column: left for column in words}, overwrite=False)
    if not isinstance(frame.index, pandas.RangeIndex):
        return style.set_caption(caption)
    return style.set_caption(caption).hide(axis="index")
