"""gdn-lab run: find the notebooks, check the parameters and the output folder, then execute them."""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..studies import Study, studies
from ..studies.parameters import ParameterError, nearest
from .errors import BatchError, Interrupted, UsageError, ctrl_c, discard_output

__all__ = ["BatchError", "Interrupted", "UsageError"]

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
RUNS = ROOT / "runs"
NEEDED_BYTES = 64 << 20  # an executed notebook, its HTML, its figures and rows, with room to spare
TYPES = {"int": int, "float": float, "bool": bool, "str": str}


def add_arguments(parser) -> None:
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help='"02", "02_decode_kernels", or a path')
    add_run_options(parser, "set a parameter of every notebook that has it; may be repeated")
    add_checkpoint(parser)


def add_run_options(parser, meaning: str) -> None:
    """-p and --runs, of every command that executes notebooks."""
    parser.add_argument(
        "-p",
        nargs="+",
        action=_Parameter,
        default=[],
        dest="parameters",
        metavar="NAME=VALUE",
        help=f"{meaning}; NAME VALUE is the same",
    )
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help="where run folders go")


def add_checkpoint(parser) -> None:
    """--checkpoint DIR, in words of its own what -p checkpoint=DIR is."""
    parser.add_argument(
        "--checkpoint",
        action=_Checkpoint,
        default=[],
        dest="parameters",
        metavar="DIR",
        help="a Hugging Face folder of Qwen3-Next or Qwen3.5, whose gates notebook 10 takes too",
    )


class _Checkpoint(argparse.Action):
    def __call__(self, parser, namespace, value, option=None):
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), ("checkpoint", value)])


class _Parameter(argparse.Action):
    """-p name=value, -p name value, and several names with one -p: pairs of name and value."""

    def __call__(self, parser, namespace, words, option=None):
        pairs, words = list(getattr(namespace, self.dest)), list(words)
        while words:
            name, equals, value = words.pop(0).partition("=")
            if not equals and not words:
                parser.error(f"argument -p: {name} has no value; write -p {name}=VALUE")
            pairs.append((name, value if equals else words.pop(0)))
        setattr(namespace, self.dest, pairs)


def run(arguments) -> None:
    run_notebooks(find(arguments.notebooks), given_words(arguments.parameters), arguments.runs.absolute())


def given_words(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """{parameter: word} of every -p. UsageError for a parameter that is given twice."""
    words = {}
    for name, word in pairs:
        if name in words:
            raise UsageError(f"-p {name} is given twice, as {words[name]!r} and as {word!r}; give it once")
        words[name] = word
    return words


def add_runs(parser) -> None:
    """--runs, of commands that read runs: None unless it is given, see folder_of_runs()."""
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="where run folders are (default: runs/)")


def folder_of_runs(runs: Path | None) -> Path:
    """The folder of runs, absolute. UsageError if one is given that is not there."""
    if runs is not None and not runs.is_dir():
        raise UsageError(f"--runs: there is no folder {runs}; name one that holds run folders")
    return (runs or RUNS).absolute()


# ---- notebooks ------------------------------------------------------------------------------------------------------


def find(names: list[str], folder: Path = NOTEBOOKS) -> list[Path]:
    """The notebooks that `names` mean, in that order; all of `folder`, in its order, when there are no names.

    A name is the path of an .ipynb file, a notebook of `folder` ("02_decode_kernels"), the beginning of one ("02"), or
    one without its number ("decode_kernels"). UsageError names the one that is not there, and the choices.
    """
    known = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    if not names and not known:
        raise UsageError(f"there are no notebooks in {shown(folder)}")
    return [_find_one(name, known) for name in names] or list(known.values())


def _find_one(name: str, known: dict[str, Path]) -> Path:
    if Path(name).suffix == ".ipynb" and Path(name).is_file():
        return Path(name).resolve()
    stem = Path(name).name.removesuffix(".ipynb")
    exact = [path for other, path in known.items() if stem in (other, other.partition("_")[2])]
    found = exact or [path for other, path in known.items() if other.startswith(stem)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} begins several notebooks: {', '.join(path.stem for path in found)}")
    raise UsageError(f"there is no notebook {name!r}{nearest(stem, known)}; there are: {', '.join(known)}")


