"""A capture of a million kernels is read and summed up within its limits of time and memory."""

import json
import sqlite3
import subprocess
import sys

from captures import MAIN, SCHEMA, global_pid, global_tid

KERNELS, PER_RANGE, RANGES_PER_STEP = 1_000_000, 10, 10
READ = """
import json, resource, sys, time
from gdn_lab.profiling import read, table
start = time.perf_counter()
rows = table(read(sys.argv[1]))
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                  "count": int(rows["count"].sum()), "rows": len(rows), "paths": sorted(set(rows["path"]))}))
"""


def write_large(path):
    """Steps of ten ranges of ten kernels, each launched by itself: 110,000 ranges. Rows are stored last first."""
    tid, pid, ranges = global_tid(*MAIN), global_pid(MAIN[0]), KERNELS // PER_RANGE
    with sqlite3.connect(path) as connection:
        connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + SCHEMA)
        names = [(code, f"void kernel_{code}<float>(float*)") for code in range(40)]
        names += [(100 + part, f"part {part}") for part in range(RANGES_PER_STEP)] + [(99, "step")]
        connection.executemany("INSERT INTO StringIds VALUES (?, ?)", names)
        backwards = range(KERNELS - 1, -1, -1)
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


def test_a_million_kernels_in_20_s_and_2_gib(tmp_path):
    path = tmp_path / "large.sqlite"
    write_large(path)
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    assert found["count"] == KERNELS and found["rows"] == 200  # twenty kernels in each of ten paths
    assert found["paths"] == [f"step / part {part}" for part in range(RANGES_PER_STEP)]
    assert found["seconds"] < 20, found
    assert found["kib"] < 2 * 1024**2, found
