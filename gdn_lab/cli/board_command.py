"""gdn-lab board: the best right decode kernel for each GPU, dtype and batch, from recorded rows and runs/."""

import argparse
from pathlib import Path

from .errors import UsageError
from .run import RUNS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", metavar="NAME", help='only GPUs whose name contains this, "H100" say')
    parser.add_argument("--dtype", metavar="NAME", help='only states of this dtype, "bfloat16" say')
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help="where runs are (default: runs/)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(arguments: argparse.Namespace) -> None:
    """Print the board. UsageError if a GPU or dtype is named that nothing is ranked for."""
    from ..report import board

    found = board.board(*board.sources(runs=arguments.runs))
    for option, field in (("gpu", "gpu"), ("dtype", "dtype")):
        if wanted := getattr(arguments, option):
            there = dict.fromkeys(getattr(place.setting, field) for place in found.places)
            kept = [name for name in there if wanted.lower() in name.lower()]
            if not kept:
                raise UsageError(
                    f"--{option}: nothing is ranked for {wanted!r}; ranked are: {', '.join(there) or 'none'}"
                )
            places = [place for place in found.places if getattr(place.setting, field) in kept]
            found = found._replace(places=places)
    print(board.as_json(found) if arguments.json else board.text(found))
