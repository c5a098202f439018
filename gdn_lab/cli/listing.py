"""gdn-lab list: the studies and their questions; of one study its parameters with type, default and meaning."""

import textwrap
from pathlib import Path

from ..studies import Study, studies
from ..studies.parameters import StudyParameters
from .run import RUNS, folder_of_runs, shown

WIDTH = 110


def add_arguments(parser) -> None:
    parser.add_argument("names", nargs="*", metavar="STUDY", help='"02", "decode_kernels", or the path of a notebook')
    parser.add_argument(
        "--runs",
        nargs="?",
        type=Path,
        const=RUNS,
        metavar="FOLDER",
        help="list the runs instead: start, notebook, status, time, page",
    )


def run(arguments) -> None:
    if arguments.runs:
        root = arguments.runs if arguments.runs == RUNS else folder_of_runs(arguments.runs)  # runs/ comes with a run
        print("\n".join(run_lines(root, arguments.names)))
    elif not arguments.names:
        print(overview())
    else:
        print("\n\n".join(described(name) for name in arguments.names))


def run_lines(root: Path, names: list[str]) -> list[str]:
    """A line for each run under `root`, the newest first; with names, those of these notebooks."""
    from .run import find
    from .run_folders import run_folders, when

    stems = [path.stem for path in find(names)] if names else None
    lines = []
    for run in run_folders(root):
        if stems is None or run.notebook in stems:
            took = f"{run.seconds:,.0f} s" if run.seconds is not None else ""
            where = shown(run.page or run.folder)
            lines.append(f"{when(run.start)}  {run.notebook:<20}  {run.status:<11}  {took:>7}  {where}")
    return lines or [f"There are no runs in {shown(root)}."]


def overview() -> str:
    """Every study in two lines: its notebook and its question."""
    lines = []
    for study in studies():
        lines += [study.notebook, textwrap.indent(textwrap.fill(study.question, WIDTH - 4), "    ")]
    return "\n".join([*lines, "", "gdn-lab list 02 shows the parameters of a study, gdn-lab run 02 runs its notebook."])


def described(name: str) -> str:
    """One study, or one notebook of your own: its question, then its parameters."""
    from .run import declared, find, study_of

    (path,) = find([name])
    if study := study_of(path):
        return "\n".join([f"{study.notebook}: {study.question}", *parameter_lines(study)])
    lines = [f"{path.stem}: {heading(path)}"]
    lines += [_line(name, kind, default, meaning) for name, (kind, default, meaning) in declared(path).items()]
    return "\n".join(lines)


def parameter_lines(study: Study) -> list[str]:
    """A line for each parameter: name, type and default as in the notebook, and what it means."""
    fields = table_of_parameters(study.parameters)
    return [_line(name, kind, repr(default), meaning) for name, kind, default, meaning in fields]


def table_of_parameters(parameters: type[StudyParameters]) -> list[tuple[str, str, object, str]]:
    """(name, type, default, meaning) of each field, in the order of the notebook's cell."""
    return [
        (name, type(field.default).__name__, field.default, field.description)
        for name, field in parameters.model_fields.items()
    ]


def heading(path: Path) -> str:
    """The first heading of a notebook, which is its question."""
    import nbformat

    for cell in nbformat.read(path, as_version=4).cells:
        for line in cell.source.splitlines() if cell.cell_type == "markdown" else ():
            if line.startswith("#"):
                return line.lstrip("# ")
    return "no heading"


def _line(name: str, kind: str, default: str, meaning: str) -> str:
    definition = (f"{name}: {kind}" if kind else name) + f" = {default}"
    return f"    {definition:<44}  {meaning}".rstrip()
