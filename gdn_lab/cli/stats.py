"""gdn-lab stats: the summaries of nsys stats of a trace, from Nsight Systems or Kineto, without nsys."""

import argparse
import sys

from ..names import readable

FAILURES = (ValueError, OSError)
WIDEST = 60  # of a name in the text form


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("trace", metavar="TRACE", help=".nsys-rep, .sqlite, .json or .json.gz")
    reports = "cuda_gpu_kern_sum, nvtx_kern_sum or nvtx_gpu_proj_sum; may be repeated; default: all"
    parser.add_argument("--report", action="append", metavar="NAME", help=reports)
    parser.add_argument("--csv", action="store_true", help="print CSV, as nsys stats --format csv does")


def run(arguments: argparse.Namespace) -> None:
    """Print the summaries. UsageError for an unknown report; other errors are those of trace.read()."""
    from ..trace import read
    from ..trace.crosscheck import REPORTS
    from .errors import UsageError

    names = arguments.report or list(REPORTS)
    if unknown := [name for name in names if name not in REPORTS]:
        raise UsageError(f"report: {', '.join(unknown)} unknown; choose some of {', '.join(REPORTS)}")
    trace = read(arguments.trace)
    for number, name in enumerate(names):
        summary, _ = REPORTS[name]
        frame = summary(trace)
        if arguments.csv:
            frame.to_csv(sys.stdout, index=False)
            continue
        print(f"{'' if number == 0 else chr(10)}{name}: {len(frame):,} rows, times in ns")
        short = {column: frame[column].map(_short) for column in frame if frame[column].dtype.kind not in "iuf"}
        print(frame.assign(**short).to_string(index=False))


def _short(text) -> str:
    text = readable(str(text))
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"