def study_of(path: Path) -> Study | None:
    """The study whose notebook this is; None for a notebook of the user's own."""
    own = path.parent != NOTEBOOKS
    return None if own else next((study for study in studies() if study.notebook == path.stem), None)


# ---- parameters -----------------------------------------------------------------------------------------------------


def declared(path: Path) -> dict[str, tuple[str, str, str]]:
    """{name: (type or "", default, meaning)}, as text, of what a notebook's parameters cell declares."""
    if study := study_of(path):
        fields = study.parameters.model_fields
        return {n: (type(f.default).__name__, repr(f.default), f.description or "") for n, f in fields.items()}
    import papermill

    found = papermill.inspect_notebook(as_it_is(path))
    return {
        name: ("" if one["inferred_type_name"] == "None" else one["inferred_type_name"], one["default"], one["help"])
        for name, one in found.items()
    }


def as_it_is(path: Path) -> str:
    """A path for papermill, which puts parameters in place of {name}."""
    return str(path).replace("{", "{{").replace("}", "}}")


def divided(words: dict[str, str], paths: list[Path]) -> dict[Path, dict[str, str]]:
    """{notebook: those of the words that it declares}. UsageError for a name that no notebook declares."""
    names = {path: list(declared(path)) for path in paths}
    known = list(dict.fromkeys(name for each in names.values() for name in each))
    for name in words:
        if name not in known:
            who, they = (f"{paths[0].stem} has no", "it has") if len(paths) == 1 else ("no notebook has a", "they have")
            choices = ", ".join(known) or "none"
            raise UsageError(f"{who} parameter {name!r}{nearest(name, known)}; {they}: {choices}")
    return {path: {name: word for name, word in words.items() if name in names[path]} for path in paths}


def values(path: Path, words: dict[str, str]) -> dict:
    """The words for a notebook's parameters as papermill takes them: typed as the parameter is declared.

    A study's parameters are checked as its notebook will check them. UsageError, one sentence, for a name that is not
    declared or a value that cannot be.
    """
    words = divided(words, [path])[path]
    if study := study_of(path):
        try:
            parsed = study.parameters.parse(words, path.stem)
        except ParameterError as error:
            raise UsageError(str(error)) from None
        # As checked: a path from the current folder means another one where the notebook runs.
        fields = study.parameters.model_fields
        words |= {name: getattr(parsed, name) for name in words if fields[name].annotation is str}
    kinds = declared(path)
    return {name: _value(name, word, kinds[name][0]) for name, word in words.items()}


def _value(name: str, word: str, kind: str):
    """The value of a declared type that a word means; without a type, the Python literal that it is, or the word."""
    import ast

    from pydantic import TypeAdapter, ValidationError

    if kind not in TYPES:
        try:
            return ast.literal_eval(word)
        except (ValueError, SyntaxError):
            return word
    try:
        return TypeAdapter(TYPES[kind]).validate_python(word)
    except ValidationError:
        raise UsageError(f"{name}: expected {kind}, got {word!r}") from None


# ---- running --------------------------------------------------------------------------------------------------------


def check_writable(root: Path, option: str = "--runs") -> None:
    """BatchError if nothing can be made under `root`, which `option` names, or if its disk is full."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=root):
            pass
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise BatchError(
            f"cannot write to the output folder {shown(root)}: {error.strerror}; name another with {option} FOLDER"
        ) from error
    if free < NEEDED_BYTES:
        raise BatchError(
            f"the disk of the output folder {shown(root)} is full: {free >> 20} MiB are free, a run needs "
            f"{NEEDED_BYTES >> 20}; make room or name another with {option} FOLDER"
        )


def gpu_unseen() -> str | None:
    """A sentence if this machine has an NVIDIA GPU that torch cannot use: the times to come would be the CPU's."""
    import torch

    if torch.cuda.is_available() or not shutil.which("nvidia-smi"):
        return None
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    if listed.returncode or not listed.stdout.startswith("GPU"):
        return None
    gpu = listed.stdout.splitlines()[0].split(" (UUID")[0]
    why = f"built for CUDA {torch.version.cuda}: is the driver older?" if torch.version.cuda else "a CPU build"
    return f"nvidia-smi lists {gpu}, but torch {torch.__version__} cannot use it ({why}). What follows runs on the CPU."


