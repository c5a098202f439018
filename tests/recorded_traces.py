"""Write traces as Nsight Systems and Kineto do, from ranges, launches and kernels at given times in ns."""

import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

GPU = "NVIDIA H100 80GB HBM3"
MAIN, WORKER, OTHER_PROCESS = (100, 101), (100, 102), (200, 201)  # (process, thread)
COPIES = {"HtoD": 1, "DtoH": 2, "DtoD": 8, "HtoH": 9, "PtoP": 10}  # CUPTI's numbers
_HOST = 7 << 48  # Nsight Systems puts machine bits above process and thread

SCHEMA = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE META_DATA_EXPORT (name TEXT NOT NULL, value TEXT);
CREATE TABLE TARGET_INFO_GPU (vmId INTEGER, id INTEGER, name TEXT, busLocation TEXT, uuid TEXT);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (
    start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER, contextId INTEGER, streamId INTEGER,
    correlationId INTEGER, globalPid INTEGER, demangledName INTEGER, shortName INTEGER, gridX INTEGER,
    graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (
    start INTEGER, end INTEGER, deviceId INTEGER, contextId INTEGER, streamId INTEGER,
    correlationId INTEGER, globalPid INTEGER, bytes INTEGER, copyKind INTEGER, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (
    start INTEGER, end INTEGER, eventClass INTEGER, globalTid INTEGER, correlationId INTEGER, nameId INTEGER,
    returnValue INTEGER);
CREATE TABLE NVTX_EVENTS (
    start INTEGER, end INTEGER, eventType INTEGER, rangeId INTEGER, category INTEGER, color INTEGER, text TEXT,
    globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER, domainId INTEGER);
"""


def global_tid(process: int, thread: int) -> int:
    return _HOST | process << 24 | thread


def global_pid(process: int) -> int:
    return global_tid(process, 0)


@dataclass
class Program:
    """What a profiled program did. Ranges, launches and kernels are listed in the order of the calls below."""

    ranges: list = field(default_factory=list)
    launches: list = field(default_factory=list)
    kernels: list = field(default_factory=list)
    nodes: list = field(default_factory=list)

    def range(self, name, start, end, thread=MAIN, style=59, domain=0, end_thread=None):
        """end None: never closed. style: 59 push/pop, 60 start/end; 70 and 71 are the same in older NVTX."""
        self.ranges.append((name, start, end, thread, style, domain, end_thread))

    def launch(self, start, end, correlation, thread=MAIN):
        self.launches.append((start, end, correlation, thread))

    def kernel(self, name, start, end, correlation, process=MAIN[0], device=0, stream=7, node=None):
        """name: of a kernel, or one of COPIES. node: its graph node."""
        self.kernels.append((name, start, end, correlation, process, device, stream, node))

    def node(self, start, end, node, original=None, thread=MAIN):
        """The call that made a graph's node: at graph capture, or (with original) at instantiation, of which Nsight
        Systems writes two rows: without the original, then with it."""
        if original is not None:
            self.nodes.append((start, end, node, None, thread))
        self.nodes.append((start, end, node, original, thread))


def eager_and_graph(replays: int = 3, layers: int = 2, *, nodes: bool = True, eager: int = 2) -> Program:
    """Eager runs and replays of steps of three parts and four kernels, as studies/decode_step/record.py records them.

    A kernel runs 2, 4, 1 and 3 us; eager ones lie 5 us apart, those of a replay 1 us. nodes: the graph capture is
    in the recording.
    """
    program, time, correlation = Program(), 0, 0
    parts = (("norm", ("norm_kernel",)), ("gdn", ("gdn_kernel", "copy_kernel")), ("mlp", ("mm_kernel",)))
    us = {"norm_kernel": 2000, "gdn_kernel": 4000, "copy_kernel": 1000, "mm_kernel": 3000}

    def step(call):
        nonlocal time
        begin = time
        for part, kernels in parts:
            start = time
            for kernel in kernels:
                time += 200
                call(kernel, time)
                time += us[kernel] + 4800
            program.range(part, start, time - 100)
        program.range("decode step", begin, time)
        time += 100

    def launched(kernel, at):
        nonlocal correlation
        correlation += 1
        program.launch(at - 100, at, correlation)
        program.kernel(kernel, at, at + us[kernel], correlation)

    names = []
    if nodes:
        step_nodes = lambda kernel, at: (program.node(at, at + 1, 100 + len(names)), names.append(kernel))  # noqa: E731
        for _ in range(layers):
            step(step_nodes)
        for number in range(len(names)):
            program.node(time + number, time + number + 1, 500 + number, 100 + number)
    for _ in range(eager):
        begin = time
        for _ in range(layers):
            step(launched)
        program.range("eager", begin, time)
        time += 1000
    for _ in range(replays):
        time += 2000
        correlation += 1
        program.launch(time + 100, time + 400, correlation)
        program.range("graph", time, time + 500)
        at = time + 1000
        for number, kernel in enumerate([kernel for _, kernels in parts * layers for kernel in kernels]):
            program.kernel(kernel, at, at + us[kernel], correlation, node=500 + number)
            at += us[kernel] + 1000
        time = at
    return program


def two_steps(other_process: bool = True) -> Program:
    """Two steps, the second in a CUDA graph, a worker thread, and (optionally) a process with an open range."""
    program = Program()
    for name, start, end in (("step", 1000, 9000), ("gdn", 2000, 4000), ("norm", 5000, 6000)):
        program.range(name, start, end)
    program.range("step", 10_000, 19_000)
    program.range("gdn", 12_000, 14_000)
    program.launch(2100, 2200, 1)
    program.kernel("gdn_kernel", 3000, 6000, 1)
    program.launch(2300, 2400, 2)
    program.kernel("gdn_kernel", 6500, 8500, 2)
    program.launch(5100, 5200, 3)
    program.kernel("norm_kernel", 9500, 10_500, 3)  # runs after its range has ended
    program.launch(8000, 8100, 4)
    program.kernel("DtoD", 10_500, 10_600, 4)
    program.launch(12_100, 12_300, 5)  # cudaGraphLaunch
    for name, start, end, node in (
        ("gdn_kernel", 13_000, 17_000, 1), ("norm_kernel", 17_100, 17_600, 2), ("gdn_kernel", 17_600, 18_600, 3),
    ):  # fmt: skip
        program.kernel(name, start, end, 5, node=node)
    program.launch(20_000, 20_100, 6)
    program.kernel("other_kernel", 21_000, 21_700, 6)
    program.range("worker", 1000, 30_000, WORKER, style=60, end_thread=WORKER)
    program.launch(15_000, 15_100, 7, WORKER)
    program.kernel("other_kernel", 22_000, 22_300, 7, device=1)
    if other_process:
        program.range("step", 2000, None, OTHER_PROCESS)
        program.launch(2100, 2150, 1, OTHER_PROCESS)  # the first process has a correlation 1 too
        program.kernel("norm_kernel", 2500, 2700, 1, OTHER_PROCESS[0], device=1)
    return program


GRAPH_NODES = """CREATE TABLE CUDA_GRAPH_NODE_EVENTS (
    start INTEGER NOT NULL, end INTEGER NOT NULL, nameId INTEGER NOT NULL, eventClass INTEGER NOT NULL,
    globalTid INTEGER, graphNodeId INTEGER NOT NULL, originalGraphNodeId INTEGER);"""


def write_nsys(path: Path, program: Program, *, domains=None, version="3.24.1", text_ids=True, gpu=GPU) -> Path:
    """Write the SQLite export. domains: {(process, id): name}. text_ids: half the names lie in StringIds."""
    strings: dict[str, int] = {}
    with sqlite3.connect(path) as connection:
        connection.executescript(SCHEMA)
        meta = [("EXPORT_SCHEMA_VERSION", version), ("EXPORT_SCHEMA_VERSION_MAJOR", version.split(".")[0])]
        connection.executemany("INSERT INTO META_DATA_EXPORT VALUES (?, ?)", meta)
        connection.execute("INSERT INTO TARGET_INFO_GPU VALUES (0, 0, ?, '0000:01:00.0', 'GPU-1')", (gpu,))
        for (process, domain), name in (domains or {}).items():
            row = (0, None, 75, name, global_tid(process, process + 1), None, None, domain)
            connection.execute(_INSERT_NVTX, row)
        for number, (name, start, end, thread, style, domain, end_thread) in enumerate(reversed(program.ranges)):
            text_id = strings.setdefault(name, len(strings) + 1) if text_ids and number % 2 else None
            ends_on = global_tid(*end_thread) if end_thread else None
            row = (start, end, style, None if text_id else name, global_tid(*thread), ends_on, text_id, domain)
            connection.execute(_INSERT_NVTX, row)
        for start, end, correlation, thread in reversed(program.launches):
            row = (start, end, global_tid(*thread), correlation)
            connection.execute("INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, 0, ?, ?, 0, 0)", row)
        for name, start, end, correlation, process, device, stream, node in reversed(program.kernels):
            row = (start, end, device, stream, correlation, global_pid(process))
            if name in COPIES:
                insert = "INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (?, ?, ?, 1, ?, ?, ?, 4096, ?, ?)"
                connection.execute(insert, (*row, COPIES[name], node))
            else:
                code = strings.setdefault(name, len(strings) + 1)
                insert = "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?, 1, ?)"
                connection.execute(insert, (*row, code, code, node))
        if program.nodes:  # tables are absent when empty
            connection.execute(GRAPH_NODES)
        for start, end, node, original, thread in reversed(program.nodes):
            row = (start, end, global_tid(*thread), node, original)
            connection.execute("INSERT INTO CUDA_GRAPH_NODE_EVENTS VALUES (?, ?, 0, 0, ?, ?, ?)", row)
        connection.executemany("INSERT INTO StringIds VALUES (?, ?)", [(code, text) for text, code in strings.items()])
    connection.close()
    return path


_INSERT_NVTX = (
    "INSERT INTO NVTX_EVENTS (start, end, eventType, text, globalTid, endGlobalTid, textId, domainId) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


def kineto_trace(program: Program) -> dict:
    """The Chrome trace that torch.profiler exports: microseconds, one process."""
    events = [{"ph": "M", "name": "process_name", "pid": 100, "tid": 0, "args": {"name": "python"}}]

    def add(category, name, start, end, process, thread, **args):
        times = {"ts": start / 1000, "dur": (end - start) / 1000}
        events.append({"ph": "X", "cat": category, "name": name, "pid": process, "tid": thread, **times, "args": args})

    for name, start, end, thread, *_ in program.ranges:
        add("user_annotation", name, start, end, *thread)
        add("gpu_user_annotation", name, start + 500, end + 500, 0, 7)
        add("cpu_op", "aten::mm", start, end, *thread)
    graph_calls = {kernel[3] for kernel in program.kernels if kernel[-1]}  # torch 2.11 says it of no kernel itself
    for start, end, correlation, thread in program.launches:
        name = "cudaGraphLaunch" if correlation in graph_calls else "cudaLaunchKernel"
        add("cuda_runtime", name, start, end, *thread, correlation=correlation)
    for name, start, end, correlation, _, device, stream, _ in program.kernels:
        args = {"device": device, "stream": stream, "correlation": correlation}
        if name in COPIES:
            add("gpu_memcpy", f"Memcpy {name} (Device -> Device)", start, end, device, stream, **args)
        else:
            add("kernel", name, start, end, device, stream, **args)
    return {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": GPU}], "traceEvents": events}


def write_kineto(path: Path, program: Program) -> Path:
    path.write_text(json.dumps(kineto_trace(program)))
    return path
