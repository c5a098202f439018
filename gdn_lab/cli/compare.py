"""gdn-lab compare: two runs, which settings differ and which times, beyond the noise or not."""

import argparse
import json
import re
from pathlib import Path

from ..report import comparison_text
from ..report.comparison import NothingToCompare, compare, sides
from .errors import BatchError, UsageError

BEYOND = 3  # exit status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = 'a run folder, a recorded GPU ("h100"), or one of its runs ("h100/02_decode_kernels")'
    parser.add_argument("a", metavar="A", help=what)
    parser.add_argument("b", metavar="B", help="the same; ratios are B's time over A's")
    parser.add_argument(
        "--threshold",
        type=share,
        default=share("3%"),
        metavar="SHARE",
        help="differences up to this do not count, 3%% or 0.03 (default: 3%%)",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page, too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.epilog = f"Exit status: 0, or {BEYOND} if a time differs beyond threshold and noise; 2 usage error."


def share(word: str) -> float:
    """A share of a word: "3%" and "0.03" are the same. ArgumentTypeError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", word.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not found or (value >= 1 and not found[2]):
        raise argparse.ArgumentTypeError(f"expected a share such as 3% or 0.03, got {word!r}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison, and return BEYOND if a time differs beyond threshold and noise. UsageError for a name."""
    try:
        pairs = sides(arguments.a, arguments.b)
    except NothingToCompare as error:
        raise UsageError(str(error)) from None
    found = [compare(a, b, (name_a, name_b), arguments.threshold) for name_a, name_b, a, b in pairs]
    if arguments.json:
        print(json.dumps([comparison_text.as_json(each) for each in found], indent=2, ensure_ascii=False))
    else:
        print("\n\n\n".join(comparison_text.text(each) for each in found))
    if arguments.html:
        write_page(arguments.html, f"{arguments.a} and {arguments.b}", found)
    return BEYOND if any(each.beyond for each in found) else 0


def write_page(path: Path, title: str, found: list) -> None:
    """Write the comparisons as one HTML page. BatchError if it cannot be written."""
    from ..files import replacing
    from ..report.text import as_html
    from .shell import page

    body = "\n".join(comparison_text.html(each) for each in found)
    note = "Ratios are B's time over A's; below 1, B is faster. An asterisk: beyond the noise."
    body = f'<main class="wide">\n<h1>{as_html(title)} compared</h1>\n<p class="quiet">{note}</p>\n{body}\n</main>'
    try:
        with replacing(path) as partial:
            partial.write_text(page(f"{title} compared", body), encoding="utf-8")
    except OSError as error:
        raise BatchError(f"cannot write {path}: {error.strerror or error}") from None
