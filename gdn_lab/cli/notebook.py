"""What every notebook needs: begin() checks its parameters and opens its run; the rest shows things.

run = notebook.begin(study.STUDY, globals())
p = run.p
"""

import ast
import base64
import os
import shlex
import warnings

import pandas
import torch
from IPython import get_ipython
from IPython.display import display

from ..backends.author_files import kernel_words
from ..backends.base import dtype_name
from ..bench.results import Run
from ..names import readable
from ..report.checks import check_caption, check_table
from ..report.nearest import Asked, Setting, nearest_record
from ..report.recorded import DATA, origin
from ..report.style import title_of
from ..report.text import as_html, device_name, provenance, sentence_as_html
from ..studies import Study
from . import kept_answer
from .installed import frame

RUN_FOLDER = "GDN_LAB_RUN_FOLDER"  # set by `gdn-lab run`: the folder that it made for this run
INJECTED = "# Parameters"  # how the cell begins that papermill puts after the one tagged `parameters`
NO_MATHS = "mathjax_ignore tex2jax_ignore"  # classes whose text MathJax leaves alone: JupyterLab's, and version 2
LONGEST_NAME, SHORTEST_SENTENCE = 24, 40  # letters: a column of names has no line breaks, one of sentences gets room
ROOT = DATA.parent


# ---- the first cells ------------------------------------------------------------------------------------------------


def begin(study: Study, names: dict, *, measures: bool = True) -> Run:
    """Check the parameters, open the run and print what the times below are times of.

    names: the notebook's globals(). measures: False if the notebook times nothing and shows what was recorded before.
    Returns the Run with `run.p`, the parsed parameters. Its folder is new under runs/, or the one that `gdn-lab run`
    made; run.json keeps the parameters as given. A cell that raises marks the run failed or interrupted.
    ParameterError, one sentence: a parameter that is not declared, or a value that cannot be.
    """
    history = [source for source in names.get("In", []) if source.strip()]
    given = given_parameters(history)
    set_here = dict.fromkeys([*study.parameters.model_fields, *declared_parameters(history), *given])
    values = {name: names[name] for name in set_here if name in names}
    parsed = study.parameters.parse(values, study.notebook)
    folder = os.environ.get(RUN_FOLDER)
    words = "".join(f" -p {name} {shlex.quote(str(values[name]))}" for name in given) + kernel_words()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run = Run.create(
            study.notebook,
            values,
            root=ROOT / "runs",
            folder=folder or None,
            seed=values.get("seed"),
            command=f"gdn-lab run {study.notebook}{words}" if folder else None,
        )
    run.p = parsed
    if parsed.checks_only:
        torch.set_num_threads(1)  # at toy size threads wait for each other longer than they compute
    _watch_cells(run)
    print("\n".join([header(run, measures), *(str(each.message) for each in warned)]))
    return run


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


def header(run: Run, measures: bool = True) -> str:
    """Two lines: what the times below are times of, and where the results go."""
    facts, folder = run.info["environment"], run.folder.absolute()
    where = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder.name
    if not measures:
        times = "Nothing is timed here: what follows was recorded before, on the GPU that each figure names."
    elif facts["gpu_name"]:
        times = f"GPU times: {facts['gpu_name']}, compute capability {facts['compute_capability']}."
    else:
        times = (
            f"CPU times: torch finds no GPU here, so kernels are checked on the CPU ({facts['cpu']}).\n"
            "That shows that everything works and ranks no kernel; recorded GPU results are shown with their GPU."
        )
    return f"{times}\nResults of this run: {where}"


def _watch_cells(run: Run) -> None:
    """Have IPython record in the run how a cell ended that raised."""
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


# ---- where it runs --------------------------------------------------------------------------------------------------


def device() -> torch.device:
    """The GPU if torch has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def first_timer() -> list[str]:
    """The timer that figures are drawn from: replay on a GPU, the host's clock on a CPU."""
    return ["cuda_graph_replay" if device().type == "cuda" else "host_clock"]


# ---- showing --------------------------------------------------------------------------------------------------------


