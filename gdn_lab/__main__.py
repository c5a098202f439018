"""The command line: python -m gdn_lab run | list | backends | report."""

import argparse
import sys
from pathlib import Path

from . import backends
from .bench.results import OutputFolderError
from .cli import report as readme
from .cli import run as batch


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 failed, 2 wrongly asked, 130 interrupted."""
    asked = parser().parse_args(arguments)
    return batch.exit_status(lambda: asked.call(asked), (batch.BatchError, OutputFolderError))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m gdn_lab", description="A workbook for Gated Delta Network kernels.")
    commands = top.add_subparsers(required=True, metavar="command")

    run = commands.add_parser("run", help="execute notebooks, all of them unless named, each into a folder under runs/")
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help='"02", "02_decode_kernels", or a path')
    run.add_argument(
        "-p", nargs=2, action="append", default=[], dest="parameters", metavar=("NAME", "VALUE"),
        help="set a parameter that each of the notebooks declares; may be repeated",
    )  # fmt: skip
    run.add_argument("--runs", type=Path, default=batch.RUNS, metavar="FOLDER", help="where run folders go")
    run.set_defaults(call=_run)

    listing = commands.add_parser("list", help="the notebooks: their questions and their parameters")
    listing.set_defaults(call=lambda _: print("\n\n".join(batch.describe(path) for path in batch.find([]))))

    report = commands.add_parser("report", help="draw the README's figures from data/")
    report.set_defaults(call=lambda _: print("\n".join(batch.shown(path) for path in readme.report(batch.ROOT))))

    table = commands.add_parser("backends", help="what is installed, what it can do here, and why not the rest")
    table.set_defaults(call=lambda _: print(backends_table()))
    return top


def _run(asked: argparse.Namespace) -> None:
    batch.run(batch.find(asked.notebooks), dict(asked.parameters), asked.runs.absolute())


def backends_table() -> str:
    """gdn_lab.backends() as lines of text: name, version, variants, and whether it serves here or why it does not."""
    lines = [("backend", "version", "variants", "here")]
    for report in backends():
        variants = ", ".join(variant.name for variant in report.variants) or "-"
        lines.append((report.name, report.version or "-", variants, report.reason or "yes"))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join("  ".join([*map(str.ljust, line, widths), line[3]]) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
