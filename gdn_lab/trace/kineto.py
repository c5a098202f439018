"""Read what torch.profiler (Kineto) recorded: the Chrome trace it exports, or the profile object itself.

A kernel is joined to its launch call by its correlation (all kernels of a graph have that of the cudaGraphLaunch), and
belongs to the record_function ranges of the calling thread that enclose the call.
"""

import gzip
import json
import re
import tempfile
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from ..files import replacing
from ..names import LONGEST, readable
from . import limits
from .build import Events, Trace, build_trace
from .json_entries import entries

if TYPE_CHECKING:
    import torch  # a file is read without it, two seconds sooner

_WORK = {"kernel": 0, "gpu_memcpy": 1, "gpu_memset": 2}  # category of the trace: index into build.KINDS
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_RANGES = ("user_annotation",)
_ARGS = ("device", "stream", "correlation")  # what is read of the args of work
_KEPT_BYTES = 400  # of memory for an entry that copy() keeps, about
_EVERY = 10_000  # entries between two checks of the memory


def read(source) -> Trace:
    """Read a Chrome trace (.json or .json.gz) or a finished torch.profiler.profile.

    torch exports a profile only once, and this uses that export: to keep the trace too, export it and give the file.
    FileNotFoundError if there is no file; ValueError, one sentence, if it is not a trace, is damaged or holds no work
    of a GPU, or if the profile has not finished or was exported before.
    """
    if not hasattr(source, "export_chrome_trace"):
        return _trace(Path(source), Path(source))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        _export(source, path)
        return _trace(path, "the profile")


def keep(profile: "torch.profiler.profile", out: Path, dropped=lambda kernel: False) -> Path:
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
    with limits.one_sentence(path):
        _check(path)
        ranges, calls, work, launched, others, size = [], [], [], set(), {}, 0
        for entry in entries(path, others):
            category = _category(entry)
            if category in _WORK and not dropped(str(entry["name"])):
                launched.add(_correlation(entry))
                work.append(_kept(entry, _work_name(entry, category)))
            elif category in _LAUNCHES:
                name = "cudaGraphLaunch" if _is_graph(entry) else "launch"
                calls.append((_correlation(entry), _kept(entry, name)))
            elif category in _RANGES:
                ranges.append(_kept(entry, str(entry["name"])))
            else:
                continue
            size += _KEPT_BYTES
            if size % (_KEPT_BYTES * _EVERY) == 0:
                limits.check_memory(size, "its copy")
        kept = [*ranges, *(text for correlation, text in calls if correlation in launched), *work]
        gpus = json.dumps([{"name": name} for name in _gpus(others)])
    with replacing(out) as partial, open(partial, "wb") as file:
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
            packed.write(f'{{"deviceProperties": {gpus}, "traceEvents": ['.encode())
            for place, text in enumerate(kept):
                packed.write(b", " * bool(place) + text)
            packed.write(b"]}")
    return out


def _kept(entry: dict, name: str) -> bytes:
    """Return what read() reads of an entry as JSON: numbers as numbers, and no text but names and categories."""
    category, details = entry["cat"], entry.get("args", {})
    _interval(entry)  # its times are numbers
    kept = {"ph": "X", "cat": category, "name": name, "ts": entry["ts"], "dur": entry.get("dur", 0)}
    if category not in _WORK:
        kept |= {"pid": int(entry["pid"]), "tid": int(entry["tid"])}
    if category not in _RANGES:
        names = _ARGS if category in _WORK else ("correlation",)
        kept["args"] = {name: int(details[name]) for name in names if name in details}
    return json.dumps(kept).encode()


def _export(profile: "torch.profiler.profile", path: Path) -> None:
    try:
        profile.export_chrome_trace(str(path))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"the profile cannot be exported ({error}); let it finish first, or give the trace that was exported"
        ) from error


def _trace(path: Path, called) -> Trace:
    with limits.one_sentence(called):
        _check(path)
        others = {}
        events = _events(entries(path, others))
        return build_trace("Kineto", events, _gpus(others))


def _check(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no trace {readable(path)}; give a .json or .json.gz file that torch.profiler exported"
        )


def _gpus(others: dict) -> list[str]:
    return [str(device["name"]) for device in others.get("deviceProperties", [])]


