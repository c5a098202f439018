"""gdn-lab check with --calls, --seconds or --call: random calls in several processes; and with --sanitize."""

import os
import selectors
import shutil
import sys
import time
from contextlib import nullcontext

from ..report.random_calls import FOLDER
from .errors import BatchError, UsageError
from .run import command_line, without_private_folders

PARALLEL = 4  # processes on a GPU, at most: each spends most of its time in launching, and they take turns on the GPU
ENDLESS = 1 << 62
TOOLS = ("memcheck", "racecheck")
SANITIZER_PATIENCE_S = 1800
SANITIZED = "reference,padding,strides,large batches"


def random_calls(request: dict, arguments) -> int:
    """Make random calls, print rows' counts and the first failure with how to repeat it; return 1 if one failed."""
    one = arguments.call is not None
    last = arguments.call + 1 if one else ENDLESS if arguments.calls is None else arguments.calls
    first, seconds = (arguments.call if one else 0), arguments.seconds if arguments.seconds is not None else 1e9
    processes = 1 if one else arguments.processes or default_processes()
    with kept(arguments) as run:
        return counted(merged(request, first, last, seconds, processes), arguments, run)


def kept(arguments):
    """A Run that takes the rows, or without --runs nothing."""
    if arguments.runs is None:
        return nullcontext()
    from ..bench.results import Run

    words = ("calls", "seconds", "call", "processes")
    parameters = {"judged": [without_private_folders(word) for word in arguments.judged]}
    parameters |= {word: getattr(arguments, word) for word in words}
    command = command_line(arguments)
    return Run.create(FOLDER, parameters, root=arguments.runs, command=command, seed=arguments.seed)


def counted(messages, arguments, run) -> int:
    """Count the rows of all processes, keep them in `run` if there is one, and print what they say."""
    began, totals, failures, refusals = time.monotonic(), {}, [], {}
    for message in messages:
        if "usage" in message:
            print(message["shown"], end="", file=sys.stderr)
            raise UsageError(message["usage"])
        if "died" in message:
            failures.append((message["variant"], None, f"{message['died']} in {message['during']}"))
        elif "refusal" in message.get("row", {}):
            refusals[message["row"]["variant"]] = message["row"]["refusal"]
        elif "row" in message:
            row = message["row"]
            if run is not None:
                run.append({"status": "fact", "phase": "decode"} | row)
            counts = totals.setdefault(row["variant"], {"calls": 0, "failed": 0, "refused": 0})
            for name in counts:
                counts[name] += row[name]
            failures += [(row["variant"], number, sentence) for number, sentence in row["failures"]]
            if counts["calls"] // 10_000 > (counts["calls"] - row["calls"]) // 10_000:
                print(f"{row['variant']}: {counts['calls']:,} calls, {counts['failed']} failed", flush=True)
    took = time.monotonic() - began
    for name, reason in refusals.items():
        print(f"{name}: refused: it {reason}")
    for name, counts in totals.items():
        rate = counts["calls"] / max(took, 1e-9)
        refused = f", {counts['refused']:,} refused" if counts["refused"] else ""
        print(
            f"{name}: {counts['calls']:,} random calls, {counts['failed']} failed{refused} ({took:.0f} s, {rate:.0f}/s)"
        )
    for name, number, sentence in failures[:5]:
        print(f"{name}: {'' if number is None else f'call {number}: '}{sentence}")
        if number is not None:
            words = [*arguments.judged, "--seed", str(arguments.seed), "--call", str(number)]
            print(f"repeat it with: gdn-lab check {' '.join(words)}")
    return int(bool(failures) or not totals)


def default_processes() -> int:
    """On a GPU PARALLEL, or as many as the processor's cores less two; without one, one process."""
    import torch

    return max(1, min(PARALLEL, (os.cpu_count() or 2) - 2)) if torch.cuda.is_available() else 1


def merged(request: dict, first: int, last: float, seconds: float, processes: int):
    """Yield the messages of several processes, which share the calls."""
    from ..judge.apart import PATIENCE_S, Child, how_it_ended

    children = []
    for number in range(processes):
        calls = {"first": first, "last": last, "share": number, "shares": processes, "seconds": seconds}
        children.append(Child(request | {"calls": calls, "threads": 1 if processes > 1 else 0}))
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.read, selectors.EVENT_READ, child)
        try:
            while selector.get_map():
                ready = selector.select(PATIENCE_S)
                for key, _ in ready:
                    yield from key.data.received()
                    if key.data.ended:
                        selector.unregister(key.fileobj)
                        status = key.data.process.wait()
                        if status:
                            yield {"died": how_it_ended(status), **where(key.data)}
                if not ready:
                    silent = next(iter(selector.get_map().values())).data
                    yield {"died": f"gave no answer for {PATIENCE_S} s", **where(silent)}
                    return
        finally:
            for child in children:
                child.__exit__()


def where(child) -> dict:
    return {"during": child.at["begin"], "variant": child.at["variant"]}


def sanitized(request: dict) -> int:
    """Run a few checks under compute-sanitizer's tools; return 1 if one reports an error."""
    from ..judge import apart

    if not shutil.which(apart.TOOL):
        raise BatchError(f"there is no {apart.TOOL} here; it comes with the CUDA toolkit: add its bin to PATH")
    status = 0
    for tool in TOOLS:
        before = (apart.TOOL, "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9")
        request = request | {"only": SANITIZED.split(",")}
        died = failed = False
        with apart.Child(request, before=before) as child:
            for message in child.messages(SANITIZER_PATIENCE_S):
                died |= "died" in message
                failed |= message.get("finding", {}).get("status") == "fail"
            failed |= died or child.process.wait() != 0  # a process that hangs is ended with its context
        print(f"{'fail' if failed else 'pass':<8} {tool:<22} {apart.TOOL} {tool}")
        status |= failed
    return int(status)