def installed() -> pandas.DataFrame:
    """Every variant: what it is, and "yes" or why it cannot run on this machine."""
    return frame()


def recorded(run: Run, notebook: str | None = None) -> tuple[dict, list[dict]]:
    """(run, rows) recorded of a notebook, by default this one, that are nearest to this run's parameters.

    Of the GPU or run folder that the parameter gpu_reference names. ({}, []) and a printed line where there is none.
    Where they are not of what was asked, run["lead"] says so, and the line is printed.
    """
    gpu, notebook = run.p.gpu_reference, notebook or run.info["notebook"]
    try:
        match = nearest_record(asked(run.p, run.info["parameters"]), gpu, notebook)
    except ValueError as error:
        print(f"Nothing recorded to compare with: {error}.")
        return {}, []
    if match is None:
        print(f"Nothing recorded to compare with: no run of {notebook} is recorded on {gpu}.")
        return {}, []
    if "lead" in match.run:
        print(f"{match.run['lead']}.")
    return match.run, match.rows


def asked(p, given: dict) -> Asked:
    """What the parameters of a study ask for. given: their values as typed; "auto" and 0 ask for nothing special."""
    dtype = dtype_name(getattr(p, "dtype", torch.bfloat16))
    open_ones = {name for name, value in given.items() if str(value) in ("auto", "0")}
    tps = p.shapes if hasattr(p, "shapes") else [p.tp]
    batches = getattr(p, "batches", None) or [p.batch] if hasattr(p, "batches") or hasattr(p, "batch") else []
    return Asked(
        settings=tuple(Setting.of(p.model, tp, dtype) for tp in tps),
        batches=() if open_ones & {"batch", "batches"} else tuple(batches),
        tokens=tuple(getattr(p, "tokens", ())),
        workloads=() if "workloads" in open_ones else tuple(getattr(p, "workloads", ())),
        precision=getattr(p, "precision", None),
        whole_step=hasattr(p, "precision"),
    )


def answering(run: Run, rows: list[dict], recorded: tuple[dict, list[dict]]) -> tuple[dict, list[dict]]:
    """(run, rows) that the closing answer is made from: this run's on a GPU, else the recorded ones if any."""
    if device().type == "cuda" or not recorded[1]:
        print(f"The answer is from this run: {device_name(run.info)}.")
        run.answered = _timed_here(run)
        return run.info, rows
    where = origin(*recorded).removeprefix("recorded: ")
    print(f"The answer is from recorded rows, not from this machine: {where}. {provenance(recorded[0])}.")
    run.answered = "recorded", where
    return recorded


def finish(run: Run, sentences: list[str], figure=None, name: str = "answer", *, device: str = "") -> None:
    """Show the answer, its sentences and its figure, keep both in the run's folder, and end the run.

    They stand at the top of the page and on the card of runs/index.html. name: of the figure's files. device: what the
    sentences hold for, where it is neither this machine nor that of answering().
    """
    say(sentences)
    if figure is not None:
        show(run, figure, name)
    keep(run, sentences, figure, name, device=device)
    run.finish()


def keep(run: Run, sentences: list[str], figure=None, name: str = "answer", *, device: str = "") -> None:
    """Keep the answer in the run's folder, as finish() does, and show nothing: for a page that shows it otherwise."""
    source, answered = getattr(run, "answered", None) or (("recorded", device) if device else _timed_here(run))
    if figure is not None:
        kept_answer.write_thumbnail(run.folder, run.folder / f"{name}.png")
    kept_answer.write(
        run.folder,
        sentences=sentences,
        figure=name if figure is not None else None,
        alt=title_of(figure) if figure is not None else "",
        source=source,
        device=answered,
    )


def _timed_here(run: Run) -> tuple[str, str]:
    """What an answer from this machine rests on: a GPU's measurements, or checks: a CPU's times rank nothing."""
    return "measured here" if run.info["environment"]["gpu_name"] else "checked here", device_name(run.info)