def run_notebooks(paths: list[Path], words: dict[str, str], root: Path = RUNS) -> None:
    """Execute notebooks, each into a new folder of `root`; on a CPU two at a time where none of them times anything.

    words: {parameter: word}; a notebook gets those that it declares, and the log says which of several have none.
    UsageError or BatchError before anything runs, if a parameter cannot be or `root` cannot be written. BatchError
    when a notebook fails, Interrupted on Ctrl-C: rows already measured stay, later notebooks are not run. Once the
    last cell of the last notebook has ended, a signal changes nothing.
    """
    by_notebook = {path: values(path, own) for path, own in divided(words, paths).items()}
    check_writable(root)
    for name in words if len(paths) > 1 else ():
        say(f"{name} is a parameter of {', '.join(path.stem for path in paths if name in by_notebook[path])}.")
    if unseen := gpu_unseen():
        say(unseen)
    from ..bench.results import new_folder

    # nbformat imports jsonschema, which for seconds compiles a grammar of addresses that no notebook's schema uses.
    sys.modules.setdefault("rfc3987_syntax", None)
    from .execute import execute
    from .in_turn import in_turn
    from .stop import Stop

    at_once = 2 if all(times_nothing(path, words) for path, words in by_notebook.items()) else 1
    began, folders, status, stop = time.monotonic(), [], "failed", Stop()

    def one(path: Path, stream) -> Path:
        folders.append(new_folder(root, path.stem))
        return execute(path, by_notebook[path], folders[-1], stop, stream)

    with stop.on_signals():
        ctrl_c.if_it_came()  # during imports, where it may have been dropped
        together = new_folder(root, "together") if len(paths) > 1 else None
        try:
            in_turn(paths, one, stop, at_once)
            status = "complete"
        except Interrupted:
            status = "interrupted"
            raise
        finally:
            about = {"command": command(paths, words), "seconds": time.monotonic() - began, "status": status}
            index = write_pages(root, together, about | {"runs": sorted(folder.name for folder in folders)})
        if together:
            say(f"{len(paths)} notebooks in {seconds(began)}.")
        say(f"Read {shown(index)}")


def times_nothing(path: Path, words: dict[str, str]) -> bool:
    """Whether a notebook of ours with these parameters times nothing on this machine, so that another may run too."""
    study = study_of(path)
    return study is not None and study.parameters.parse(words, path.stem).checks_only


def command(paths: list[Path], words: dict[str, str]) -> str:
    """The command line that runs these notebooks with these words."""
    from ..backends.author_files import kernel_words

    named = [] if paths == find([]) else [path.stem for path in paths]
    given = [word for name, value in words.items() for word in ("-p", f"{name}={value}")]
    return shlex.join(["gdn-lab", "run", *named, *given]) + kernel_words()


def command_line(arguments: argparse.Namespace) -> str:
    """The command as it was given, for run.json. Of an absolute path outside of the current folder, its last part."""
    return shlex.join(["gdn-lab", *map(without_private_folders, arguments.command_words)])


def without_private_folders(word: str) -> str:
    """A word of a command; of an absolute path outside of the current folder its last part."""
    option, equals, path = word.partition("=") if word.startswith("-") else ("", "", word)
    if not path.startswith("/"):
        return word
    kept = shown(Path(path))
    return option + equals + (Path(path).name if kept.startswith("/") else kept)


def write_pages(root: Path, together: Path | None, about: dict) -> Path:
    """Link the newest pages with each other, write the page of what ran together and that of all runs; return it."""
    from . import index

    index.link_pages(root, about["runs"])
    if together:
        index.write_batch(together, about)
    return index.write_index(root)


def say(line: str) -> None:
    """Print a line at once, so that a log keeps its order. A run does not end because nobody reads it."""
    try:
        print(line, flush=True)
    except OSError:
        discard_output()


def seconds(since: float) -> str:
    """duration() since a time.monotonic()."""
    return duration(time.monotonic() - since)


def duration(seconds: float) -> str:
    """A time for people: "42 s", "3 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def shown(path: Path) -> str:
    """A path as the user would type it: relative to the current folder where it lies under it."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
