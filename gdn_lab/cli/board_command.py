"""gdn-lab board: the best right decode kernel for each GPU, dtype and batch, from recorded rows and runs/."""

import argparse

from .errors import UsageError
from .run import add_runs, folder_of_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", metavar="NAME", help='only GPUs whose name contains this, "H100" say')
    parser.add_argument("--dtype", metavar="NAME", help='only states of this dtype, "bfloat16" say')
    add_runs(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(arguments: argparse.Namespace) -> None:
    """Print the board. UsageError for a GPU or dtype that nothing is ranked for, or a folder that is not there."""
    from ..report import board

    found = board.board(*board.sources(runs=folder_of_runs(arguments.runs)))
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