class _Rows:
    """Columns of whole numbers that grow row by row and take eight bytes a value."""

    def __init__(self, *names: str):
        self._names, self._values = names, array("q")
        self.append = self._values.extend  # takes a row: a tuple of its values

    def __len__(self) -> int:
        return len(self._values) // len(self._names)

    def columns(self) -> dict[str, numpy.ndarray]:
        table = numpy.array(self._values, numpy.int64).reshape(-1, len(self._names))
        return {name: numpy.ascontiguousarray(table[:, place]) for place, name in enumerate(self._names)}


class _Names(dict):
    """{name: its number}; a name that is met for the first time gets the next."""

    size = 0  # bytes of the names, about

    def __missing__(self, name: str) -> int:
        self.size += 200 + 2 * len(name)
        self[name] = len(self)
        return self[name]


def _events(found) -> Events:
    """Return the Events of a trace's complete entries ("ph": "X"), whose times are microseconds."""
    work = _Rows("kind", "name", "start", "end", "device", "stream", "correlation")
    launches = _Rows("start", "end", "thread", "process", "correlation")
    ranges = _Rows("name", "start", "end", "thread", "process")
    names, range_names, graph_launches = _Names(), _Names(), set()
    for number, entry in enumerate(found):
        category = _category(entry)
        if category in _WORK:
            details, name = entry["args"], names[_work_name(entry, category)[: LONGEST + 1]]
            place = int(details["device"]), int(details["stream"]), _correlation(entry)
            work.append((_WORK[category], name, *_interval(entry), *place))
        elif category in _LAUNCHES:
            correlation = _correlation(entry)
            launches.append((*_interval(entry), int(entry["tid"]), int(entry["pid"]), correlation))
            if _is_graph(entry):
                graph_launches.add(correlation)
        elif category in _RANGES:
            name = range_names[str(entry["name"])[: LONGEST + 1]]
            ranges.append((name, *_interval(entry), int(entry["tid"]), int(entry["pid"])))
        if number % _EVERY == 0:
            _check_size(work, launches, ranges, names, range_names)
    _check_size(work, launches, ranges, names, range_names)
    kernels, calls, range_columns = work.columns(), launches.columns(), ranges.columns()
    kernels["graph"] = numpy.isin(kernels["correlation"], list(graph_launches))
    kernels["creation"] = numpy.full(len(work), -1)  # Kineto does not record when the nodes of a graph are made
    # A kernel's entry names device and stream; its process is that of its launch.
    kernels["process"] = _process_of(kernels["correlation"], calls)
    listed = list(range_names)
    range_columns |= {
        "name": [listed[code] for code in range_columns["name"].tolist()],
        "domain": [""] * len(ranges),
        "style": ["PushPop"] * len(ranges),
    }
    return Events(kernels, list(names), calls, range_columns, _Rows("start", "end", "thread").columns())


def _check_size(work, launches, ranges, names, range_names) -> None:
    rows = len(work) + len(launches) + len(ranges)
    needed = limits.ROW_BYTES * rows + names.size + range_names.size
    limits.check_memory(needed, f"{rows:,} kernels, launches and ranges")


def _process_of(correlations, calls: dict) -> numpy.ndarray:
    """Return the process of the last launch call with each correlation, or -1."""
    order = numpy.argsort(calls["correlation"], kind="stable")
    offered = calls["correlation"][order]
    if not len(offered):
        return numpy.full(len(correlations), -1)
    place = numpy.maximum(numpy.searchsorted(offered, correlations, "right") - 1, 0)
    return numpy.where(offered[place] == correlations, calls["process"][order[place]], -1)


def _category(entry: dict) -> str:
    """Return the category of a complete entry, "" for any other."""
    if not isinstance(entry, dict):
        raise limits.TraceError(
            "is not a trace that torch.profiler exported: one of its entries is no object; export it again"
        )
    category = entry.get("cat") if entry.get("ph") == "X" else ""
    return category if isinstance(category, str) else ""


def _is_graph(entry: dict) -> bool:
    return "GraphLaunch" in entry["name"]


def _work_name(entry: dict, category: str) -> str:
    """Return a kernel's name; of a copy or fill its direction alone."""
    name = str(entry["name"])
    return name if category == "kernel" else re.sub(r"\s*\(.*", "", name, flags=re.DOTALL)


def _interval(entry: dict) -> tuple[int, int]:
    start = round(entry["ts"] * 1000)
    return start, start + round(entry.get("dur", 0) * 1000)


def _correlation(entry: dict) -> int:
    return int(entry.get("args", {}).get("correlation", -1))