def checked(run: Run, rows: list[dict]):
    """What was checked, as a table, where kernels are only checked; None where they are ranked."""
    return table(check_table(rows), check_caption(rows)) if run.p.checks_only else None


def table_here(run: Run, make, timed, caption: str, *, digits: int = 1):
    """table(make(timed), caption) of this machine's times; None where kernels are only checked."""
    return None if run.p.checks_only else table(make(timed), caption, digits=digits)


def show_here(run: Run, make, timed, name: str) -> None:
    """show(run, make(timed), name) of this machine's times; a line instead where kernels are only checked."""
    if run.p.checks_only:
        print("No figure of this machine: a CPU's times do not rank kernels. Pass -p samples=5 to time them anyway.")
    else:
        show(run, make(timed), name)


def show(run: Run, figure, name: str) -> None:
    """Save a figure into the run's folder and show it, as SVG where that can be, with its title as alternative text."""
    png = run.save_figure(figure, name)
    about = {"alt": title_of(figure), "width": int(figure.get_figwidth() * 88)}
    data = {
        "image/svg+xml": png.with_suffix(".svg").read_text(encoding="utf-8"),
        "image/png": base64.b64encode(png.read_bytes()).decode(),
        "text/plain": title_of(figure),
    }
    display(data, metadata={"image/svg+xml": about, "image/png": about}, raw=True)


def say(sentences: list[str]) -> None:
    """Show sentences as a list of points: as plain text, but for `code`. What names of a trace hold has no effect."""
    points = "\n".join(f"<li>{sentence_as_html(sentence)}</li>" for sentence in sentences)
    text = "\n".join(f"- {readable(sentence)}" for sentence in sentences)
    display({"text/html": f'<ul class="{NO_MATHS}">\n{points}\n</ul>', "text/plain": text}, raw=True)


def table(frame: pandas.DataFrame, caption: str = "", *, digits: int = 1):
    """Style a DataFrame for display: thousands separators, `digits` decimals, empty cells for missing numbers.

    Words are aligned left, numbers right; errors, which span decades, are powers of ten. Every text, those of headings
    and the caption too, is shown as it is: markup in it has no effect.
    """
    errors = [column for column in frame.columns if "error" in str(column)]
    words = [column for column in frame.columns if frame[column].dtype.kind not in "iuf"]
    whole = [column for column in frame.columns if _whole_numbers(frame[column])]
    rest = [
        column for column in frame.columns if pandas.api.types.is_float_dtype(frame[column]) and column not in whole
    ]
    style = frame.style.format(as_html, na_rep="", subset=words)
    for axis in (0, 1):
        style = style.format_index(as_html, axis=axis).format_index_names(as_html, axis=axis)
    style = style.format("{:,.0f}", subset=whole, na_rep="")
    style = style.format(precision=digits, thousands=",", na_rep="", subset=rest)
    style = style.format("{:.1e}", na_rep="", subset=[column for column in errors if column in rest])
    style = style.set_properties(subset=words, **{"text-align": "left"})
    longest = {column: max((len(str(cell)) for cell in frame[column]), default=0) for column in words}
    names = [column for column in words if longest[column] <= LONGEST_NAME]
    sentences = [column for column in words if longest[column] > SHORTEST_SENTENCE]
    style = style.set_properties(subset=names, **{"white-space": "nowrap"})
    style = style.set_properties(subset=sentences, **{"min-width": "16em"})
    left = [{"selector": "th.col_heading", "props": "text-align: left"}]
    style = style.set_table_styles({column: left for column in words}, overwrite=False)
    style = style.set_table_attributes(f'class="{NO_MATHS}"').set_caption(as_html(caption))
    return style.hide(axis="index") if isinstance(frame.index, pandas.RangeIndex) else style


def _whole_numbers(column: pandas.Series) -> bool:
    """Whether a column holds whole numbers alone, as one of batch sizes does that is float because cells are empty."""
    if pandas.api.types.is_integer_dtype(column):
        return True
    return pandas.api.types.is_float_dtype(column) and column.isna().any() and (column.dropna() % 1 == 0).all()
