"""The console script gdn-lab; `python -m gdn_lab` is the same.

Each command is a module of this folder with add_arguments(parser) and run(arguments) -> exit status or None, imported
when its command is called: `gdn-lab --help` imports none. FAILURES of such a module, if it has any, are exceptions
whose message is a sentence for the user.
"""

import argparse
import importlib
import os
import sys

from .. import __version__

COMMANDS = {  # name: (module of this folder, what --help says)
    "run": ("run", "execute notebooks, all unless named, each into a folder under runs/"),
    "record": ("record_command", "measure what is kept of a GPU, or of one study, within a time limit; again: goes on"),
    "sweep": ("sweep_command", "a grid of jobs on all GPUs that Ray reaches, resumable; one page and one Parquet file"),
    "serve": ("serve_command", "serve requests with a whole model: tokens per second, TPOT, ITL, TTFT, host gaps"),
    "train": (
        "train_command",
        "train the small model of notebook 11: checkpoint and loss curve, in four minutes on a GPU",
    ),
    "advise": ("advise", "which backend for a model, what it saves and what memory it needs, from recorded rows"),
    "judge": ("judge_command", "is your kernel correct, is it faster, and what limits it: text, a page and JSON"),
    "board": (
        "board_command",
        "the best right decode kernel for each GPU, dtype and batch, from recorded rows and runs/",
    ),
    "lab": ("lab", "open the notebooks in JupyterLab; what follows is passed on to it"),
    "compare": ("compare", "two runs: which settings differ, and which times beyond the noise"),
    "list": ("listing", "the studies and their questions; with a name, its parameters; with --runs, the runs"),
    "clean": ("clean", "remove old runs; the newest of each notebook are kept"),
    "backends": ("installed", "the kernels: what is installed, what can run here, and why not the rest"),
    "check": ("check", "is a decode kernel right? a line for each check: a file of your own, or a variant's name"),
    "site": (
        "site_command",
        "pages of what is recorded of each GPU, in docs/site, to be read without running anything",
    ),
    "report": ("report", "rebuild the figures and generated parts of README.md and docs/ from data/"),
    "profile": ("profile", "record a decode step and attribute its time, or open a trace of your own"),
    "stats": ("stats", "the summaries of nsys stats of a trace, without nsys"),
    "scrub": ("scrub_command", "copy a trace without the private data it holds"),
    "constraints": ("constraints", "resolve requirements*.txt anew and pin all that they bring in constraints.txt"),
    "smoke": ("smoke", "run one small call of every kernel and check it, as make sanitize does"),
    "resources": ("resources", "compile every kernel and print its registers, shared memory and stack"),
}
# Commands that list, check or time variants: they take --kernel, and so does lab, whose words are JupyterLab's.
TAKE_KERNELS = ("run", "record", "serve", "backends", "profile", "smoke")


def main(words: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 usage error, 130 interrupted.

    words: of the command, by default those of this process, which then ends: signals no longer change its status.
    """
    from .errors import as_ctrl_c, ctrl_c, exit_status, ignore_signals

    if words is None:
        status = main(sys.argv[1:])
        ignore_signals()
        return status
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # an encoding without µ or × gets escapes in their place
            stream.reconfigure(errors="backslashreplace")
    name = next((word for word in words if word in COMMANDS), None)
    ctrl_c.came = False
    with as_ctrl_c():
        try:
            module = importlib.import_module(f"{__package__}.{COMMANDS[name][0]}") if name else None
        except KeyboardInterrupt:
            return exit_status(_interrupt)
        arguments = parser(name, module).parse_args(words, argparse.Namespace(command_words=words))
        return exit_status(lambda: _run(module, arguments), getattr(module, "FAILURES", ()))


def _run(module, arguments) -> int | None:
    """Register the kernels of --kernel and GDN_LAB_KERNELS, where a command takes them, and run the command."""
    if getattr(arguments, "kernels", None) or (hasattr(arguments, "kernels") and os.environ.get("GDN_LAB_KERNELS")):
        from . import kernel_files

        kernel_files.register(arguments.kernels)
    return module.run(arguments)


def _interrupt() -> None:
    raise KeyboardInterrupt


def parser(name: str | None = None, module=None) -> argparse.ArgumentParser:
    """The tree of commands; `name` is the one whose arguments `module` adds."""
    top = argparse.ArgumentParser(prog="gdn-lab", description="A workbook for Gated Delta Network kernels.")
    top.add_argument("--version", action="version", version=f"gdn-lab {__version__}")
    commands = top.add_subparsers(required=True, metavar="command")
    for command, (_, meaning) in COMMANDS.items():
        below = commands.add_parser(command, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}.")
        if command == name:
            module.add_arguments(below)
        if command == name and command in TAKE_KERNELS:
            below.add_argument(
                "--kernel",
                action="append",
                default=[],
                dest="kernels",
                metavar="FILE",
                help="register the kernels of a file of your own (docs: gdn_lab.variant); may be repeated",
            )
    return top
