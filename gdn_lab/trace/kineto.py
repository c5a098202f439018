"""Read what torch.profiler (Kineto) recorded: the Chrome trace it exports, or the profile object itself.

A kernel is joined to its launch call by its correlation (all kernels of a graph have that of the cudaGraphLaunch), and
belongs to the record_function ranges of the calling thread that enclose the call.
"""

import gzip
import json
import re
import tempfile
import zlib
from pathlib import Path

import numpy
import torch

from ..files import replacing
from .build import Events, Trace, build_trace

_WORK = {"kernel": 0, "gpu_memcpy": 1, "gpu_memset": 2}  # category of the trace: index into build.KINDS
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_RANGES = ("user_annotation",)
_ENTRY = ("ph", "cat", "name", "pid", "tid", "ts", "dur")  # what is read of an entry, and of its args
_ARGS = ("device", "stream", "correlation")


def read(source) -> Trace:
    """Read a Chrome trace (.json or .json.gz) or a finished torch.profiler.profile.

    torch exports a profile only once, and this uses that export: to keep the trace too, export it and give the file.
    FileNotFoundError if there is no file; ValueError, one sentence, if it is not a trace, is damaged or holds no work
    of a GPU, or if the profile has not finished or was exported before.
    """
    if not isinstance(source, torch.profiler.profile):
        return _trace(Path(source), Path(source))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        _export(source, path)
        return _trace(path, "the profile")


def keep(profile: torch.profiler.profile, out: Path, dropped=lambda kernel: False) -> Path:
    """Write what read() reads of a finished profile, and nothing else, as a .json.gz; return its path.

    A full export also holds every operator of torch, and facts about the machine. dropped(name): whether to leave out
    the kernels of this name and their launches. The file appears when it is complete. Errors are those of read() for a
    profile, and OSError if it cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        _export(profile, path)
        return copy(path, out, dropped)


def copy(path: Path, out: Path, dropped=lambda kernel: False) -> Path:
    """Write the same of a trace that was exported before. Errors are those of read(), and OSError."""
    trace = _load(path, path)
    with replacing(out) as partial:
        partial.write_bytes(gzip.compress(json.dumps(_slim(trace, dropped)).encode(), mtime=0))
    return out


def _slim(trace: dict, dropped) -> dict:
    entries = [entry for entry in trace["traceEvents"] if entry.get("ph") == "X"]
    work = [entry for entry in entries if entry.get("cat") in _WORK and not dropped(str(entry["name"]))]
    launched = {_correlation(entry) for entry in work}
    calls = [entry for entry in entries if entry.get("cat") in _LAUNCHES and _correlation(entry) in launched]
    ranges = [entry for entry in entries if entry.get("cat") in _RANGES]
    kept = [
        {name: entry[name] for name in _ENTRY if name in entry}
        | {"args": {name: entry["args"][name] for name in _ARGS if name in entry.get("args", {})}}
        for entry in (*ranges, *calls, *work)
    ]
    gpus = [{"name": device["name"]} for device in trace.get("deviceProperties", [])]
    return {"deviceProperties": gpus, "traceEvents": kept}


def _export(profile: torch.profiler.profile, path: Path) -> None:
    try:
        profile.export_chrome_trace(str(path))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"the profile cannot be exported ({error}); let it finish first, or give the trace that was exported"
        ) from error


def _trace(path: Path, called) -> Trace:
    trace = _load(path, called)
    try:
        events = _events(trace["traceEvents"])
        gpus = [device["name"] for device in trace.get("deviceProperties", [])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{called} is not a trace that torch.profiler exported: {type(error).__name__}: {error}; export it again"
        ) from error
    try:
        return build_trace("Kineto", events, gpus)
    except ValueError as error:
        raise ValueError(f"{called} {error}; record with ProfilerActivity.CUDA on a GPU") from error


def _load(path: Path, called) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"there is no trace {path}; give a .json or .json.gz file that torch.profiler exported")
    try:
        data = path.read_bytes()
        trace = json.loads(gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{called} is not JSON or was cut short ({error}); copy or export it again") from error
    if not isinstance(trace, dict) or not isinstance(trace.get("traceEvents"), list):
        raise ValueError(
            f"{called} is JSON but not a trace: it has no list traceEvents; give what torch.profiler exported"
        )
    return trace


def _events(entries: list[dict]) -> Events:
    """Return the Events of a trace's complete entries ("ph": "X"), whose times are microseconds."""
    work, launches, ranges, names, graph_launches = [], [], [], {}, set()
    for entry in entries:
        if entry.get("ph") != "X":
            continue
        category = entry.get("cat")
        if category in _WORK:
            work.append(_work(entry, _WORK[category], names))
        elif category in _LAUNCHES:
            launches.append((*_interval(entry), entry["tid"], entry["pid"], _correlation(entry)))
            if "GraphLaunch" in entry["name"]:
                graph_launches.add(_correlation(entry))
        elif category in _RANGES:
            ranges.append((str(entry["name"]), *_interval(entry), entry["tid"], entry["pid"]))
    processes = {row[4]: row[3] for row in launches}
    kernels = _columns(("kind", "name", "start", "end", "device", "stream", "correlation"), work)
    kernels["graph"] = numpy.isin(kernels["correlation"], list(graph_launches))
    kernels["creation"] = numpy.full(len(work), -1)  # Kineto does not record when the nodes of a graph are made
    # A kernel's entry names device and stream; its process is that of its launch.
    kernels["process"] = numpy.array([processes.get(row[-1], -1) for row in work], numpy.int64)
    calls = _columns(("start", "end", "thread", "process", "correlation"), launches)
    range_columns = _columns(("start", "end", "thread", "process"), [row[1:] for row in ranges]) | {
        "name": [row[0] for row in ranges],
        "domain": [""] * len(ranges),
        "style": ["PushPop"] * len(ranges),
    }
    return Events(kernels, list(names), calls, range_columns, _columns(("start", "end", "thread"), []))


def _work(entry: dict, kind: int, names: dict[str, int]) -> tuple[int, ...]:
    """Return (kind, name, start, end, device, stream, correlation). A copy's name is its direction alone."""
    details, name = entry["args"], str(entry["name"])
    if kind:
        name = re.sub(r"\s*\(.*", "", name)
    code = names.setdefault(name, len(names))
    return kind, code, *_interval(entry), int(details["device"]), int(details["stream"]), _correlation(entry)


def _interval(entry: dict) -> tuple[int, int]:
    start = round(entry["ts"] * 1000)
    return start, start + round(entry.get("dur", 0) * 1000)


def _correlation(entry: dict) -> int:
    return int(entry.get("args", {}).get("correlation", -1))


def _columns(names, tuples) -> dict[str, numpy.ndarray]:
    columns = numpy.array(tuples, numpy.int64).reshape(-1, len(names)).T
    return dict(zip(names, columns, strict=True))
