"""A trace of a million kernels is read and summed up within its limits of CPU time and memory, CUDA graphs included.

make test reads a quarter of a million in a quarter of the time and half the memory, make test-all the million.
"""

import json
import sqlite3
import subprocess
import sys

import pytest
from recorded_traces import GRAPH_NODES, MAIN, SCHEMA, global_pid, global_tid

MILLION, PER_RANGE, RANGES_PER_STEP, NODES = 1_000_000, 10, 10, 1000
each_size = pytest.mark.parametrize(
    "share", [pytest.param(0.25, id="quarter"), pytest.param(1, id="million", marks=pytest.mark.exhaustive)]
)
READ = """
import json, re, sys, time
from pathlib import Path
from gdn_lab.trace import graphs, range_table, read, table
start = time.process_time()
trace = graphs.unfolded(read(sys.argv[1]))
rows, ranges = table(trace), range_table(trace)
seconds = time.process_time() - start
kib = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))  # ru_maxrss has the parent's
print(json.dumps({"seconds": seconds, "kib": kib,
                  "instances": int(ranges["instances"].sum()), "count": int(rows["count"].sum()), "rows": len(rows),
                  "paths": sorted(set(rows["path"]))}))
"""


def write_large(path, kernels):
    """Steps of ten ranges of ten kernels, each launched by itself: 11 ranges for 100. Rows are stored last first."""
    tid, pid, ranges = global_tid(*MAIN), global_pid(MAIN[0]), kernels // PER_RANGE
    with sqlite3.connect(path) as connection:
        connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + SCHEMA)
        names = [(code, f"void kernel_{code}<float>(float*)") for code in range(40)]
        names += [(100 + part, f"part {part}") for part in range(RANGES_PER_STEP)] + [(99, "step")]
        connection.executemany("INSERT INTO StringIds VALUES (?, ?)", names)
        backwards = range(kernels - 1, -1, -1)
        connection.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, 0, 1, 7, ?, ?, ?, 0, 1, NULL)",
            ((i * 1000 + 700, i * 1000 + 1500 + i % 97, i, pid, i % 40) for i in backwards),
        )
        connection.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, 0, ?, ?, 0, 0)",
            ((i * 1000 + 100, i * 1000 + 200, tid, i) for i in backwards),
        )
        insert = (
            "INSERT INTO NVTX_EVENTS (start, end, eventType, globalTid, textId, domainId) VALUES (?, ?, 59, ?, ?, 0)"
        )
        width = 1000 * PER_RANGE
        connection.executemany(
            insert, ((i * width, (i + 1) * width - 1, tid, 100 + i % RANGES_PER_STEP) for i in range(ranges))
        )
        width *= RANGES_PER_STEP
        connection.executemany(
            insert, ((i * width, (i + 1) * width - 1, tid, 99) for i in range(ranges // RANGES_PER_STEP))
        )
    connection.close()


def write_large_graph(path, kernels):
    """Replays of one graph of a thousand kernels in a hundred parts, whose graph capture was recorded."""
    tid, pid, replays = global_tid(*MAIN), global_pid(MAIN[0]), kernels // NODES
    with sqlite3.connect(path) as connection:
        connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + SCHEMA + GRAPH_NODES)
        names = [(code, f"void kernel_{code}<float>(float*)") for code in range(40)]
        names += [(100 + part, f"part {part}") for part in range(NODES // PER_RANGE)] + [(99, "replay")]
        connection.executemany("INSERT INTO StringIds VALUES (?, ?)", names)
        insert = "INSERT INTO CUDA_GRAPH_NODE_EVENTS VALUES (?, ?, 0, 0, ?, ?, ?)"
        connection.executemany(insert, ((100 + 10 * i, 101 + 10 * i, tid, 1 + i, None) for i in range(NODES)))
        connection.executemany(insert, ((20_000, 20_001, tid, 10_001 + i, 1 + i) for i in range(NODES)))
        connection.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, 0, 1, 7, ?, ?, ?, 0, 1, ?)",
            ((100_000 + i * 1000, 100_500 + i * 1000 + i % 97, 1 + i // NODES, pid, i % 40, 10_001 + i % NODES)
             for i in range(kernels)),
        )  # fmt: skip
        width = 1000 * NODES
        connection.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, 0, ?, ?, 0, 0)",
            ((50_000 + i * width, 50_100 + i * width, tid, 1 + i) for i in range(replays)),
        )
        insert = (
            "INSERT INTO NVTX_EVENTS (start, end, eventType, globalTid, textId, domainId) VALUES (?, ?, 59, ?, ?, 0)"
        )
        parts = ((100 * i + 95, 100 * i + 192, tid, 100 + i) for i in range(NODES // PER_RANGE))
        connection.executemany(insert, parts)
        connection.executemany(insert, ((i * width + 40_000, i * width + 60_000, tid, 99) for i in range(replays)))
    connection.close()


def write_large_kineto(path, kernels):
    """Ranges of ten kernels, each launched by itself, as torch.profiler writes them."""
    call = (
        '{"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 100, "tid": 101, "ts": %d.1, '
        '"dur": 0.1, "args": {"cbid": 211, "correlation": %d}},\n'
    )
    kernel = (
        '{"ph": "X", "cat": "kernel", "name": "void kernel_%d<float>(float*)", "pid": 0, "tid": 7, "ts": %d.7, '
        '"dur": 0.8, "args": {"device": 0, "stream": 7, "correlation": %d, "grid": [1, 1, 1]}},\n'
    )
    part = '{"ph": "X", "cat": "user_annotation", "name": "part %d", "pid": 100, "tid": 101, "ts": %d, "dur": 9.9},\n'
    with open(path, "w") as file:
        file.write('{"deviceProperties": [], "traceEvents": [\n')
        for i in range(kernels):
            file.write(part % (i // 10 % 10, i) * (i % 10 == 0) + call % (i, i) + kernel % (i % 40, i, i))
        file.write('{"ph": "M", "name": "process_name"}]}')


def measured(path, kernels, seconds, gib):
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, timeout=180, check=True)
    found = json.loads(done.stdout)
    assert found["count"] == kernels and found["seconds"] < seconds and found["kib"] < gib * 1024**2, found
    return found


def limits(share, gib=2):
    """CPU seconds and memory for a share of a million kernels; half the memory is there for any trace."""
    return {"seconds": 20 * share, "gib": gib * max(share, 0.5)}


@each_size
def test_a_million_kernels_in_20_s_and_2_gib(tmp_path, share):
    path, kernels = tmp_path / "large.sqlite", int(MILLION * share)
    write_large(path, kernels)
    found = measured(path, kernels, **limits(share))
    assert found["rows"] == 200  # twenty kernels in each of ten paths
    assert found["paths"] == [f"step / part {part}" for part in range(RANGES_PER_STEP)]


@each_size
def test_a_million_kernels_of_graphs_in_20_s_and_2_gib(tmp_path, share):
    path, kernels = tmp_path / "graphs.sqlite", int(MILLION * share)
    write_large_graph(path, kernels)
    found, replays = measured(path, kernels, **limits(share)), kernels // NODES
    assert len(found["paths"]) == 100 and "replay / part 0" in found["paths"]
    assert found["instances"] == 100 + replays + 100 * replays  # at graph capture; replays; parts of replays


@each_size
def test_a_million_events_of_kineto_in_20_s_and_1_gib(tmp_path, share):
    path, kernels = tmp_path / "large.json", int(450_000 * share)
    write_large_kineto(path, kernels)
    assert measured(path, kernels, **limits(share, gib=1))["paths"] == [f"part {part}" for part in range(10)]
