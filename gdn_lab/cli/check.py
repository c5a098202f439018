"""gdn-lab check: is a decode kernel right in every corner that an engine reaches?

    gdn-lab check my_kernel.py          every check, a line each: pass, fail or refused
    gdn-lab check ours --calls 100000
    gdn-lab check my_kernel.py --seconds 600 --seed 1

The kernel runs in a process of its own. Exit status 0: right wherever it could be checked; 1: not; 2: usage error.
"""

import math
import sys
import time
from pathlib import Path

from .errors import BatchError, UsageError

FILES = (".py", ".json")  # what a file with kernels ends in
NOT_JUDGED = "not judged, as the process had ended"


def add_arguments(parser) -> None:
    parser.add_argument("judged", nargs="+", metavar="FILE|NAME", help='a .py file, "triton/vk", a backend, or "ours"')
    parser.add_argument("--seconds", type=float, metavar="N", help="make random calls for so long instead")
    parser.add_argument("--calls", type=int, metavar="N", help="make so many random calls instead")
    parser.add_argument("--call", type=int, metavar="I", help="make the random call number I alone")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default 0)")
    parser.add_argument("--only", metavar="CHECKS", help="comma-separated names of checks")
    parser.add_argument("--processes", type=int, metavar="N", help="of random calls; default: 1, on a GPU up to 4")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="keep rows of random calls in a run folder there")
    parser.add_argument("--sanitize", action="store_true", help="under compute-sanitizer's memcheck and racecheck, too")


def run(arguments) -> int:
    """Judge, print a line for each check or each thousand random calls, and return the exit status."""
    request = {"judged": [judged_path(word) for word in arguments.judged], "kernels": [], "seed": arguments.seed}
    if asks_for_random_calls(arguments):
        from .check_calls import random_calls

        return random_calls(request, arguments)
    request["only"] = checks_of(arguments.only)
    status = checks(request)
    if arguments.sanitize:
        from .check_calls import sanitized

        status = max(status, sanitized(request))
    return status


def asks_for_random_calls(arguments) -> bool:
    """Whether --seconds, --calls or --call is given. UsageError for two of them, or for a number that cannot be."""
    counts = [arguments.seconds, arguments.calls, arguments.call]
    if sum(count is not None for count in counts) > 1:
        raise UsageError("--seconds, --calls and --call exclude each other; give one")
    if all(count is None for count in counts):
        extra = [name for name in ("processes", "runs") if getattr(arguments, name) is not None]
        if extra:
            raise UsageError(f"--{extra[0]} is for random calls: give --seconds or --calls with it")
    elif arguments.only or arguments.sanitize:
        name = "only" if arguments.only else "sanitize"
        raise UsageError(f"--{name} is for the checks, not for random calls; leave it out")
    for name, least in (("calls", 1), ("call", 0), ("processes", 1)):
        number = getattr(arguments, name)
        if number is not None and number < least:
            raise UsageError(f"--{name}: expected a whole number from {least} up, got {number}")
    if arguments.seconds is not None and not 0 < arguments.seconds < math.inf:
        raise UsageError(f"--seconds: expected a positive number, got {arguments.seconds:g}")
    return any(count is not None for count in counts)


def checks_of(word: str | None) -> list[str] | None:
    """ "padding, streams" -> ["padding", "streams"]; None is all. The process that judges refuses unknown names."""
    if word is None:
        return None
    names = [name.strip() for name in word.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--only: expected names of checks such as reference,padding, got {word!r}")
    return names


def judged_path(word: str) -> str:
    """A file's path, which the other process takes from any folder; a name as it is. UsageError if it is not there."""
    if not word.endswith(FILES):
        if Path(word).is_file():
            raise UsageError(
                f"{word} has no kernel; expected a .py that registers one with @variant, or a Solution's .json"
            )
        return word
    if not Path(word).expanduser().is_file():
        raise UsageError(f"there is no file {word}; name one that registers a kernel with @variant, or a variant")
    return str(Path(word).expanduser().absolute())


def checks(request: dict) -> int:
    """Print a line for each finding and the verdict of each variant; return 0 if all are correct, else 1."""
    from ..judge import apart

    found, died, began = {}, {}, time.monotonic()
    for message in apart.messages(request):
        if "device" in message:
            where = message["device"]
        elif "usage" in message:
            print(message["shown"], end="", file=sys.stderr)
            raise UsageError(message["usage"])
        elif "variants" in message:
            found = {name: [] for name in message["variants"]}
        elif message.get("begin") == "device":
            print(f"{message['variant']} on {'a ' if where == 'CPU' else ''}{where}", flush=True)
        elif "finding" in message:
            finding = message["finding"]
            found[finding["variant"]].append(finding["status"])
            print(f"{finding['status']:<8} {finding['check']:<22} {finding['sentence']}", flush=True)
        elif "died" in message:
            died[message["variant"]] = f"{message['died']} in {message['during']}"
            print(f"{'error':<8} {message['during']:<22} {message['died']}", flush=True)
    if "" in died:
        raise BatchError(f"nothing was judged: {died['']}")
    if died:
        died |= {name: NOT_JUDGED for name in found if not found[name] and name not in died}
    for name, statuses in found.items():
        print(summary(name, statuses, died.get(name), where, time.monotonic() - began))
    return int(any(verdict(statuses, died.get(name)) != "correct" for name, statuses in found.items()))


def verdict(statuses: list[str], died: str | None) -> str:
    """Return correct, incorrect, refused or error."""
    if died:
        return "error"
    return "incorrect" if "fail" in statuses else "correct" if "pass" in statuses else "refused"


def summary(name: str, statuses: list[str], died: str | None, where: str, seconds: float) -> str:
    """Return the last line of a variant: its verdict, and how many checks passed."""
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in ("pass", "fail", "refused"))
    return f"{name}: {verdict(statuses, died)} on {where} ({died or counts}; {seconds:.0f} s)"
