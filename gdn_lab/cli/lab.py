"""gdn-lab lab: JupyterLab over the project's folder, with notebook 00 open.

Settings, data and logs of Jupyter, IPython and matplotlib lie in .jupyter/ of the project, which git ignores. Saving a
notebook of notebooks/ leaves its outputs out of the file, as it is committed, and keeps them in runs/lab/.
"""

import os
import sys
from copy import deepcopy
from pathlib import Path

import nbformat

from ..files import replacing
from . import kernel_files
from .run import NOTEBOOKS, ROOT, RUNS

HOME = ROOT / ".jupyter"
FOLDERS = {  # environment variable: folder of HOME
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTERLAB_SETTINGS_DIR": "settings",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "IPYTHONDIR": "ipython",
    "MPLCONFIGDIR": "matplotlib",
}
FIRST = "notebooks/00_start_here.ipynb"
QUIET = (  # no news, versions or extensions are fetched or asked about; npm, which writes logs at home, is not started
    f"--LabApp.app_settings_dir={Path(__file__).parent / 'lab_settings'}",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
    "--LanguageServerManager.autodetect=False",
)
WITH_OUTPUTS = RUNS / "lab"


def add_arguments(parser) -> None:
    """Add the command's arguments to an argparse parser."""
    parser.prefix_chars = "\0"  # every word is JupyterLab's, --help too
    parser.add_argument("words", nargs="*", help="--kernel FILE, or options of JupyterLab, such as --port 9000")
    parser.set_defaults(parser=parser)


def run(arguments) -> None:
    """Replace this process with JupyterLab."""
    if is_root():
        print("You are root, as in most containers, so JupyterLab gets --allow-root.", flush=True)
    if arguments.words[:1] in (["-h"], ["--help"]):  # argparse leaves them to the words that follow
        arguments.parser.print_help()
        raise SystemExit(0)
    words = kernel_files.register_from(arguments.words)
    os.execve(sys.executable, command(words), os.environ | environment())


def command(words=()) -> list[str]:
    """The words that start JupyterLab; those given come last and win."""
    places = [f"--ServerApp.root_dir={ROOT}", f"--LabApp.default_url=/lab/tree/{FIRST}"]
    saving = f"--ContentsManager.pre_save_hook={__name__}.keep_outputs_apart"
    as_root = ["--allow-root"] if is_root() else []
    return [sys.executable, "-m", "jupyterlab", *places, *QUIET, saving, *as_root, *words]


def environment() -> dict[str, str]:
    """The variables that keep what Jupyter, IPython and matplotlib write inside the project."""
    return {name: str(HOME / folder) for name, folder in FOLDERS.items()}


def is_root() -> bool:
    return hasattr(os, "getuid") and os.getuid() == 0


def keep_outputs_apart(model, path, contents_manager, **_) -> None:
    """Before a notebook of notebooks/ is saved: write it with its outputs to runs/lab/, and take them out of `model`.

    model, path: what Jupyter's contents manager is about to write, and where, from its root.
    """
    file = Path(contents_manager.root_dir, path.strip("/"))
    if model["type"] != "notebook" or file.parent.resolve() != NOTEBOOKS.resolve():
        return
    book = nbformat.from_dict(deepcopy(model["content"]))
    if any(cell.get("outputs") for cell in book.cells):
        WITH_OUTPUTS.mkdir(parents=True, exist_ok=True)
        with replacing(WITH_OUTPUTS / file.name) as partial:
            nbformat.write(book, partial)
    for cell in model["content"]["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
            cell["metadata"].pop("execution", None)
    model["content"]["metadata"].pop("widgets", None)
    model["content"]["metadata"]["language_info"] = {"name": "python"}  # a kernel adds its version
