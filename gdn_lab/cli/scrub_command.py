"""gdn-lab scrub: copy a trace without the private data it holds."""

import argparse
from pathlib import Path

from .errors import UsageError

FAILURES = (ValueError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("trace", nargs="?", metavar="TRACE", help=".nsys-rep, .sqlite, .json or .json.gz")
    where = "where to write; default: <name>.scrubbed.sqlite or .json.gz next to the trace"
    parser.add_argument("out", nargs="?", metavar="OUT", help=where)


def run(arguments: argparse.Namespace) -> None:
    """Write the copy and print its size. UsageError if no trace is named; other errors are those of scrub()."""
    from ..trace.scrubber import scrub

    if not arguments.trace:
        raise UsageError("name the trace: gdn-lab scrub TRACE [OUT], or make capture-scrub CAPTURE=file [OUT=file]")
    out = scrub(arguments.trace, arguments.out)
    size, before = out.stat().st_size, Path(arguments.trace).stat().st_size
    print(
        f"{out}: {size / 1e6:.2f} MB of {before / 1e6:.2f} MB. It names kernels and ranges as the program did: "
        "look through them before you share it."
    )
